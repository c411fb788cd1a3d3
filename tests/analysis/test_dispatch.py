"""The batched backend behind analyze(): the numbers of the local one, its own place in the cache, its exceptions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import alphalloc
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
