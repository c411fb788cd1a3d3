"""Estimators: exact cases, laws, the naive re-derivation, published values, degenerate input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import hypothesis.strategies as st
import naive_fits
import numpy as np
import powerlaw
import pytest
import torch
from hypothesis import assume, given, settings
from laws import EXAMPLES

from alphalloc.fits import FITS, STATUSES, hill_fraction, ks, xmin_median
from alphalloc.spectra import esd

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fix_finger_reference.json").read_text())
SCALE_FREE = [name for name in FITS if name != "xmin_peak_reference"]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gauss() -> torch.Tensor:
    return randn(256, 512, seed=0)


def heavy() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(256, 256, generator=generator) for _ in range(2))
    return first / (second.abs() + 0.05)


def pareto_quantiles(n: int, alpha: float, xmin: float = 1.0) -> np.ndarray:
    return xmin * (1 - (np.arange(n) + 0.5) / n) ** (-1 / (alpha - 1))


def pareto_diagonal(n: int, alpha: float, xmin: float) -> np.ndarray:
    return np.diag(np.sqrt(pareto_quantiles(n, alpha, xmin))).astype(np.float32)


# Spectra of all kinds: heavy tails, two humps, ties; between 16 and 200 values over up to 12 decades.
spectra = st.builds(
    lambda seed, n, alpha, ties, mix: _drawn(seed, n, alpha, ties, mix),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(16, 200),
    alpha=st.floats(1.3, 9.0),
    ties=st.booleans(),
    mix=st.sampled_from(["pareto", "lognormal", "two humps"]),
)


def _drawn(seed: int, n: int, alpha: float, ties: bool, mix: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if mix == "pareto":
        values = (1 - rng.random(n)) ** (-1 / (alpha - 1))
    elif mix == "lognormal":
        values = np.exp(alpha / 3 * rng.standard_normal(n))
    else:
        values = np.exp(np.where(rng.random(n) < 0.5, -alpha, 1.0) + 0.5 * rng.standard_normal(n))
    values = np.sort(np.clip(values, 1e-6, 1e6))
    return np.round(values, 1) + 0.1 if ties else values


def test_pareto_quantiles_give_back_their_exponent():
    for alpha in (2.0, 3.0, 4.0):
        eigs = pareto_quantiles(4096, alpha)
        assert ks(eigs).alpha == pytest.approx(alpha, rel=1e-3)
        assert FITS["xmin_peak"](eigs).alpha == pytest.approx(alpha, rel=1e-3)


def test_the_tail_of_the_median_and_of_a_fraction_by_hand():
    eigs = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    fit = xmin_median(eigs)
    assert (fit.xmin, fit.num_tail) == (16.0, 4)
    assert fit.alpha == pytest.approx(1 + 4 / (math.log(2) * (0 + 1 + 2 + 3)), abs=1e-14)
    assert fit.sigma == pytest.approx((fit.alpha - 1) / 2)
    assert hill_fraction(eigs, 0.25).num_tail == 2
    assert hill_fraction(eigs, 0.01).num_tail == 2
    assert hill_fraction(eigs, 1.0).num_tail == 8
    assert hill_fraction(eigs, 0.26).num_tail == 3


@pytest.mark.parametrize(
    ("name", "matrix", "expected"),
    [
        ("gauss", lambda: gauss() * 0.02, 3.31847),
        ("heavy256", heavy, 2.51400),
    ],
)
def test_robust_goldens(name, matrix, expected):
    assert FITS["xmin_peak_robust"](esd(matrix()).eigs).alpha == pytest.approx(expected, abs=5e-6), name


def test_robust_golden_of_pareto_quantiles():
    assert FITS["xmin_peak_robust"](pareto_quantiles(256, 3.0)).alpha == pytest.approx(3.00627, abs=5e-6)


def released_cases():
    """Every value of the released estimator that is a number and no artefact of float32 noise."""
    for key, value in GOLDEN.items():
        if key.startswith("pareto"):
            n, alpha, xmin = (float(part.partition("=")[2]) for part in key.split()[1:])
            yield pytest.param(lambda n=n, a=alpha, x=xmin: pareto_diagonal(int(n), a, x), value, id=key)
        elif key.startswith("gauss256x512") or key == "fp64 gauss":
            scale = 0.02 if key == "fp64 gauss" else float(key.split("scale=")[1].split()[0])
            flip = key.endswith("transposed")
            yield pytest.param(lambda s=scale, f=flip: (gauss() * s).T if f else gauss() * s, value, id=key)
        elif key.startswith("heavy256"):
            yield pytest.param(lambda s=float(key.split("scale=")[1]): heavy() * s, value, id=key)
    for dtype, key in ((torch.float16, "gauss fp16-roundtrip float"), (torch.bfloat16, "gauss bf16-roundtrip float")):
        yield pytest.param(lambda d=dtype: (gauss() * 0.02).to(d).float(), GOLDEN[key], id=key)
        yield pytest.param(lambda d=dtype: (gauss() * 0.02).to(d), GOLDEN[key], id=f"{key}, read as {dtype}")


@pytest.mark.parametrize(("matrix", "expected"), list(released_cases()))
def test_the_released_estimator_is_reproduced(matrix, expected):
    assert FITS["xmin_peak_reference"](esd(matrix()).eigs).alpha == pytest.approx(expected, abs=1e-4)


def test_the_released_estimator_on_rank_deficient_matrices():
    low_rank = esd(randn(64, 8, seed=3) @ randn(8, 64, seed=4))
    assert low_rank.num_zero == 56
    assert FITS["xmin_peak_reference"](low_rank.eigs).alpha == pytest.approx(2.14717, abs=1e-4)
    holed = randn(64, 64, seed=5)
    holed[:, :10] = 0
    assert esd(holed).num_zero == 10
    assert FITS["xmin_peak_reference"](esd(holed).eigs).alpha == pytest.approx(1.78886, abs=1e-4)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize(
    ("matrix", "statuses"),
    [
        (lambda: torch.eye(64), {"flat_spectrum"}),
        (lambda: torch.linalg.qr(randn(64, 64, seed=2)).Q, {"flat_spectrum"}),
        (lambda: torch.zeros(64, 64), {"too_few"}),
        (lambda: randn(1, 64, seed=0), {"too_few"}),
        (lambda: randn(2, 64, seed=0), {"too_few"}),
        (lambda: torch.ones(64, 64), {"too_few"}),
    ],
    ids=["identity", "orthogonal", "zero", "1x64", "2x64", "rank one"],
)
def test_degenerate_matrices_have_a_status_and_no_number(name, matrix, statuses):
    fit = FITS[name](esd(matrix()).eigs)
    assert fit.status in statuses
    assert fit.reason
    assert (fit.alpha, fit.xmin, fit.ks_distance, fit.sigma, fit.num_tail) == (None, None, None, None, 0)


@pytest.mark.parametrize("name", FITS)
def test_non_finite_and_zero_eigenvalues(name):
    assert FITS[name](np.array([1.0, np.nan] * 16)).status == "non_finite"
    assert FITS[name](np.array([1.0, np.inf] * 16)).status == "non_finite"
    assert FITS[name](np.array([])).status == "too_few"
    with pytest.raises(ValueError, match="positive eigenvalues"):
        FITS[name](np.arange(32.0))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, math.nan])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        hill_fraction(pareto_quantiles(64, 3.0), fraction)


def test_an_empty_middle_of_the_robust_estimator_is_flat():
    eigs = np.concatenate([np.ones(500), [2.0]])
    assert FITS["xmin_peak_robust"](eigs).status == "flat_spectrum"
    assert FITS["xmin_peak_robust"](pareto_quantiles(15, 3.0)).status == "too_few"


@settings(max_examples=EXAMPLES)
@given(eigs=spectra, name=st.sampled_from(list(FITS)))
def test_every_answer_is_a_number_in_range_or_a_status(eigs, name):
    fit = FITS[name](eigs)
    assert fit.status in STATUSES
    if fit.status != "ok":
        assert fit.alpha is None
        assert fit.reason
        return
    assert 1 < fit.alpha <= 200
    assert eigs[0] * (1 - 1e-12) <= fit.xmin <= eigs[-1]
    assert fit.num_tail == (eigs >= fit.xmin * (1 - 1e-12)).sum() or len(np.unique(eigs)) < len(eigs)
    assert 0 <= fit.ks_distance <= 1
    assert fit.sigma == pytest.approx((fit.alpha - 1) / math.sqrt(fit.num_tail))


@settings(max_examples=EXAMPLES)
@given(eigs=spectra, name=st.sampled_from(["ks", "xmin_peak", "xmin_peak_reference"]))
def test_the_pruned_search_equals_the_full_one(eigs, name):
    if name == "xmin_peak_reference":  # without slack: which side of a bound a value on it falls is the last bit's whim
        top = naive_fits.peak(eigs)
        assume(not any(np.isclose(eigs, bound, rtol=1e-9).any() for bound in (1.5 * top, math.log10(0.95 * top))))
    expected = getattr(naive_fits, name)(list(map(float, eigs)))
    fit = FITS[name](eigs)
    if expected is None or naive_fits.tail(eigs, expected)[0] > 200:
        assert fit.status in ("no_candidate", "flat_spectrum")
        return
    alpha, distance = naive_fits.tail(eigs, expected)
    # Two tails may tie to the last bit; then the distances agree although the index does not.
    assert fit.ks_distance == pytest.approx(distance, abs=1e-12)
    if fit.xmin == eigs[expected]:
        assert fit.alpha == pytest.approx(alpha, rel=1e-9)


@given(eigs=spectra)
def test_the_robust_estimator_equals_its_naive_form(eigs):
    fit = FITS["xmin_peak_robust"](eigs)
    if fit.status == "ok":
        alpha, xmin = naive_fits.xmin_peak_robust(eigs)
        assert fit.xmin == pytest.approx(xmin, rel=1e-6)
        assert fit.alpha == pytest.approx(alpha, rel=1e-6)


@settings(max_examples=EXAMPLES)
@given(eigs=spectra, name=st.sampled_from(SCALE_FREE), power=st.integers(-40, 40), factor=st.floats(1e-3, 1e3))
def test_scale_law(eigs, name, power, factor):
    fit = FITS[name](eigs)
    doubled, scaled = FITS[name](eigs * 4.0**power), FITS[name](eigs * factor**2)
    assert doubled.status == fit.status
    if fit.status == "ok":
        assert doubled.alpha == pytest.approx(fit.alpha, rel=1e-12)
        if len(np.unique(eigs)) == len(eigs):  # equal values may part in the last bit when scaled
            assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-6)


@settings(max_examples=EXAMPLES)
@given(eigs=spectra, seed=st.integers(0, 2**32 - 1), name=st.sampled_from(list(FITS)))
def test_order_does_not_matter(eigs, seed, name):
    assert FITS[name](np.random.default_rng(seed).permutation(eigs)) == FITS[name](eigs)


@settings(max_examples=EXAMPLES)
@given(eigs=spectra)
def test_half_of_the_eigenvalues_is_the_median(eigs):
    half, median = hill_fraction(eigs, 0.5), xmin_median(eigs)
    assert (half.alpha, half.xmin, half.num_tail) == (median.alpha, median.xmin, median.num_tail)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:powerlaw")
@pytest.mark.parametrize("n", [100, 256, 1024])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ks_agrees_with_powerlaw(n, seed):
    eigs = np.sort(np.random.default_rng(seed).pareto(2.0, n) + 1)
    # powerlaw keeps alpha within [0, 3] unless told otherwise.
    theirs = powerlaw.Fit(eigs, parameter_ranges={"alpha": [1, None]}, verbose=False).power_law
    ours = ks(eigs)
    assert ours.alpha == pytest.approx(theirs.alpha, rel=1e-9)
    assert ours.xmin == pytest.approx(theirs.xmin, rel=1e-9)
    assert ours.ks_distance == pytest.approx(theirs.D, abs=1e-9)


@pytest.mark.parametrize("name", FITS)
def test_the_same_spectrum_gives_the_same_bits(name):
    eigs = esd(gauss()).eigs
    assert FITS[name](eigs) == FITS[name](eigs.copy())
