"""The spectrum of a product of factors against the dense float64 SVD."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphalloc.errors import MatrixShapeError, NonFiniteWeightError
from alphalloc.spectra import esd
from alphalloc.spectra.low_rank import low_rank_esd

sides = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(rows=sides, cols=sides, rank=sides, seed=st.integers(0, 2**31), decades=st.floats(0, 6))
def test_law_eigenvalues_are_those_of_the_dense_product(
    rows: int, cols: int, rank: int, seed: int, decades: float
) -> None:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((rows, rank)) * 10 ** rng.uniform(-decades, 0, rank)
    right = rng.standard_normal((rank, cols))
    found = low_rank_esd(left, right)
    dense = np.linalg.svd(left @ right, compute_uv=False)[::-1] ** 2
    bound = max(min(rows, cols), rank, 8) * 2.2e-16 * dense[-1]
    assert len(found.eigs) + found.num_zero == min(rows, cols)
    whole = np.concatenate([np.zeros(found.num_zero), found.eigs])
    assert np.abs(whole - dense).max() <= 4 * bound
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(left @ right), rel=1e-9)


def test_bounds_of_a_real_size() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((768, 16)), rng.standard_normal((16, 1024)) / 30
    found = low_rank_esd(left, right)
    dense = np.linalg.svd(left @ right, compute_uv=False)[::-1] ** 2
    assert (len(found.eigs), found.num_zero, found.rows, found.cols) == (16, 752, 768, 1024)
    assert np.abs(found.eigs - dense[-16:]).max() <= 768 * 2.2e-16 * dense[-1]


def test_esd_takes_a_value_with_factors_and_never_its_product() -> None:
    class Factors:
        left = np.arange(12.0).reshape(6, 2)
        right = np.ones((2, 5))

        def __array__(self) -> None:
            raise AssertionError("the product must not be written out")

    np.testing.assert_array_equal(esd(Factors()).eigs, low_rank_esd(Factors.left, Factors.right).eigs)


def test_a_fresh_adapter_has_no_spectrum() -> None:
    found = low_rank_esd(np.zeros((6, 2)), np.ones((2, 5)))
    assert (len(found.eigs), found.num_zero, found.frobenius_norm) == (0, 5, 0.0)


def test_bad_factors() -> None:
    with pytest.raises(MatrixShapeError, match=r"rows x r and r x cols, found \(2, 3\) and \(2, 3\)"):
        low_rank_esd(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(NonFiniteWeightError, match="in a factor"):
        low_rank_esd(np.full((2, 3), np.nan), np.ones((3, 2)))
