"""One table of hostile files, each made here: which error it gives and what that says, within seconds and no memory.

Files that are fine but hold odd numbers are in the second table: they are analysed, each with a status and a reason.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from alphalloc.analysis import analyze
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import (
    AlphallocError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RevisionNotFoundError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)

Make = Callable[[Path], Any]
HOLE = {"shape": [5], "data_offsets": [4, 24]}
HUGE = {"shape": [2**40, 2**40]}
GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def raw(header: bytes, data: bytes = b"\0" * 24, length: int | None = None) -> Make:
    """A safetensors file with this header, whatever it says."""

    def make(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)

    return make


def entries(data: bytes = b"\0" * 24, **tensors: Any) -> Make:
    return raw(json.dumps(tensors).encode(), data)


def plain(path: Path) -> bytes:
    save_file({f"layers.{i}.q.weight": np.ones((4, 4), np.float32) for i in range(2)}, path)
    return path.read_bytes()


def cut(keep: int) -> Make:
    return lambda path: path.write_bytes(plain(path)[:keep])


def sparse_header(path: Path) -> None:
    """A header of 200 MB that takes no disk."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 200_000_000))
        stream.truncate(200_000_100)


def many_empty(path: Path) -> None:
    one = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    raw(("{" + ",".join(one % at for at in range(120_000)) + "}").encode(), b"")(path)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-the-pickle",)


def torch_file(value: Any, **options: Any) -> Make:
    return lambda path: torch.save(value, path, **options)


def bomb(path: Path) -> None:
    torch.save({"layers.0.q.weight": torch.zeros(2, 2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if not name.endswith("/0") else b"\0" * 2**24)


def truncated_zip(path: Path) -> None:
    torch.save({"layers.0.q.weight": torch.zeros(64, 64)}, path)
    path.write_bytes(path.read_bytes()[:-200])


def beside(index: Any) -> Make:
    return lambda path: path.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def gguf_with(tensors: int, keys: int) -> Make:
    return lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys))


