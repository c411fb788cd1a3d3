"""What travels to a worker and what it does there, without any cluster."""

from __future__ import annotations

import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import alphalloc
from alphalloc.analysis import on_ray
from alphalloc.analysis.measure import How, fit_function
from alphalloc.analysis.on_ray import measure_batch_there, measure_there, with_local_files
from alphalloc.analysis.trust import Trust
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AnalysisError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOW = How(fit_function("ks", 0.25), "ks", 0.25, None, Trust(stability=True))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in a folder that looks like the hub's cache."""
    folder = tmp_path / "a" / "models--some--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    tensors = {f"model.layers.{i}.q_proj.weight": rng.standard_normal((64, 96)).astype(np.float16) for i in range(3)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_task_is_a_few_hundred_bytes_without_weights(model, smollm2_file):
    sizes = []
    for matrix in (*open_checkpoint(model).matrices, *open_checkpoint(smollm2_file).matrices):
        task = pickle.dumps((matrix, False))
        assert b"numpy" not in task
        sizes.append(len(task))
    assert max(sizes) < 1024
    assert len(pickle.dumps(partial(measure_there, HOW, True))) < 1024


def test_weights_in_memory_are_refused(model):
    state = {f"layers.{i}.weight": np.ones((32, 32), dtype=np.float32) for i in range(2)}
    with pytest.raises(AnalysisError, match="lies in memory, and the ray backend sends no weights"):
        alphalloc.analyze(state, backend="ray", cache=False)
    tuned = {matrix.name: np.array(matrix.load()) + 1 for matrix in open_checkpoint(model).matrices}
    with pytest.raises(AnalysisError, match="lies in memory"):
        alphalloc.analyze(model, base=tuned, backend="ray", cache=False)


def test_a_worker_answers_as_the_local_backend_does(model):
    local = alphalloc.analyze(model, estimator="ks", stability=True, cache=False)
    for matrix, expected in zip(open_checkpoint(model).matrices, local.matrices, strict=True):
        found = measure_there(HOW, False, pickle.loads(pickle.dumps((matrix, False))))
        assert found.alpha == expected
        assert found.spectrum is None  # nobody wants to keep it
        assert found.numerics
        assert len(measure_there(HOW, True, (matrix, True)).spectrum.eigs) == expected.num_eigs


def test_a_batch_answers_in_its_own_order(model):
    matrices = open_checkpoint(model).matrices
    local = alphalloc.analyze(model, estimator="ks", stability=True, cache=False)
    found = measure_batch_there(HOW, "full", True, matrices[::-1], device="cpu")
    assert [one.alpha.name for one in found] == [matrix.name for matrix in matrices[::-1]]
    for one, expected in zip(found, local.matrices[::-1], strict=True):
        assert one.alpha.alpha == pytest.approx(expected.alpha, rel=1e-9)
        assert one.numerics == (f"torch {torch.__version__}",)  # whatever CPU the card's machine has


def test_a_hub_model_is_read_from_the_workers_own_cache(model, tmp_path, monkeypatch):
    theirs = tmp_path / "b"
    matrix = pickle.loads(pickle.dumps(open_checkpoint(model).matrices[0]))
    values = np.array(matrix.load())
    shutil.move(tmp_path / "a", theirs)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(theirs))
    on_ray._local_copy.cache_clear()
    moved = with_local_files(matrix)
    assert moved.load.path == str(theirs / "models--some--model" / "snapshots" / COMMIT / "model.safetensors")
    assert np.array_equal(moved.load(), values)
    assert moved.source == matrix.source  # what the caller's cache goes by


def test_other_paths_stay(minilm_file):
    for matrix in open_checkpoint(minilm_file).matrices[:3]:
        assert with_local_files(matrix).load == matrix.load
