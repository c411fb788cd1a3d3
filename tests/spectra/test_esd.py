"""Spectra: exact cases, laws against an fp64 SVD, every input type, bad input."""

from __future__ import annotations

import sys

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.errors import MatrixShapeError, NonFiniteWeightError, SpectrumCheckError
from alphalloc.spectra import ESD, esd, gram, spectral_metrics
from alphalloc.spectra.esd import EPS, _check_identities

matrices = st.builds(
    lambda seed, rows, cols, decades, rank: _drawn(seed, rows, cols, decades, rank),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    decades=st.floats(0, 8),
    rank=st.integers(1, 40),
)


def _drawn(seed: int, rows: int, cols: int, decades: float, rank: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inner = min(rows, cols, rank)
    scales = np.logspace(0, -decades, inner)
    return (rng.standard_normal((rows, inner)) * scales) @ rng.standard_normal((inner, cols))


def padded(spectrum: ESD) -> np.ndarray:
    """All nmin eigenvalues, the dropped ones as zeros."""
    return np.concatenate([np.zeros(spectrum.num_zero), spectrum.eigs])


def svd_squares(weight: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2)


def test_a_diagonal_by_hand():
    spectrum = esd(np.diag([3.0, 1.0, 2.0]))
    assert spectrum.eigs.tolist() == pytest.approx([1.0, 4.0, 9.0], abs=1e-14)
    assert (spectrum.rows, spectrum.cols, spectrum.num_zero) == (3, 3, 0)
    assert spectrum.frobenius_norm == pytest.approx(14**0.5)
    assert spectrum.eigs.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        spectrum.eigs[0] = 0


def test_a_zero_matrix_has_no_eigenvalue_left():
    spectrum = esd(np.zeros((4, 6), dtype=np.float32))
    assert (len(spectrum.eigs), spectrum.num_zero, spectrum.frobenius_norm) == (0, 4, 0.0)


@settings(max_examples=EXAMPLES)
@given(weight=matrices)
def test_eigenvalues_lie_within_the_promised_bound_of_an_svd(weight):
    expected, ours = svd_squares(weight), padded(esd(weight))
    # Below 8 rows a single rounding of a sum exceeds nmin·EPS; a dropped value may lie one rounding beyond its bound.
    bound = max(min(weight.shape), 8) * EPS * expected[-1]
    kept = ours > 0
    assert np.abs(ours - expected)[kept].max() <= bound
    assert expected[~kept].max(initial=0) <= 1.1 * bound


@settings(max_examples=EXAMPLES)
@given(weight=matrices)
def test_the_transpose_has_the_same_spectrum(weight):
    ours, transposed = padded(esd(weight)), padded(esd(weight.T))
    assert np.abs(ours - transposed).max() <= 2 * min(weight.shape) * EPS * ours[-1]


@settings(max_examples=EXAMPLES)
@given(weight=matrices, power=st.integers(-30, 30))
def test_a_power_of_two_scales_exactly(weight, power):
    assert np.array_equal(esd(weight * 2.0**power).eigs, esd(weight).eigs * 4.0**power)


@settings(max_examples=EXAMPLES)
@given(weight=matrices, seed=st.integers(0, 2**32 - 1))
def test_rotations_and_permutations_change_nothing(weight, seed):
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((len(weight), len(weight))))[0] @ weight
    shuffled = turned[:, rng.permutation(weight.shape[1])]
    ours, moved = padded(esd(weight)), padded(esd(shuffled))
    assert np.abs(ours - moved).max() <= 1e-13 * max(weight.shape) * ours[-1]


@settings(max_examples=EXAMPLES)
@given(weight=matrices)
def test_trace_is_the_squared_frobenius_norm(weight):
    spectrum = esd(weight)
    assert spectrum.eigs.sum() == pytest.approx(np.sum(weight**2), rel=1e-10)
    assert spectrum.frobenius_norm**2 == pytest.approx(np.sum(weight**2), rel=1e-12)


