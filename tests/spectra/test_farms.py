"""FARMS: exact cases, laws, the naive re-derivation, bad input."""

from __future__ import annotations

import hypothesis.strategies as st
import ml_dtypes
import naive_farms
import numpy as np
import pytest
import torch
from hypothesis import given

from alphalloc.errors import MatrixShapeError, NonFiniteWeightError, SpectrumCheckError
from alphalloc.spectra import FarmsSettings, esd, farms, farms_cost, farms_esd


def gauss(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_windows_and_eigenvalues_by_hand():
    cost = farms_cost((64, 64), FarmsSettings(rows=32, windows=5))
    assert farms._starts(64, 32, 5) == [0, 8, 16, 24, 32]
    assert (cost.windows, cost.rows, cost.cols, cost.eigenvalues) == (25, 32, 32, 800)
    assert len(farms_esd(gauss(64, 64), rows=32, windows=5).eigs) == 800


def test_the_cost_of_the_published_settings():
    cost = farms_cost((4096, 4096))
    assert (cost.windows, cost.rows, cost.cols) == (225, 2000, 2000)
    assert cost.flops == pytest.approx(225 * (2 * 2000**3 + 4 / 3 * 2000**3))
    assert farms_cost((11008, 4096)).windows == 225


def test_two_windows_of_a_diagonal():
    """Blocks of diag(1, 2, 3, 4) on and off the diagonal: squares of what each block holds."""
    found = farms_esd(np.diag([1.0, 2.0, 3.0, 4.0]), rows=2, windows=2)
    assert found.eigs == pytest.approx([1, 4, 9, 16])
    assert found.num_zero == 4


def test_one_window_is_the_plain_spectrum():
    weight = gauss(48, 48)
    whole, windowed = esd(weight), farms_esd(weight, rows=48)
    assert windowed.eigs == pytest.approx(whole.eigs, rel=1e-9, abs=1e-12 * whole.eigs[-1])
    assert (windowed.rows, windowed.cols, windowed.num_zero) == (48, 48, 0)
    assert windowed.frobenius_norm == pytest.approx(whole.frobenius_norm, rel=1e-14)
    assert len(farms_esd(gauss(48, 60), rows=48).eigs) > 48  # a square window does not cover an oblong matrix


@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    rows=st.integers(1, 40),
    ratio=st.sampled_from([0.5, 1.0, 1.7, 2.0]),
    ops=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_batched_windows_equal_the_naive_ones(m, n, rows, ratio, ops, seed):
    weight = gauss(m, n, seed=seed)
    weight[:, : n // 4] = 0
    if n < ratio:
        return
    expected, dropped = naive_farms.pooled_eigenvalues(weight, rows, ratio, ops)
    if not expected:
        return
    found = farms_esd(weight, rows=rows, ratio=ratio, windows=ops)
    cost = farms_cost((m, n), FarmsSettings(rows, ratio, ops))
    assert len(found.eigs) + found.num_zero == cost.eigenvalues == len(expected) + dropped
    tolerance = max(cost.rows, cost.cols) * 1e-15 * expected[-1]
    padded = [np.concatenate([np.zeros(cost.eigenvalues - len(v)), v]) for v in (found.eigs, expected)]
    assert np.abs(padded[0] - padded[1]).max() <= tolerance


@given(m=st.integers(2, 30), n=st.integers(2, 30), rows=st.integers(1, 20), ops=st.integers(1, 5))
def test_a_matrix_and_its_transpose_agree_for_ratio_one(m, n, rows, ops):
    weight = gauss(m, n)
    one, other = (farms_esd(matrix, rows=rows, windows=ops).eigs for matrix in (weight, weight.T))
    assert len(one) == len(other)
    assert np.abs(one - other).max() <= 1e-13 * one[-1]


def test_batches_do_not_change_the_answer(monkeypatch):
    weight = gauss(40, 70)
    together = farms_esd(weight, rows=16, windows=6)
    monkeypatch.setattr(farms, "BATCH_BYTES", 1)
    alone = farms_esd(weight, rows=16, windows=6)
    assert together.eigs == pytest.approx(alone.eigs, rel=1e-12)
    assert together.frobenius_norm == pytest.approx(alone.frobenius_norm, rel=1e-14)


@pytest.mark.parametrize("kind", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_every_float_type_and_torch(kind):
    weight = gauss(20, 30).astype(kind)
    expected = farms_esd(weight.astype(np.float64), rows=8, windows=3).eigs
    assert np.array_equal(farms_esd(weight, rows=8, windows=3).eigs, expected)
    tensor = torch.from_numpy(weight.astype(np.float32))
    assert np.array_equal(farms_esd(tensor, rows=8, windows=3).eigs, expected)


def test_the_aspect_ratio_no_longer_matters():
    """Noise of two shapes: the plain spectra differ by far, those of windows of one shape hardly."""
    square, oblong = gauss(120, 120), gauss(120, 480, seed=1)
    plain = [np.log(esd(w).eigs).std() for w in (square, oblong)]
    windowed = [np.log(farms_esd(w, rows=40, windows=6).eigs).std() for w in (square, oblong)]
    assert plain[0] > 2 * plain[1]
    assert windowed[0] == pytest.approx(windowed[1], rel=0.1)


def test_bad_input():
    with pytest.raises(NonFiniteWeightError, match="1 NaN"):
        farms_esd(np.where(np.arange(64).reshape(8, 8) == 5, np.nan, 1.0))
    with pytest.raises(MatrixShapeError, match="matrix"):
        farms_esd(np.ones(5))
    for settings in ({"rows": 0}, {"windows": 0}, {"ratio": 0.0}, {"ratio": float("nan")}, {"ratio": -1.0}):
        with pytest.raises(ValueError, match="at least one row"):
            farms_esd(np.ones((4, 4)), **settings)


def test_a_faulty_eigensolver_is_noticed(monkeypatch):
    exact = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda *args, **options: exact(*args, **options) * (1 + 1e-8))
    with pytest.raises(SpectrumCheckError, match="identity is broken in 9 of 9 windows"):
        farms_esd(gauss(24, 24), rows=8, windows=3)
