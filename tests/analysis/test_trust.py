"""FARMS, the stability band, goodness of fit and distances from noise through analyze()."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import alphalloc
from alphalloc.alphas import MatrixAlpha
from alphalloc.analysis import make_plan
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AnalysisError, MemoryBudgetError
from alphalloc.fits import FITS
from alphalloc.fits.goodness import goodness_p_value
from alphalloc.fits.likelihoods import likelihood_ratios
from alphalloc.fits.stability import stability
from alphalloc.spectra import (
    FarmsSettings,
    esd,
    farms_esd,
    log_histogram,
    marchenko_pastur,
    mp_softrank,
    rand_distance,
)

OPTIONAL = {
    "alpha_low", "alpha_high", "mp_edge", "num_spikes", "mp_softrank", "rand_distance", "gof_p_value",
    "likelihood_ratios", "esd_histogram",
}  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (40, 40), "mlp.up_proj": (90, 40)}
    return {
        f"model.layers.{layer}.{role}.weight": torch.randn(shape, generator=generator)
        for layer in range(2)
        for role, shape in shapes.items()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def optional(matrix: MatrixAlpha) -> dict[str, object]:
    return {name: value for name in sorted(OPTIONAL) if (value := getattr(matrix, name)) is not None}


def test_nothing_is_measured_that_was_not_asked_for(model):
    alphas = alphalloc.analyze(model, cache=False)
    assert all(optional(matrix) == {} for matrix in alphas.matrices)
    assert not {"sampling", "farms", "stability", "gof", "randomize", "seed"} & set(alphas.analysis.settings)


@pytest.mark.parametrize("estimator", ["xmin_peak_robust", "ks", "hill_fraction"])
def test_every_extra_is_what_the_rooms_below_say(model, estimator):
    plain = alphalloc.analyze(model, cache=False, estimator=estimator)
    alphas = alphalloc.analyze(model, cache=False, estimator=estimator, stability=True, gof=True, randomize=True)
    for matrix, without in zip(alphas.matrices, plain.matrices, strict=True):
        spectrum = esd(weights()[matrix.name])
        fit = FITS[estimator](spectrum.eigs)
        band = stability(estimator, FITS[estimator], spectrum.eigs, rows=matrix.rows, cols=matrix.cols)
        assert (matrix.alpha_low, matrix.alpha_high) == (band.low, band.high)
        bulk = marchenko_pastur(spectrum)
        assert (matrix.mp_edge, matrix.num_spikes) == (bulk.edge, bulk.num_spikes)
        assert matrix.gof_p_value == goodness_p_value(FITS[estimator], spectrum.eigs)
        expected = likelihood_ratios(spectrum.eigs, fit)
        assert {name: ratio.ratio for name, ratio in matrix.likelihood_ratios.items()} == {
            name: ratio.ratio for name, ratio in expected.items()
        }
        assert matrix.mp_softrank == mp_softrank(spectrum)
        assert matrix.rand_distance == rand_distance(spectrum)
        assert matrix.model_copy(update=dict.fromkeys(OPTIONAL)) == without
    settings = alphas.analysis.settings
    assert (settings["stability"], settings["gof"], settings["randomize"], settings["seed"]) == (True, True, True, 0)
    assert settings["gof_replicas"] == 500
    assert alphalloc.ModelAlphas.from_json(alphas.to_json()) == alphas
    assert (
        alphas.to_json()
        == alphalloc.analyze(
            model, cache=False, estimator=estimator, stability=True, gof=True, randomize=True, workers=1
        ).to_json()
    )


def test_farms_is_named_and_fits_the_pooled_spectrum(model):
    settings = FarmsSettings(rows=20, windows=4)
    alphas = alphalloc.analyze(model, cache=False, sampling="farms", farms=settings, stability=True)
    assert alphas.analysis.settings["sampling"] == "farms"
    assert alphas.analysis.settings["farms"] == {"rows": 20, "ratio": 1.0, "windows": 4}
    for matrix in alphas.matrices:
        pooled = farms_esd(weights()[matrix.name], rows=20, windows=4)
        assert matrix.alpha == FITS["xmin_peak_robust"](pooled.eigs).alpha
        assert matrix.num_eigs == 16 * 20
        assert matrix.frobenius_norm == pooled.frobenius_norm
        assert (matrix.spectral_norm, matrix.stable_rank, matrix.entropy, matrix.rank) == (None,) * 4
        assert matrix.alpha_low <= matrix.alpha <= matrix.alpha_high
        assert matrix.mp_edge is None
    assert alphalloc.allocate(alphas, 10).analysis.settings["sampling"] == "farms"


def test_farms_and_whole_spectra_never_share_a_cache_entry(model, tmp_path):
    folder = tmp_path / "cache"
    ways = [
        {},
        {"sampling": "farms", "farms": FarmsSettings(rows=20)},
        {"sampling": "farms", "farms": FarmsSettings(rows=20, windows=3)},
        {"sampling": "farms", "farms": FarmsSettings(rows=20, ratio=1.5)},
    ]
    for count, way in enumerate(ways, start=1):
        first = alphalloc.analyze(model, cache=folder, **way)
        assert len(list(folder.glob("spectra/*/*.esd"))) == 4 * count
        assert alphalloc.analyze(model, cache=folder, **way) == first
        assert alphalloc.analyze(model, cache=False, **way) == first


def test_the_plan_counts_the_windows(tmp_path):
    save_file({"model.layers.0.q_proj.weight": torch.zeros(512, 512)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    whole = make_plan(checkpoint)
    windows = make_plan(checkpoint, farms=FarmsSettings(rows=200))
    assert windows.batches[0].side == 200
    assert windows.batches[0].eigen_flop == pytest.approx(225 * 4 / 3 * 200**3)
    assert windows.batches[0].gram_flop == pytest.approx(225 * 2 * 200**3)
    assert windows.batches[0].eigen_flop > 10 * whole.batches[0].eigen_flop
    with pytest.raises(MemoryBudgetError, match="q_proj"):
        make_plan(checkpoint, memory="1MiB", farms=FarmsSettings(rows=200))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "half"}, "'whole' or 'farms'"),
        ({"farms": FarmsSettings()}, "both or neither"),
        ({"sampling": "farms", "gof": True}, "not independent"),
        ({"sampling": "farms", "randomize": True}, "not independent"),
    ],
)
def test_contradictions_are_refused(model, options, message):
    with pytest.raises(AnalysisError, match=message):
        alphalloc.analyze(model, cache=False, **options)


def test_a_matrix_without_an_alpha_has_no_trust_either(tmp_path):
    tensors = weights() | {"model.layers.0.self_attn.q_proj.weight": torch.eye(40)}
    save_file(tensors, tmp_path / "model.safetensors")
    alphas = alphalloc.analyze(tmp_path / "model.safetensors", cache=False, stability=True, gof=True)
    flat = next(matrix for matrix in alphas.matrices if matrix.status == "flat_spectrum")
    assert (flat.alpha_low, flat.gof_p_value, flat.likelihood_ratios) == (None, None, None)
    assert flat.mp_edge is not None
    assert np.isfinite(flat.mp_edge)


def test_histograms_are_of_the_spectra_and_change_nothing_else(model):
    plain = alphalloc.analyze(model, cache=False)
    alphas = alphalloc.analyze(model, cache=False, histograms=True)
    for matrix in alphas.matrices:
        spectrum = esd(weights()[matrix.name])
        assert matrix.esd_histogram.model_dump() == asdict(log_histogram(spectrum))
        assert (matrix.mp_edge, matrix.num_spikes) == (
            marchenko_pastur(spectrum).edge,
            marchenko_pastur(spectrum).num_spikes,
        )
    kept = {"esd_histogram": None, "mp_edge": None, "num_spikes": None}
    without = tuple(matrix.model_copy(update=kept) for matrix in alphas.matrices)
    assert alphas.model_copy(update={"matrices": without}) == plain  # the settings too: no schedule's id moves
