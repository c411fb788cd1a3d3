"""analyze(): from real files to alphas, with everything that can be wrong with a matrix on the way."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import alphalloc
from alphalloc.analysis import Progress
from alphalloc.analysis.cache import SpectraCache
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import (
    AnalysisError,
    CheckpointNotFoundError,
    DeviceError,
    LayerWithoutAlphaError,
    NothingToAnalyzeError,
    StrictError,
    UnknownEstimatorError,
)
from alphalloc.fits import FITS
from alphalloc.spectra import esd


def weights(layers: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.randn(50, 32, generator=generator)}
    for layer in range(layers):
        for role, shape in (("self_attn.q_proj", (32, 32)), ("mlp.up_proj", (64, 32)), ("mlp.down_proj", (32, 64))):
            name = f"model.layers.{layer}.{role}.weight"
            tensors[name] = torch.randn(shape, generator=generator) * (layer + 1)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(32)
    return tensors


@pytest.fixture
def checkpoint(tmp_path: Path):
    """Write a checkpoint of these tensors and return its path."""

    def write(tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def analyze(model, **options):
    return alphalloc.analyze(model, **{"cache": False, **options})


@pytest.mark.parametrize("estimator", FITS)
def test_every_matrix_is_fitted_as_by_hand(checkpoint, estimator):
    tensors = weights()
    alphas = analyze(checkpoint(tensors), estimator=estimator)
    assert len(alphas.matrices) == 9
    for matrix in alphas.matrices:
        fit = FITS[estimator](esd(tensors[matrix.name]).eigs)
        assert (matrix.alpha, matrix.xmin, matrix.num_tail, matrix.status) == (
            fit.alpha,
            fit.xmin,
            fit.num_tail,
            fit.status,
        )
        assert matrix.estimator == estimator
        assert (matrix.rows, matrix.cols) == tuple(tensors[matrix.name].shape)
    assert alphas.analysis.estimator == estimator
    for layer in alphas.layers:
        members = [matrix.alpha for matrix in alphas.matrices if matrix.layer == layer.layer]
        assert layer.alpha == pytest.approx(np.mean(members), rel=1e-14)


def test_what_is_left_out_is_listed_with_a_reason(checkpoint):
    alphas = analyze(checkpoint(weights()))
    skipped = {tensor.name: tensor.reason for tensor in alphas.skipped}
    assert "embedding" in skipped["model.embed_tokens.weight"]
    assert "norm" in skipped["model.layers.0.input_layernorm.weight"]
    assert len(skipped) == 4


def test_a_path_a_module_and_a_state_dict_agree(checkpoint):
    tensors = weights()
    from_file, from_memory = analyze(checkpoint(tensors)), analyze(tensors)
    assert from_file.per_layer == from_memory.per_layer
    assert from_file.model.id == "model.safetensors"

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = torch.nn.Linear(32, 64)

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(Block() for _ in range(3))

    tower = Tower()
    expected = [FITS["xmin_peak_robust"](esd(block.up_proj.weight).eigs).alpha for block in tower.layers]
    assert list(analyze(tower).per_layer) == expected


def test_the_number_of_workers_changes_no_bit(checkpoint):
    path = checkpoint(weights(layers=6))
    assert analyze(path, workers=1).to_json() == analyze(path, workers=4).to_json()


def test_the_hill_fraction_is_recorded(checkpoint):
    path = checkpoint(weights())
    alphas = analyze(path, estimator="hill_fraction", hill_fraction=0.5)
    assert alphas.analysis.settings["hill_fraction"] == 0.5
    assert alphas.per_layer == analyze(path, estimator="xmin_median").per_layer


def test_filters_and_embeddings(checkpoint):
    path = checkpoint(weights())
    assert {matrix.role for matrix in analyze(path, include=["*mlp*"]).matrices} == {"up_proj", "down_proj"}
    assert {matrix.role for matrix in analyze(path, exclude=["down_proj"]).matrices} == {"q_proj", "up_proj"}
    with_embeddings = analyze(path, embeddings=True)
    assert [matrix.name for matrix in with_embeddings.matrices if matrix.layer < 0] == ["model.embed_tokens.weight"]
    assert with_embeddings.per_layer == analyze(path).per_layer
    with pytest.raises(NothingToAnalyzeError, match="matches no matrix"):
        analyze(path, include=["q_poj"])


def test_progress_counts_matrices_and_bytes(checkpoint):
    seen: list[Progress] = []
    analyze(checkpoint(weights()), progress=seen.append)
    assert [step.done for step in seen] == list(range(1, 10))
    assert seen[-1].bytes_done == seen[-1].bytes_total == 3 * (32 * 32 + 2 * 32 * 64) * 4


def test_progress_tells_each_layer_once_when_its_last_matrix_is_measured(checkpoint):
    seen: list[Progress] = []
    found = analyze(checkpoint(weights()), embeddings=True, progress=seen.append)
    told = [step.layer for step in seen if step.layer is not None]
    assert sorted(told, key=lambda layer: layer.layer) == list(found.layers)
    measured: set[str] = set()
    for step in seen:
        measured.add(step.name)
        complete = {
            layer.layer
            for layer in found.layers
            if {one.name for one in found.matrices if one.layer == layer.layer} <= measured
        }
        assert complete == {layer.layer for layer in told[: len(complete)]}


def damaged() -> dict[str, torch.Tensor]:
    """Layer 0 has one of each kind of damage beside one good matrix; layer 1 has none that is good."""
    tensors = weights(layers=2)
    good = torch.randn(32, 32, generator=torch.Generator().manual_seed(9))
    holed = good.clone()
    holed[0, 0] = float("nan")
    block = "model.layers.0.mlp"
    tensors |= {
        f"{block}.nan.weight": holed,
        f"{block}.infinite.weight": torch.where(torch.isnan(holed), torch.inf, holed),
        f"{block}.zero.weight": torch.zeros(32, 32),
        f"{block}.identity.weight": torch.eye(32),
        f"{block}.orthogonal.weight": torch.linalg.qr(good).Q.contiguous(),
        f"{block}.deficient.weight": good[:, :20] @ good[:20],
        f"{block}.row.weight": good[:1].clone(),
    }
    for name in tensors:
        if name.startswith("model.layers.1") and tensors[name].ndim == 2:
            tensors[name] = torch.zeros_like(tensors[name])
    return tensors


def test_damaged_matrices_have_a_status_and_leave_the_means(checkpoint):
    alphas = analyze(checkpoint(damaged()))
    status = {matrix.role: matrix.status for matrix in alphas.matrices if matrix.layer == 0}
    assert status == {
        "q_proj": "ok",
        "up_proj": "ok",
        "down_proj": "ok",
        "nan": "non_finite",
        "infinite": "non_finite",
        "zero": "too_few",
        "identity": "flat_spectrum",
        "orthogonal": "flat_spectrum",
        "deficient": "ok",
        "row": "too_few",
    }
    deficient = next(matrix for matrix in alphas.matrices if matrix.role == "deficient")
    assert (deficient.num_eigs, deficient.num_zero) == (20, 12)
    assert all(matrix.reason for matrix in alphas.matrices if matrix.status != "ok")
    assert "9 of 13 matrices have no alpha" in alphas.warnings[0]
    assert alphas.layers[0].num_valid == 4


def test_a_layer_without_alpha_stops_the_allocation_by_name(checkpoint):
    path = checkpoint(damaged())
    with pytest.raises(LayerWithoutAlphaError, match="layer 1"):
        alphalloc.allocate(analyze(path), budget=10)
    filled = analyze(path, fill="median")
    assert filled.per_layer[1] == filled.per_layer[0]
    assert "filled with the median alpha: 1" in filled.warnings[-1]
    assert alphalloc.allocate(filled, budget=10).num_experts == (5, 5)


def test_strict_refuses_a_matrix_without_alpha(checkpoint):
    with pytest.raises(StrictError, match="have no alpha"):
        analyze(checkpoint(damaged()), strict=True)
    assert len(analyze(checkpoint(weights()), strict=True).layers) == 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"estimator": "xmin_peek"}, UnknownEstimatorError, "did you mean 'xmin_peak'"),
        ({"estimator": "hill_fraction", "hill_fraction": 0.0}, AnalysisError, "fraction in"),
        ({"device": "cuda", "backend": "local"}, DeviceError, "computes on the CPU|torch sees none"),
        ({"device": "tpu"}, DeviceError, "found 'tpu'"),
        ({"fill": "mean"}, AnalysisError, "'median'"),
        ({"workers": 0}, AnalysisError, "at least one worker"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_reading(options, error, words):
    with pytest.raises(error, match=words):
        analyze("/does/not/exist", **options)


def test_a_missing_path_is_a_checkpoint_error():
    with pytest.raises(CheckpointNotFoundError):
        analyze("/does/not/exist")


def test_mps_falls_back_to_the_cpu_and_says_so(checkpoint):
    alphas = analyze(checkpoint(weights()), device="mps")
    assert "MPS has no float64" in alphas.warnings[0]


def test_the_cache_answers_without_the_weights(checkpoint, tmp_path, monkeypatch):
    path, folder = checkpoint(weights()), tmp_path / "cache"
    fresh = analyze(path, cache=folder)

    def refuse(_):
        raise AssertionError("the weights were read again")

    monkeypatch.setattr(sys.modules["alphalloc.analysis.measure"], "esd", refuse)
    assert analyze(path, cache=folder).to_json() == fresh.to_json()
    assert analyze(path, cache=folder, estimator="ks").analysis.estimator == "ks"


def test_a_damaged_cache_entry_is_recomputed(checkpoint, tmp_path):
    path, folder = checkpoint(weights()), tmp_path / "cache"
    fresh = analyze(path, cache=folder)
    entries = sorted((folder / "spectra").rglob("*.esd"))
    assert len(entries) == 9
    for number, entry in enumerate(entries):
        data = bytearray(entry.read_bytes())
        data[-1 - number] ^= 1
        entry.write_bytes(data if number % 3 else data[: number * 5])
    assert analyze(path, cache=folder).to_json() == fresh.to_json()
    assert all(SpectraCache(folder).get(matrix) is None for matrix in open_checkpoint(path).matrices)  # not hashed yet
    store = SpectraCache(folder)
    store.digest_files(open_checkpoint(path).matrices)
    assert all(store.get(matrix) is not None for matrix in open_checkpoint(path).matrices)


def test_other_weights_under_the_same_path_are_other_entries(checkpoint, tmp_path):
    folder = tmp_path / "cache"
    first = analyze(checkpoint(weights(seed=0)), cache=folder)
    second = analyze(checkpoint(weights(seed=1)), cache=folder)
    assert first.per_layer != second.per_layer
    assert second.per_layer == analyze(checkpoint(weights(seed=1))).per_layer


def test_the_same_bytes_under_another_path_are_the_same_entries(checkpoint, tmp_path):
    path, folder = checkpoint(weights()), tmp_path / "cache"
    analyze(path, cache=folder)
    moved = tmp_path / "moved.safetensors"
    shutil.copy(path, moved)
    analyze(moved, cache=folder)
    assert len(list((folder / "spectra").rglob("*.esd"))) == 9


def test_a_cache_that_cannot_be_written_costs_a_warning_only(checkpoint, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    alphas = analyze(checkpoint(weights()), cache=blocked)
    assert alphas.per_layer == analyze(checkpoint(weights())).per_layer
    assert any("cannot be written" in warning for warning in alphas.warnings)


def test_a_layer_that_disappears_is_said_to(checkpoint):
    tensors = weights(layers=3)
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        del tensors[name]
    tensors["model.layers.2.mlp.odd.weight"] = torch.zeros(2, 3, 4)
    warnings = analyze(checkpoint(tensors)).warnings
    assert any("1 layers have no matrix to analyse, the first is layer 1" in warning for warning in warnings)
    assert any("model.layers.2.mlp.odd.weight" in warning for warning in warnings)
