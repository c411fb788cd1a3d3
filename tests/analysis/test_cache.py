"""The cache: keys, bound, pruning, many writers, a full disk. (How analyze uses it: test_analyze, test_resume.)"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import alphalloc
from alphalloc.analysis.cache import ABANDONED_SECONDS, SpectraCache
from alphalloc.checkpoint import WeightMatrix, open_checkpoint
from alphalloc.spectra import ESD, esd


def write_weights(path: Path, layers: int = 4, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((48, 32)) for i in range(layers)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "model.safetensors")


def filled(folder: Path, path: Path) -> tuple[SpectraCache, tuple[WeightMatrix, ...]]:
    """A cache with the spectra of all matrices of ``path``."""
    store, matrices = SpectraCache(folder), open_checkpoint(path).matrices
    store.digest_files(matrices)
    for matrix in matrices:
        store.put(matrix, esd(matrix.load()))
    return store, matrices


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "spectra").glob("*/*.esd"))


def same(first: ESD | None, second: ESD) -> bool:
    return first is not None and np.array_equal(first.eigs, second.eigs) and first.num_zero == second.num_zero


def test_what_is_put_is_got_bit_for_bit(weights, tmp_path):
    store, matrices = filled(tmp_path / "cache", weights)
    assert store.num_put == 4
    for matrix in matrices:
        kept, fresh = store.get(matrix), esd(matrix.load())
        assert same(kept, fresh)
        assert (kept.rows, kept.cols, kept.frobenius_norm) == (fresh.rows, fresh.cols, fresh.frobenius_norm)
        assert not kept.eigs.flags.writeable


def test_another_variant_is_another_entry(weights, tmp_path):
    _, matrices = filled(tmp_path / "cache", weights)
    other = SpectraCache(tmp_path / "cache", variant="windows")
    other.digest_files(matrices)
    assert other.get(matrices[0]) is None


def test_weights_in_memory_are_never_kept(tmp_path):
    state = {f"layers.{i}.weight": np.random.default_rng(i).standard_normal((20, 20)) for i in range(2)}
    alphalloc.analyze(state, cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_blob_of_the_hubs_cache_is_not_hashed_again(tmp_path):
    """Its name is its SHA-256: a wrong name is believed, which shows that the bytes were not read."""
    name = "5a" * 32
    blob = write_weights(tmp_path / "models--org--m" / "blobs" / name)
    snapshot = tmp_path / "models--org--m" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    store = SpectraCache(tmp_path / "cache")
    store.digest_files(open_checkpoint(snapshot).matrices)
    assert list(store._file_digests.values()) == [name]
    assert not (tmp_path / "cache" / "files").exists()


def test_a_blob_named_otherwise_is_hashed(tmp_path):
    """Small files of the hub's cache bear a git hash of 40 digits."""
    blob = write_weights(tmp_path / "models--org--m" / "blobs" / ("5a" * 20))
    snapshot = tmp_path / "models--org--m" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    store = SpectraCache(tmp_path / "cache")
    store.digest_files(open_checkpoint(snapshot).matrices)
    assert list(store._file_digests.values()) == [hashlib.sha256(blob.read_bytes()).hexdigest()]


def test_a_file_is_hashed_once_and_again_after_a_change(weights, tmp_path):
    def digests() -> list[str]:
        store = SpectraCache(tmp_path / "cache")
        store.digest_files(open_checkpoint(weights).matrices)
        return list(store._file_digests.values())

    assert digests() == [hashlib.sha256(weights.read_bytes()).hexdigest()]
    (note,) = (tmp_path / "cache" / "files").glob("*.json")
    note.write_text(json.dumps({"path": "x", "sha256": "ab" * 32}))
    assert digests() == ["ab" * 32]  # remembered, not hashed
    for damaged in ("", "{}", '{"sha256": 5}', '{"sha256": "../x"}', "[]", "\xff"):
        note.write_text(damaged)
        assert digests() == [hashlib.sha256(weights.read_bytes()).hexdigest()]
    write_weights(weights, seed=1)
    assert digests() == [hashlib.sha256(weights.read_bytes()).hexdigest()]