def test_slabs_do_not_change_the_gram(monkeypatch):
    weight = np.random.default_rng(0).standard_normal((20, 333))
    whole = gram(weight).matrix
    monkeypatch.setattr(sys.modules[gram.__module__], "SLAB_BYTES", 8 * 20 * 7)
    for oriented in (weight, weight.T):
        assert np.allclose(gram(oriented).matrix, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
def test_torch_tensors_of_every_float_type(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert np.array_equal(esd(weight).eigs, esd(weight.double().numpy()).eigs)
    parameter = torch.nn.Parameter(weight)
    assert np.array_equal(esd(parameter).eigs, esd(weight).eigs)


def test_numpy_bfloat16_and_strided_views():
    weight = np.random.default_rng(0).standard_normal((16, 24))
    brain = weight.astype(ml_dtypes.bfloat16)
    assert np.array_equal(esd(brain).eigs, esd(brain.astype(np.float64)).eigs)
    assert np.allclose(esd(weight[::2, ::3]).eigs, esd(weight[::2, ::3].copy()).eigs, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 5), (5, 0), ()])
def test_anything_but_a_matrix_is_refused(shape):
    with pytest.raises(MatrixShapeError, match="non-empty matrix"):
        esd(np.ones(shape))


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "1 NaN and 0 infinite"), (np.inf, "0 NaN and 1 infinite"), (1e200, "overflow")]
)
def test_values_without_a_spectrum_are_refused(value, words):
    weight = np.ones((4, 4))
    weight[1, 2] = value
    with pytest.raises(NonFiniteWeightError, match=words):
        esd(weight)


def test_a_lying_eigensolver_is_caught():
    product = gram(np.random.default_rng(0).standard_normal((8, 9)))
    values = np.linalg.eigvalsh(product.matrix)
    _check_identities(values, product)
    wrong = values.copy()
    wrong[-1] *= 1 + 1e-8
    with pytest.raises(SpectrumCheckError, match="trace identity"):
        _check_identities(wrong, product)
    swapped = values.copy()
    swapped[[0, -1]] = swapped[[0, -1]].mean()
    with pytest.raises(SpectrumCheckError, match="Frobenius identity"):
        _check_identities(swapped, product)


def test_metrics_by_hand():
    metrics = spectral_metrics(esd(np.diag([1.0, 2.0, 10.0])), alpha=2.0)
    assert metrics.spectral_norm == pytest.approx(10.0)
    assert metrics.frobenius_norm == pytest.approx(105**0.5)
    assert metrics.stable_rank == pytest.approx(1.05)
    assert metrics.log10_spectral_norm == pytest.approx(1.0)
    assert metrics.alpha_weighted == pytest.approx(4.0)
    assert metrics.log_alpha_norm == pytest.approx(np.log10(1 + 16 + 10_000))
    shares = np.array([1, 4, 100]) / 105
    assert metrics.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    assert metrics.rank == 3


def test_metrics_without_an_exponent_or_a_spectrum():
    assert spectral_metrics(esd(np.eye(3))).alpha_weighted is None
    assert spectral_metrics(esd(np.eye(3))).entropy == pytest.approx(1.0)
    assert spectral_metrics(esd(np.ones((3, 3)))).entropy is None
    empty = spectral_metrics(esd(np.zeros((3, 3))), alpha=2.0)
    assert (empty.spectral_norm, empty.stable_rank, empty.rank) == (0.0, None, 0)


@settings(max_examples=EXAMPLES)
@given(weight=matrices, alpha=st.floats(1.01, 50))
def test_metrics_stay_in_their_ranges(weight, alpha):
    metrics = spectral_metrics(esd(weight), alpha)
    assert 1 - 1e-12 <= metrics.stable_rank <= metrics.rank + 1e-9
    assert metrics.entropy is None or -1e-12 <= metrics.entropy <= 1 + 1e-12
    assert np.isfinite(metrics.log_alpha_norm)


def test_the_same_matrix_gives_the_same_bits():
    weight = np.random.default_rng(0).standard_normal((100, 300)).astype(np.float32)
    assert np.array_equal(esd(weight).eigs, esd(weight.copy()).eigs)
