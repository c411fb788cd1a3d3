"""Reading PyTorch files: values by offset, code never run, sizes never believed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alphalloc.checkpoint import torch_file as reader
from alphalloc.errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError


class Payload:
    """Pickles as a call that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_read_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    big = torch.randn(6, 4).to(dtype)
    written = {
        "a": torch.randn(5, 3).to(dtype),
        "slice": big[2:4],
        "p": torch.nn.Parameter(torch.randn(2, 2).to(dtype)),
    }
    for tensor in reader.read_headers(save(written, tmp_path / "m.bin")):
        expected = written[tensor.name].detach().contiguous().view(torch.uint8).numpy().tobytes()
        assert tensor.load().tobytes() == expected
        assert tensor.shape == tuple(written[tensor.name].shape)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_nested_state_dict_is_found(tmp_path: Path, key: str) -> None:
    path = save({"epoch": 3, key: {"a": torch.ones(2, 2)}}, tmp_path / "m.pt")
    assert [tensor.name for tensor in reader.read_headers(path)] == ["a"]


def test_tensors_of_one_storage_say_so(tmp_path: Path) -> None:
    shared = torch.ones(3, 3)
    tensors = reader.read_headers(save({"a": shared, "b": shared, "c": torch.ones(3, 3)}, tmp_path / "m.bin"))
    assert tensors[0].storage == tensors[1].storage != tensors[2].storage


def test_integers_are_listed_but_never_loaded(tmp_path: Path) -> None:
    tensor = reader.read_headers(save({"a": torch.ones(2, 2, dtype=torch.int64)}, tmp_path / "m.bin"))[0]
    assert tensor.dtype == "I64"
    with pytest.raises(TypeError, match="never loaded"):
        tensor.load()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    target = tmp_path / "made-by-the-pickle"
    value = {"a": torch.ones(2, 2), "b": Payload(target)}
    path = save(value, tmp_path / "bad.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpointError, match=r"bad\.bin.*mkdir.*was not run") as caught:
        reader.read_headers(path)
    assert "add_safe_globals" not in str(caught.value)
    assert not target.exists()


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-pickle"
    for protocol in range(6):
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(Payload(target), protocol=protocol))
        with pytest.raises((UnsafeCheckpointError, UnsupportedCheckpointError)):
            reader.read_headers(tmp_path / "bad.pth")
    assert not target.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    path = save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError, match="Linear"):
        reader.read_headers(path)


def test_the_format_before_torch_1_6_is_refused_by_name(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2, 2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedCheckpointError, match=r"before 1\.6"):
        reader.read_headers(path)


def test_a_stride_zero_tensor_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(1).expand(200_000, 200_000)}, tmp_path / "m.bin")
    assert path.stat().st_size < 10_000
    with pytest.raises(CorruptCheckpointError, match="claims 160000000000 bytes of a storage of 4"):
        reader.read_headers(path)


def test_a_transposed_matrix_is_refused_by_its_strides(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2, 3).t()}, tmp_path / "m.bin")
    with pytest.raises(UnsupportedCheckpointError, match=r"strides \(1, 3\).*contiguous"):
        reader.read_headers(path)


def test_a_compressed_zip_is_refused_unread(tmp_path: Path) -> None:
    save({"a": torch.zeros(1000, 1000)}, tmp_path / "m.bin")
    with (
        zipfile.ZipFile(tmp_path / "m.bin") as good,
        zipfile.ZipFile(tmp_path / "bomb.bin", "w", compression=zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in good.infolist():
            bomb.writestr(member.filename, good.read(member))
    with pytest.raises(CorruptCheckpointError, match="is compressed"):
        reader.read_headers(tmp_path / "bomb.bin")


def test_a_member_given_twice_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2, 2)}, tmp_path / "m.bin")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(CorruptCheckpointError, match="twice"):
        reader.read_headers(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"hello, world", b"\x80", b"\x80\x02"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises((CorruptCheckpointError, UnsupportedCheckpointError), match=r"m\.bin"):
        reader.read_headers(tmp_path / "m.bin")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.ones(30, 30)}, tmp_path / "m.bin")
    whole = path.read_bytes()
    for length in range(4, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError):
            reader.read_headers(path)


def test_a_broken_pickle_is_corrupt_rather_than_unsafe(tmp_path: Path) -> None:
    path = save({"a": torch.ones(4, 4)}, tmp_path / "m.bin")
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "bad.bin", "w") as bad:
        for member in good.infolist():
            content = good.read(member)
            bad.writestr(member.filename, content[:25] if member.filename.endswith("data.pkl") else content)
    with pytest.raises(CorruptCheckpointError, match="pickle is missing or cut short"):
        reader.read_headers(tmp_path / "bad.bin")


def test_no_tensors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="expected a state dict of tensors"):
        reader.read_headers(save({"a": 1}, tmp_path / "m.bin"))


def test_an_array_of_numpy_is_not_weights(tmp_path: Path) -> None:
    path = save({"a": np.ones((2, 2))}, tmp_path / "m.bin")
    with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)):
        reader.read_headers(path)