def test_matrices_put_together_from_a_folder_are_kept_by_all_its_weights(weights, tmp_path):
    matrices = tuple(dataclasses.replace(matrix, source=str(tmp_path)) for matrix in open_checkpoint(weights).matrices)
    write_weights(tmp_path / "second.safetensors", seed=1)
    (tmp_path / "notes.txt").write_text("no weights")

    def kept() -> bool:
        store = SpectraCache(tmp_path / "cache")
        store.digest_files(matrices)
        found = store.get(matrices[0]) is not None
        store.put(matrices[0], esd(matrices[0].load()))
        return found

    assert [kept(), kept()] == [False, True]
    (tmp_path / "notes.txt").write_text("other words")
    assert kept()
    write_weights(tmp_path / "second.safetensors", seed=2)
    assert not kept()


def test_what_the_configuration_decides_is_part_of_the_key(weights, tmp_path):
    store, matrices = filled(tmp_path / "cache", weights)
    assert store.get(matrices[0]) is not None
    assert store.get(dataclasses.replace(matrices[0], recipe="q of 3 heads")) is None


def test_info_counts_spectra_bytes_and_files(weights, tmp_path):
    store, _ = filled(tmp_path / "cache", weights)
    info = store.info()
    assert (info.num_spectra, info.num_files) == (4, 1)
    assert info.nbytes == sum(path.stat().st_size for path in entries(tmp_path / "cache"))
    nothing = SpectraCache(tmp_path / "none").info()
    assert (nothing.num_spectra, nothing.nbytes, nothing.num_files) == (0, 0, 0)


def test_prune_drops_what_was_used_longest_ago(weights, tmp_path):
    store, matrices = filled(tmp_path / "cache", weights)
    for age, path in enumerate(entries(tmp_path / "cache")):
        os.utime(path, (1000 + age, 1000 + age))
    assert store.get(matrices[2]) is not None  # its time of use is now
    each = store.info().nbytes // 4
    assert store.prune(2 * each) == (2, 2 * each)
    assert store.get(matrices[2]) is not None
    assert store.info().num_spectra == 2
    assert store.prune(2 * each) == (0, 0)
    assert store.prune(0) == (2, 2 * each)
    assert list((tmp_path / "cache" / "files").glob("*.json")) == []


def test_discard_deletes_what_was_used_and_nothing_else(weights, tmp_path):
    folder = tmp_path / "cache"
    store, _ = filled(folder, weights)
    others, _ = filled(folder, write_weights(tmp_path / "other.safetensors", layers=2, seed=1))
    assert (len(store.used), len(others.used), len(entries(folder))) == (4, 2, 6)
    reader = SpectraCache(folder)
    alphalloc.analyze(weights, cache=reader)
    assert reader.used == store.used  # found counts as used
    aside = tmp_path / "aside.esd"
    aside.touch()
    assert store.discard(["../../aside", "", "0" * 64, *store.used]) == 4
    assert aside.exists()
    assert {path.parent.name + path.stem for path in entries(folder)} == others.used
    assert store.discard(store.used) == 0


def test_discard_spares_what_was_used_since(weights, tmp_path):
    folder = tmp_path / "cache"
    store, _ = filled(folder, weights)
    for path in entries(folder)[:3]:
        os.utime(path, (100.0, 100.0))
    assert store.discard(store.used, used_before=101.0) == 3
    assert len(entries(folder)) == 1


