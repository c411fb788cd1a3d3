"""open_checkpoint: which file of which path is the model, and what is refused before any of it is read."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.checkpoint.buffers import FileSlice, release_buffers
from alphalloc.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RevisionNotFoundError,
    UnsupportedCheckpointError,
)

State = Callable[..., dict[str, Any]]


def shard(folder: Path, state: dict[str, Any], count: int = 2, *, index: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for part in range(count):
        file = f"model-{part + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: state[name] for name in names[part::count]}, folder / file)
        weight_map |= dict.fromkeys(names[part::count], file)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def values(model: Any) -> dict[str, Any]:
    return {matrix.name: matrix.load().copy() for matrix in open_checkpoint(model).matrices}


@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_index_are_one_model(tmp_path: Path, llama_state: State, index: bool) -> None:
    state = llama_state()
    folder = shard(tmp_path / "m", state, 3, index=index)
    checkpoint = open_checkpoint(folder)
    assert [path.name for path in checkpoint.files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert len(checkpoint.matrices) == 14
    for name, array in values(folder).items():
        np.testing.assert_array_equal(array, state[name])


def test_a_single_file_a_text_path_and_its_folder_agree(tmp_path: Path, llama_state: State) -> None:
    save_file(llama_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    found = [open_checkpoint(model) for model in (tmp_path, str(tmp_path), tmp_path / "model.safetensors")]
    assert found[0].matrices == found[1].matrices == found[2].matrices
    assert {c.fingerprint for c in found} == {found[0].fingerprint}
    assert {c.architecture for c in found} == {"LlamaForCausalLM"}
    assert found[1].model_id == str(tmp_path)
    assert (found[0].revision, found[0].commit, found[0].notes) == (None, None, ())


def test_the_fingerprint_follows_headers_and_sizes(tmp_path: Path, llama_state: State) -> None:
    prints = []
    for name, state in {"a": llama_state(), "b": llama_state(3), "c": llama_state(dtype=np.float16)}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        prints.append(open_checkpoint(tmp_path / f"{name}.safetensors").fingerprint)
    assert len(set(prints)) == 3
    assert all(text.startswith("sha256:") and len(text) == 71 for text in prints)
    save_file(llama_state(), tmp_path / "again.safetensors")
    assert open_checkpoint(tmp_path / "again.safetensors").fingerprint == prints[0]


def test_a_mixed_folder_says_which_format_it_took(tmp_path: Path, llama_state: State) -> None:
    save_file(llama_state(), tmp_path / "model.safetensors")
    torch.save({"wrong": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    torch.save({"wrong": torch.ones(2, 2)}, tmp_path / "training_args.bin")
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "b.pt").write_bytes(b"")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors"
    assert len(checkpoint.notes) == 1
    assert "also holds torch weights; the safetensors ones are read" in checkpoint.notes[0]


def test_a_sharded_pytorch_folder(tmp_path: Path, llama_state: State) -> None:
    state = {name: torch.from_numpy(array) for name, array in llama_state().items()}
    names = sorted(state)
    weight_map = {}
    for part in range(2):
        file = f"pytorch_model-{part + 1:05d}-of-00002.bin"
        torch.save({name: state[name] for name in names[part::2]}, tmp_path / file)
        weight_map |= dict.fromkeys(names[part::2], file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).format == "torch"
    for name, array in values(tmp_path).items():
        np.testing.assert_array_equal(array, state[name].numpy())


def test_a_file_without_a_telling_suffix_is_known_by_its_content(tmp_path: Path, llama_state: State) -> None:
    save_file(llama_state(), tmp_path / "weights")
    torch.save({name: torch.from_numpy(array) for name, array in llama_state().items()}, tmp_path / "blob")
    (tmp_path / "notes").write_text("hello, this is text")
    assert open_checkpoint(tmp_path / "weights").format == "safetensors"
    assert open_checkpoint(tmp_path / "blob").format == "torch"
    with pytest.raises(UnsupportedCheckpointError, match="another format"):
        open_checkpoint(tmp_path / "notes")


def test_no_file_is_read_before_load(tmp_path: Path, llama_state: State) -> None:
    save_file(llama_state(), tmp_path / "model.safetensors")
    matrix = open_checkpoint(tmp_path).matrices[0]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        matrix.load()


def test_a_matrix_can_be_opened_again_elsewhere(tmp_path: Path, llama_state: State) -> None:
    save_file(llama_state(), tmp_path / "model.safetensors")
    for matrix in open_checkpoint(tmp_path).matrices:
        assert isinstance(matrix.load, FileSlice)
        raw = Path(matrix.source).read_bytes()[matrix.offset :][: matrix.nbytes]
        assert raw == matrix.load().tobytes() == pickle.loads(pickle.dumps(matrix)).load().tobytes()


def test_threads_do_not_share_buffers(tmp_path: Path, llama_state: State) -> None:
    state = llama_state(6)
    save_file(state, tmp_path / "model.safetensors")
    matrices = open_checkpoint(tmp_path).matrices
    wrong: list[str] = []

    def read(start: int) -> None:
        for _ in range(20):
            for matrix in matrices[start::3]:
                if not np.array_equal(matrix.load(), state[matrix.name]):
                    wrong.append(matrix.name)
        release_buffers()

    threads = [threading.Thread(target=read, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


NEITHER = [
    "/no/such/path", "./nothing", "../nothing", "~/nothing-here", "a/b/c", "x.safetensors", "m.gguf", "", "a\0b",
    "https://example.org/x", "a b", "a\nb", "-x/y", "x" * 120, "~no-such-user/x", "\ud800", Path("org/model"),
]  # fmt: skip


@pytest.mark.parametrize("model", NEITHER)
def test_what_is_neither_path_nor_id_is_not_found(model: Any) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such path, and not a hub model id"):
        open_checkpoint(model)


@pytest.mark.parametrize("model", [None, 3, ["a"], b"bytes"])
def test_what_is_no_model_at_all_is_refused(model: Any) -> None:
    with pytest.raises(CheckpointNotFoundError, match="expected a path, a hub id"):
        open_checkpoint(model)


def test_a_revision_of_a_local_path_is_refused(tmp_path: Path, llama_state: State) -> None:
    save_file(llama_state(), tmp_path / "model.safetensors")
    for model in (tmp_path, llama_state()):
        with pytest.raises(RevisionNotFoundError, match="only hub ids have revisions"):
            open_checkpoint(model, revision="main")


def touch(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(b"")

    return make


def index(weight_map: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return make


def link(target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").symlink_to(target)

    return make


def loop(folder: Path) -> None:
    (folder / "model.safetensors").symlink_to(folder / "other")
    (folder / "other").symlink_to(folder / "model.safetensors")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")


def folder_as_file(folder: Path) -> None:
    (folder / "model.safetensors").mkdir()


def outside(folder: Path) -> None:
    (folder.parent / "secret.safetensors").write_bytes(b"x" * 100)
    link("../secret.safetensors")(folder)


# name -> (how to make the folder, error class, message)
FOLDERS: dict[str, tuple[Callable[[Path], None], type[CheckpointError], str]] = {
    "empty": (touch(), CheckpointNotFoundError, "expected .safetensors.*found nothing"),
    "no weights": (touch("config.json", "vocab.txt"), CheckpointNotFoundError, "found config.json, vocab.txt"),
    "Meta's layout, empty": (touch("consolidated.00.pth"), CorruptCheckpointError, "consolidated.00.pth"),
    "Mistral's layout, empty": (touch("consolidated.safetensors"), CorruptCheckpointError, "found 0 bytes"),
    "an empty adapter": (touch("adapter_model.safetensors"), CorruptCheckpointError, "found 0 bytes"),
    "two models": (touch("a.gguf", "b.gguf"), CheckpointNotFoundError, "give the path of one: a.gguf, b.gguf"),
    "a missing shard": (touch("model-00001-of-00003.safetensors"), CheckpointNotFoundError, r"missing \[2, 3\]"),
    "shards of two models": (
        touch("a-00001-of-00001.safetensors", "b-00001-of-00002.safetensors"), CheckpointNotFoundError, "shards",
    ),
    "index outside": (index({"a": "../../x.safetensors"}), CorruptCheckpointError, "name of a file in this folder"),
    "index absolute": (index({"a": "/etc/passwd"}), CorruptCheckpointError, "name of a file in this folder"),
    "index with NUL": (index({"a": "a\0b"}), CorruptCheckpointError, "name of a file in this folder"),
    "index names a missing shard": (index({"a": "gone.safetensors"}), CheckpointNotFoundError, "gone.safetensors"),
    "index is no map": (index(["a"]), CorruptCheckpointError, "weight_map"),
    "index is empty": (index({}), CorruptCheckpointError, "weight_map"),
    "index of numbers": (index({"a": 3}), CorruptCheckpointError, "weight_map"),
    "symlink loop": (loop, CorruptCheckpointError, "loop of symbolic links"),
    "link to nowhere": (link("gone"), CheckpointNotFoundError, "no such file"),
    "link outside": (outside, CorruptCheckpointError, "leads outside its folder"),
    "link to a device": (link("/dev/zero"), CorruptCheckpointError, "leads outside its folder"),
    "FIFO": (fifo, CorruptCheckpointError, "found a FIFO"),
    "folder as file": (folder_as_file, CorruptCheckpointError, "found a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.timeout(20)
def test_a_hostile_folder_is_refused(tmp_path: Path, case: str) -> None:
    make, error, message = FOLDERS[case]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(folder)
    assert type(caught.value) is error
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', "[" * 100_000, '{"a": NaN}x'])
def test_a_broken_config_is_an_error(tmp_path: Path, llama_state: State, text: str) -> None:
    save_file(llama_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path, llama_state: State) -> None:
    folder = shard(tmp_path / "m", llama_state())
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["model.layers.9.q.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptCheckpointError, match=r"model\.layers\.9\.q\.weight.*does not hold it"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, llama_state: State) -> None:
    for part in (1, 2):
        save_file(llama_state(), tmp_path / f"model-0000{part}-of-00002.safetensors")
    with pytest.raises(CorruptCheckpointError, match="stands in two shards"):
        open_checkpoint(tmp_path)


def test_one_shard_does_not_pass_for_the_model(tmp_path: Path, llama_state: State) -> None:
    folder = shard(tmp_path / "m", llama_state())
    with pytest.raises(UnsupportedCheckpointError, match="part 2 of 2 of a model; give the folder"):
        open_checkpoint(folder / "model-00002-of-00002.safetensors")
    (folder / "m-00001-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedCheckpointError, match="llama-gguf-split --merge"):
        open_checkpoint(folder / "m-00001-of-00003.gguf")


def test_single_files_that_are_none_are_refused(tmp_path: Path) -> None:
    loop(tmp_path)
    with pytest.raises(CorruptCheckpointError, match="loop of symbolic links"):
        open_checkpoint(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CorruptCheckpointError, match="found a FIFO"):
        open_checkpoint(tmp_path / "pipe.gguf")
    with pytest.raises(CorruptCheckpointError, match="found a device"):
        open_checkpoint("/dev/zero")


def test_a_cache_snapshot_may_link_into_its_blobs(tmp_path: Path, llama_state: State) -> None:
    root = tmp_path / "models--org--name"
    (root / "blobs").mkdir(parents=True)
    folder = root / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    save_file(llama_state(), root / "blobs" / "b1")
    (folder / "model.safetensors").symlink_to("../../blobs/b1")
    assert len(open_checkpoint(folder).matrices) == 14
    (root / "refs").mkdir()
    save_file(llama_state(), root / "refs" / "b2")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../refs/b2")
    with pytest.raises(CorruptCheckpointError, match="leads outside its folder"):
        open_checkpoint(folder)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_flat_over_a_large_file(tmp_path: Path) -> None:
    names = [f"layers.{i}.{role}.weight" for i in range(16) for role in ("q", "k")]
    save_file({name: np.ones((512, 4096), dtype=np.float32) for name in names}, tmp_path / "model.safetensors")
    matrices = open_checkpoint(tmp_path).matrices
    assert sum(matrix.nbytes for matrix in matrices) == 256 * 2**20

    def resident_mib() -> float:
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    before = resident_mib()
    for matrix in matrices:
        assert matrix.load()[0, 0] == 1.0
    assert resident_mib() - before < 48  # one matrix of 8 MiB in one buffer, with room for the allocator
    release_buffers()