Row = tuple[str, Make, type[AlphallocError], str]
# what it is -> (file name, how to make it, error class, message)
FILES: dict[str, Row] = {
    "empty": ("m.safetensors", lambda p: p.write_bytes(b""), CorruptCheckpointError, "found 0 bytes"),
    "cut in the header": ("m.safetensors", cut(40), CorruptCheckpointError, "truncated"),
    "cut in the data": ("m.safetensors", cut(-8), CorruptCheckpointError, "truncated"),
    "not JSON": ("m.safetensors", raw(b"{nope"), CorruptCheckpointError, "not valid JSON"),
    "JSON 100,000 deep": ("m.safetensors", raw(b"[" * 100_000), CorruptCheckpointError, "not valid JSON"),
    "overlap": ("m.safetensors", entries(a=GOOD, b=GOOD), CorruptCheckpointError, "overlaps"),
    "hole": ("m.safetensors", entries(a=GOOD | HOLE), CorruptCheckpointError, "leaves a hole"),
    "negative side": ("m.safetensors", entries(a=GOOD | {"shape": [-2, -3]}), CorruptCheckpointError, "non-negative"),
    "overflowing side": ("m.safetensors", entries(a=GOOD | {"shape": [2**63, 2]}), CorruptCheckpointError, "non-neg"),
    "overflowing product": ("m.safetensors", entries(a=GOOD | HUGE), CorruptCheckpointError, "takes"),
    "size mismatch": ("m.safetensors", entries(a=GOOD | {"shape": [2, 2]}), CorruptCheckpointError, "takes 16 bytes"),
    "unknown dtype": ("m.safetensors", entries(a=GOOD | {"dtype": "F7"}), UnsupportedCheckpointError, "'F7' is not"),
    "trailing bytes": ("m.safetensors", entries(b"\0" * 30, a=GOOD), CorruptCheckpointError, "6 bytes after"),
    "header of 2^63 bytes": ("m.safetensors", raw(b"{}", length=2**63), CorruptCheckpointError, "header of at most"),
    "header of 200 MB": ("m.safetensors", sparse_header, CorruptCheckpointError, "header of at most"),
    "120,000 empty tensors": ("m.safetensors", many_empty, CorruptCheckpointError, "at most 100000 tensors"),
    "a name twice": (
        "m.safetensors", raw(b'{"a":%s,"a":%s}' % ((json.dumps(GOOD).encode(),) * 2)), CorruptCheckpointError, "twice",
    ),
    "pickle with code": ("m.bin", torch_file({"a": Payload()}), UnsafeCheckpointError, "mkdir.*was not run"),
    "old pickle with code": (
        "m.pth", torch_file({"a": Payload()}, _use_new_zipfile_serialization=False), UnsafeCheckpointError, "not run",
    ),
    "bare pickle with code": (
        "m.pt", lambda p: p.write_bytes(pickle.dumps(Payload())), UnsafeCheckpointError, "was not run",
    ),
    "pickled module": ("m.pt", torch_file(torch.nn.Linear(2, 2)), UnsafeCheckpointError, "Linear"),
    "truncated zip": ("m.bin", truncated_zip, CorruptCheckpointError, "broken zip archive"),
    "empty zip": ("m.bin", lambda p: p.write_bytes(b""), CorruptCheckpointError, r"m\.bin"),
    "zip bomb": ("m.bin", bomb, CorruptCheckpointError, "is compressed"),
    "stride 0": (
        "m.bin", torch_file({"a": torch.zeros(1).expand(200_000, 200_000)}), CorruptCheckpointError, "a storage of 4",
    ),
    "GGUF of 2^60 tensors": ("m.gguf", gguf_with(2**60, 0), CorruptCheckpointError, "at most 100000 tensors and keys"),
    "GGUF of 2^60 keys": ("m.gguf", gguf_with(0, 2**60), CorruptCheckpointError, "at most 100000 tensors and keys"),
    "GGUF that ends": ("m.gguf", gguf_with(5, 5), CorruptCheckpointError, "truncated"),
    "index outside": ("folder", beside({"a": "../../x"}), CorruptCheckpointError, "name of a file in this folder"),
    "index absolute": ("folder", beside({"a": "/etc/passwd"}), CorruptCheckpointError, "name of a file in this folder"),
    "index to nothing": ("folder", beside({"a": "gone.safetensors"}), CheckpointNotFoundError, "gone.safetensors"),
    "symlink loop": ("m.safetensors", link("m.safetensors"), CorruptCheckpointError, "loop of symbolic links"),
    "FIFO": ("m.safetensors", os.mkfifo, CorruptCheckpointError, "found a FIFO"),
    "device": ("m.safetensors", link("/dev/zero"), CorruptCheckpointError, "found a device"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
@pytest.mark.timeout(60)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, make, error, message = FILES[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(tmp_path if name == "folder" else tmp_path / name)
    assert type(caught.value) is error
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "made-by-the-pickle").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024  # KiB


IDS = ["../../no/such/file", "/etc/passwd/none", "https://huggingface.co/a/b", "a/b\n", "a/b\0", "a/b/c", "a" * 97]


@pytest.mark.parametrize("model", IDS)
def test_a_hostile_id_is_not_looked_up(model: str) -> None:
    with pytest.raises(CheckpointNotFoundError):
        open_checkpoint(model)


@pytest.mark.parametrize("revision", ["../../../../etc", "/etc/passwd", "a/../b", "", "a b", "a\nb", "x" * 201])
def test_a_hostile_revision_is_not_looked_up(revision: str) -> None:
    with pytest.raises(RevisionNotFoundError, match="expected a branch, tag or commit"):
        open_checkpoint("org/model", revision=revision)


def low_rank() -> Any:
    rng = np.random.default_rng(1)
    return rng.standard_normal((64, 1)) @ rng.standard_normal((1, 64))


def with_one(value: float) -> Any:
    array = np.random.default_rng(2).standard_normal((64, 64))
    array[7, 3] = value
    return array


# what the matrix holds -> (the matrix, status of its fit, part of the reason)
NUMBERS: dict[str, tuple[Any, str, str]] = {
    "a NaN": (with_one(float("nan")), "non_finite", "1 NaN and 0 infinite"),
    "a row of NaN": (np.vstack([with_one(1.0)[:-1], np.full((1, 64), np.nan)]), "non_finite", "64 NaN"),
    "an infinity": (with_one(float("inf")), "non_finite", "1 infinite"),
    "zeros": (np.zeros((64, 64)), "too_few", ""),
    "rank one": (low_rank(), "too_few", ""),
    "a constant": (np.full((64, 64), 0.5), "too_few", ""),
    "one row": (np.ones((1, 64)), "too_few", ""),
    "the identity": (np.eye(64), "flat_spectrum", ""),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_odd_numbers_are_a_status_of_one_matrix_and_the_rest_is_analysed(tmp_path: Path, case: str) -> None:
    matrix, status, reason = NUMBERS[case]
    fine = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    odd = "model.layers.1.mlp.up_proj.weight"
    state = {f"model.layers.{i}.mlp.{p}_proj.weight": fine for i in range(2) for p in ("up", "down")}
    save_file(
        {name: a for name, a in state.items() if "layers.0" in name}, tmp_path / "model-00001-of-00002.safetensors"
    )
    second = {name: a for name, a in state.items() if "layers.1" in name} | {odd: matrix.astype(np.float32)}
    save_file(second, tmp_path / "model-00002-of-00002.safetensors")
    found = analyze(tmp_path, cache=False)
    by_name = {m.name: m for m in found.matrices}
    assert (by_name[odd].status, by_name[odd].alpha) == (status, None)
    assert reason in (by_name[odd].reason or "")
    assert all(m.alpha is not None for name, m in by_name.items() if name != odd)
    assert all(layer.alpha is not None for layer in found.layers)
    assert any("1 of 4 matrices have no alpha" in warning for warning in found.warnings)
    with pytest.raises(AlphallocError, match=odd.replace(".", r"\.")):
        analyze(tmp_path, cache=False, strict=True)


def test_a_mixed_folder_says_which_it_took(tmp_path: Path) -> None:
    plain(tmp_path / "model.safetensors")
    torch.save({"layers.0.q.weight": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.notes == (f"{tmp_path} also holds torch weights; the safetensors ones are read",)