def test_analyze_keeps_the_bound(weights, tmp_path, monkeypatch):
    alphas = alphalloc.analyze(weights, cache=tmp_path / "cache")
    monkeypatch.setattr(SpectraCache.__init__, "__kwdefaults__", {"max_bytes": 700, "variant": ""})
    other = write_weights(tmp_path / "other.safetensors", seed=1)
    alphalloc.analyze(other, cache=tmp_path / "cache")
    assert SpectraCache(tmp_path / "cache").info().nbytes <= 700
    assert alphalloc.analyze(weights, cache=tmp_path / "cache").to_json() == alphas.to_json()


def test_prune_sweeps_up_after_killed_processes_only(weights, tmp_path):
    store, _ = filled(tmp_path / "cache", weights)
    old, young = (entries(tmp_path / "cache")[0].with_name(name) for name in (".a.esd.1.tmp", ".b.esd.2.tmp"))
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - ABANDONED_SECONDS - 1
    os.utime(old, (past, past))
    store.prune()
    assert (old.exists(), young.exists()) == (False, True)
    assert store.info().num_spectra == 4


WRITER = """
import sys
import alphalloc
model, cache, times, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
for _ in range(times):
    text = alphalloc.analyze(model, cache=cache).to_json()
    from alphalloc.analysis.cache import SpectraCache
    if out.endswith("0"):
        SpectraCache(cache).prune(700)
open(out, "w").write(text)
"""


def test_several_processes_share_a_cache_while_one_prunes_it(tmp_path):
    weights = write_weights(tmp_path / "model.safetensors", layers=12)
    expected = alphalloc.analyze(weights, cache=False).to_json()
    outputs = [tmp_path / f"out{number}" for number in range(4)]
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(weights), str(tmp_path / "cache"), "6", str(output)])
        for output in outputs
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert {output.read_text() for output in outputs} == {expected}
    store, matrices = SpectraCache(tmp_path / "cache"), open_checkpoint(weights).matrices
    store.digest_files(matrices)
    for matrix in matrices:
        kept = store.get(matrix)
        assert kept is None or same(kept, esd(matrix.load()))
    assert list((tmp_path / "cache").rglob("*.tmp")) == []


FILLING = """
import resource, signal, sys
import alphalloc
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
alphas = alphalloc.analyze(sys.argv[1], cache=sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
open(sys.argv[4], "w").write(alphas.to_json())
"""


@pytest.mark.parametrize("limit", [0, 100, 250])
def test_files_that_may_not_grow_leave_the_cache_valid(weights, tmp_path, limit):
    """A write that ends half way, as on a full disk (RLIMIT_FSIZE): entries of 344 bytes, a note of about 150."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    output, cache = tmp_path / "out", tmp_path / "cache"
    command = [sys.executable, "-c", FILLING, str(weights), str(cache), str(limit), str(output)]
    subprocess.run(command, check=True, timeout=60)
    alphas = alphalloc.ModelAlphas.from_json(output.read_text())
    assert "cannot be written" in alphas.warnings[0]
    assert len(alphas.warnings) == 1
    assert alphas.per_layer == alphalloc.analyze(weights, cache=False).per_layer
    assert entries(cache) == []
    assert list(cache.rglob("*.tmp")) == []
    assert alphalloc.analyze(weights, cache=cache).warnings == ()
    assert len(entries(cache)) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system; the limit on file sizes above stands for it")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_leaves_the_cache_valid(small_disk, tmp_path):
    weights = write_weights(tmp_path / "model.safetensors", layers=60)
    alphas = alphalloc.analyze(weights, cache=small_disk / "cache")
    assert any("No space left" in warning for warning in alphas.warnings)
    assert alphas.per_layer == alphalloc.analyze(weights, cache=False).per_layer
    store, matrices = SpectraCache(small_disk / "cache"), open_checkpoint(weights).matrices
    store.digest_files(matrices)
    kept = [matrix for matrix in matrices if store.get(matrix) is not None]
    assert 0 < len(kept) < 60
    assert all(same(store.get(matrix), esd(matrix.load())) for matrix in kept)
    again = alphalloc.analyze(weights, cache=small_disk / "cache")
    assert again.per_layer == alphas.per_layer
