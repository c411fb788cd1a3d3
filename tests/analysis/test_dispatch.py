"""The batched backend behind analyze(): the numbers of the local one, its own place in the cache, its exceptions."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import alphalloc
from alphalloc.analysis import dispatch
from alphalloc.analysis.cache import SpectraCache
from alphalloc.analysis.plan import make_plan
from alphalloc.backends import run_local
from alphalloc.backends.batched import CPU_BYTES, run_batched
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AnalysisError
from alphalloc.fits import FITS
from alphalloc.spectra.esd import EPS

SHAPES = {"self_attn.q_proj": (48, 48), "mlp.up_proj": (96, 48), "mlp.down_proj": (48, 96), "mlp.gate_proj": (96, 64)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three layers of matrices whose singular values fall off slowly, one of them broken."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer, (role, shape) in itertools.product(range(3), SHAPES.items()):
        heavy = rng.standard_normal(shape) / (np.abs(rng.standard_normal(shape)) + 0.05)
        tensors[f"model.layers.{layer}.{role}.weight"] = heavy.astype(np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("estimator", FITS)
def test_batched_agrees_with_local(model, estimator):
    options = {"estimator": estimator, "cache": False, "stability": True, "gof": estimator == "xmin_median"}
    local = alphalloc.analyze(model, backend="local", **options)
    batched = alphalloc.analyze(model, backend="batched", device="cpu", **options)
    assert batched.warnings == local.warnings
    assert batched.analysis == local.analysis
    assert [matrix.status for matrix in batched.matrices] == [matrix.status for matrix in local.matrices]
    assert [matrix.status for matrix in local.matrices].count("non_finite") == 1
    for ours, theirs in zip(batched.matrices, local.matrices, strict=True):
        if theirs.alpha is None:
            continue
        assert ours.name == theirs.name
        assert ours.num_tail == theirs.num_tail
        for field in ("alpha", "xmin", "ks_distance", "frobenius_norm", "alpha_low", "gof_p_value"):
            found, expected = getattr(ours, field), getattr(theirs, field)
            assert (found is None) == (expected is None), (ours.name, field)
            assert expected is None or found == pytest.approx(expected, rel=1e-9), (ours.name, field)
        assert ours.spectral_norm == pytest.approx(theirs.spectral_norm, rel=max(1e-12, theirs.rows * EPS))


def test_every_matrix_is_reported_once_and_the_second_time_from_the_cache(model, tmp_path):
    first, second, damaged = [], [], []
    run = {"backend": "batched", "device": "cpu", "cache": tmp_path / "cache"}
    fresh = alphalloc.analyze(model, **run, progress=first.append)
    again = alphalloc.analyze(model, **run, progress=second.append)
    assert again.to_json() == fresh.to_json()
    assert [state.done for state in first] == [state.done for state in second] == list(range(1, 13))
    assert {state.name for state in first} == {matrix.name for matrix in fresh.matrices}
    assert [sum(state.cached for state in states) for states in (first, second)] == [0, 11]  # NaN has no spectrum
    entry = sorted((tmp_path / "cache" / "spectra").rglob("*.esd"))[0]
    entry.write_bytes(entry.read_bytes()[:-1])
    assert alphalloc.analyze(model, **run, progress=damaged.append).to_json() == fresh.to_json()
    assert sum(state.cached for state in damaged) == 10


def test_backends_keep_their_spectra_apart(model, tmp_path):
    cache = tmp_path / "cache"
    alphalloc.analyze(model, backend="batched", device="cpu", cache=cache)
    states = []
    local = alphalloc.analyze(model, backend="local", cache=cache, progress=states.append)
    assert not any(state.cached for state in states)
    assert local.to_json() == alphalloc.analyze(model, backend="local", cache=False).to_json()


def test_an_approximation_is_named_and_kept_out_of_the_cache(model, tmp_path):
    run = {"backend": "batched", "device": "cpu", "estimator": "xmin_median"}
    fast = alphalloc.analyze(model, **run, precision="fast", cache=tmp_path / "cache")
    assert fast.analysis.settings["precision"] == "fast"
    assert not (tmp_path / "cache").exists()
    full = alphalloc.analyze(model, **run, cache=False)
    assert list(fast.per_layer) == pytest.approx(list(full.per_layer), rel=1e-4)
    with pytest.raises(AnalysisError, match="does not serve xmin_peak_reference"):
        alphalloc.analyze(model, **run | {"estimator": "xmin_peak_reference"}, precision="fast", cache=False)


def test_what_does_not_fit_whole_and_adapters_go_the_local_way(tmp_path):
    rng = np.random.default_rng(1)
    large = {f"layers.{i}.weight": rng.standard_normal((128, 80_000), dtype=np.float32) for i in range(2)}
    save_file(large, tmp_path / "large.safetensors")
    run = {"memory": "100MiB", "cache": False}
    assert (
        alphalloc.analyze(tmp_path / "large.safetensors", backend="batched", device="cpu", **run).to_json()
        == alphalloc.analyze(tmp_path / "large.safetensors", backend="local", **run).to_json()
    )
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {"lora_A": (16, 64), "lora_B": (64, 16)}
    save_file(
        {
            f"base_model.model.layers.{i}.q_proj.{name}.weight": rng.standard_normal(shape).astype(np.float32)
            for i in range(2)
            for name, shape in factors.items()
        },
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16}))
    assert (
        alphalloc.analyze(adapter, backend="batched", device="cpu", cache=False).to_json()
        == alphalloc.analyze(adapter, backend="local", cache=False).to_json()
    )


@pytest.fixture
def two_cards(monkeypatch):
    """A cluster of two cards that are CPUs: the tasks run here, pickled as on their way to a worker."""
    calls = []

    def run(compute, tasks, **options):
        calls.append((tasks, options))
        if options.get("num_gpus"):
            compute = partial(compute, device="cpu")
        yield from run_local(pickle.loads(pickle.dumps(compute)), pickle.loads(pickle.dumps(tasks)))

    monkeypatch.setattr(dispatch, "run_ray", run)
    monkeypatch.setattr(dispatch, "cluster_gpus", lambda address, workers: contextlib.nullcontext(2))
    return calls


def test_every_card_of_a_cluster_starts_a_few_large_tasks(model, two_cards):
    local = alphalloc.analyze(model, backend="local", cache=False)
    found = alphalloc.analyze(model, backend="ray", device="cuda", cache=False)
    assert found.warnings == local.warnings
    for ours, theirs in zip(found.matrices, local.matrices, strict=True):
        assert (ours.name, ours.status) == (theirs.name, theirs.status)
        assert ours.alpha == theirs.alpha or ours.alpha == pytest.approx(theirs.alpha, rel=1e-9)
    (batches, options), (on_cpus, _) = two_cards
    assert (options["num_gpus"], on_cpus) == (1, [])
    assert sorted(len(batch) for batch in batches) == [3, 3, 3, 3]
    assert [len({min(matrix.shape) for matrix in batch}) for batch in batches] == [1] * 4


def test_no_task_of_a_cluster_is_endless(model, monkeypatch):
    matrices = open_checkpoint(model).matrices
    job = dispatch.Job(matrices, None, None, None, None, None)
    assert sorted(map(len, dispatch._gpu_groups(job, range(12), 0))) == [3, 3, 6]  # cards are still to come
    monkeypatch.setattr(dispatch, "GPU_BATCH", 2)
    groups = dispatch._gpu_groups(job, range(12), 1)
    assert sorted(itertools.chain(*groups)) == list(range(12))
    assert max(map(len, groups)) == 2


def test_spectra_of_a_clusters_cards_are_kept_whatever_cpu_they_are_beside(model, two_cards, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "numerics", lambda shape: ("another CPU",))
    states, run = [], {"backend": "ray", "device": "cuda", "cache": tmp_path / "cache"}
    first = alphalloc.analyze(model, **run)
    assert SpectraCache(tmp_path / "cache").info().num_spectra == 11  # NaN has no spectrum
    assert not any("last digits" in warning for warning in first.warnings)
    assert alphalloc.analyze(model, **run, progress=states.append).to_json() == first.to_json()
    assert sum(state.cached for state in states) == 11


def test_a_gpu_task_declares_what_it_stages_and_slabs_go_to_cpus(tmp_path, two_cards):
    rng = np.random.default_rng(1)
    shapes = {"large": (128, 80_000), "small": (128, 1000)}
    save_file(
        {f"layers.0.{name}.weight": rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
        tmp_path / "model.safetensors",
    )
    run = {"memory": "100MiB", "cache": False}
    found = alphalloc.analyze(tmp_path / "model.safetensors", backend="ray", device="cuda", **run)
    local = alphalloc.analyze(tmp_path / "model.safetensors", backend="local", **run)
    assert found.matrices[0] == local.matrices[0]
    assert found.matrices[1].alpha == pytest.approx(local.matrices[1].alpha, rel=1e-9)
    (((small,),), on_cards), (((large, by_slabs),), _) = two_cards
    assert (small.shape, large.shape, by_slabs) == (shapes["small"], shapes["large"], True)
    assert on_cards["memory"][0] >= 11 * small.nbytes + 2 * 8 * 128**2


def test_the_memory_asked_for_bounds_batches_on_the_cpu(model, monkeypatch):
    given = []

    def run(matrices, **options):
        given.append(([matrix.name for matrix in matrices], options["free_bytes"]))
        return run_batched(matrices, **options)

    monkeypatch.setattr(dispatch, "run_batched", run)
    wide = max(open_checkpoint(model).matrices, key=lambda matrix: matrix.nbytes)
    least = max(batch.task_bytes for batch in make_plan(open_checkpoint(model)).batches)
    run_one = partial(alphalloc.analyze, model, backend="batched", device="cpu", cache=False)
    assert run_one(memory="4GiB").to_json() == run_one(memory="1MiB").to_json()
    (everything, most), (again, less) = given
    assert len(everything) == len(again) == 12
    assert (most, less) == (CPU_BYTES, 2**20 - 5 * wide.nbytes)
    tight = run_one(memory=least)  # whole, but without room for what is read ahead
    assert tight.to_json() == alphalloc.analyze(model, backend="local", cache=False, memory=least).to_json()
    assert len(given) == 2
