"""The stability band: exact cases, the rounding model against real rounding, laws, determinism."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import pytest

from alphalloc.fits import FITS
from alphalloc.fits.stability import AlphaBand, rounding_noise, stability
from alphalloc.spectra import esd


def band(name: str, eigs: np.ndarray, side: int, **options) -> AlphaBand:
    found = stability(name, FITS[name], eigs, rows=side, cols=side, **options)
    assert found is not None
    return found


def jumping_spectrum() -> np.ndarray:
    """A Marchenko-Pastur bulk under a Pareto tail: the histogram's peak jumps, the smooth mode does not."""
    bulk = np.linalg.svd(np.random.default_rng(11).standard_normal((512, 512)) / np.sqrt(512), compute_uv=False)[::-1]
    return (0.6 * bulk + 0.25 * (1 - (np.arange(512) + 0.5) / 512) ** -0.25) ** 2


@pytest.mark.parametrize("name", FITS)
def test_the_band_holds_the_alpha_and_is_the_same_every_time(name):
    eigs = esd(np.random.default_rng(0).standard_normal((128, 128))).eigs
    found = band(name, eigs, 128)
    assert found.low <= FITS[name](eigs).alpha <= found.high
    assert found == band(name, eigs, 128)


def test_another_seed_draws_other_noise():
    eigs = jumping_spectrum()
    assert band("xmin_peak_reference", eigs, 512) != band("xmin_peak_reference", eigs, 512, seed=1)


def test_the_band_tells_the_jumping_estimator_from_the_robust_one():
    eigs = jumping_spectrum()
    robust, released = band("xmin_peak_robust", eigs, 512), band("xmin_peak_reference", eigs, 512)
    assert robust.high - robust.low < 0.15 * robust.low
    assert released.high - released.low > 3 * (robust.high - robust.low)


@pytest.mark.parametrize(("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_the_rounding_model_is_the_size_of_real_rounding(dtype, kind):
    weight = np.random.default_rng(3).standard_normal((200, 300))
    before = np.linalg.svd(weight, compute_uv=False)
    after = np.linalg.svd(weight.astype(kind).astype(np.float64), compute_uv=False)
    expected = rounding_noise(before**2, 200, 300, dtype)
    assert np.sqrt(np.mean((after - before) ** 2)) == pytest.approx(expected, rel=0.15)


def test_the_band_of_a_fraction_spans_its_shifted_fractions():
    eigs = np.random.default_rng(5).pareto(2.0, 400) + 1
    fit = partial(FITS["hill_fraction"], fraction=0.2)
    found = stability("hill_fraction", fit, eigs, rows=400, cols=400, fraction=0.2)
    neighbours = [FITS["hill_fraction"](eigs, fraction).alpha for fraction in (0.19, 0.2, 0.21)]
    assert found.low <= min(neighbours)
    assert max(neighbours) <= found.high


def test_the_band_of_the_median_spans_its_neighbours():
    eigs = np.sort(np.random.default_rng(5).pareto(2.0, 400) + 1)
    found = band("xmin_median", eigs, 400)
    for start in (196, 200, 204):
        alpha = 1 + (400 - start) / np.log(eigs[start:] / eigs[start]).sum()
        assert found.low <= alpha * (1 + 1e-12)
        assert alpha * (1 - 1e-12) <= found.high


@pytest.mark.parametrize("name", FITS)
def test_scale_does_not_matter(name):
    if name == "xmin_peak_reference":
        return
    eigs = esd(np.random.default_rng(1).standard_normal((64, 96))).eigs
    small, large = (stability(name, FITS[name], eigs * scale, rows=64, cols=96) for scale in (1.0, 2.0**20))
    assert (large.low, large.high) == pytest.approx((small.low, small.high), rel=1e-9)


def test_no_alpha_no_band():
    assert stability("ks", FITS["ks"], np.ones(64), rows=64, cols=64) is None
    assert stability("ks", FITS["ks"], np.array([1.0, 2.0]), rows=64, cols=64) is None
