"""Likelihood ratios: exact cases, powerlaw's numbers, maximum by brute force, limits."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import powerlaw
import pytest
from hypothesis import given, settings
from scipy.integrate import quad
from scipy.stats import truncnorm

from alphalloc.fits import FITS
from alphalloc.fits.likelihoods import _gap, _truncated, exponential, likelihood_ratios, lognormal, truncated_power_law
from alphalloc.fits.power_law import PowerLawFit


def fit_from(eigs: np.ndarray, xmin: float) -> PowerLawFit:
    tail = eigs[eigs >= xmin]
    alpha = 1 + len(tail) / np.log(tail / xmin).sum()
    return PowerLawFit("given", alpha, xmin, 0.0, len(tail), 0.0)


SAMPLES = {
    "pareto": lambda rng: rng.pareto(2.0, 300) + 1,
    "lognormal": lambda rng: np.exp(rng.standard_normal(300)),
    "exponential": lambda rng: rng.exponential(1.0, 300) + 0.5,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_ratios_and_p_values_are_those_of_powerlaw(name):
    eigs = SAMPLES[name](np.random.default_rng(0))
    xmin = float(np.sort(eigs)[60])
    theirs = powerlaw.Fit(eigs, xmin=xmin, parameter_ranges={"alpha": [1, None]}, verbose=False)
    ours = likelihood_ratios(eigs, fit_from(eigs, xmin))
    for alternative in ("lognormal", "exponential"):
        ratio, _ = theirs.distribution_compare("power_law", alternative)
        normalized, p_value = theirs.distribution_compare("power_law", alternative, normalized_ratio=True)
        assert ours[alternative].ratio == pytest.approx(ratio, rel=1e-5, abs=1e-4)
        assert ours[alternative].normalized == pytest.approx(normalized, rel=1e-3, abs=1e-2)
        assert ours[alternative].p_value == pytest.approx(p_value, rel=1e-2)
    # powerlaw keeps its exponent above 1; without that bound the likelihood is at least as large.
    ratio, p_value = theirs.distribution_compare("power_law", "truncated_power_law")
    assert ours["truncated_power_law"].ratio <= ratio + 1e-4
    if name == "pareto":
        assert ours["truncated_power_law"].ratio == pytest.approx(ratio, abs=1e-5)
        assert ours["truncated_power_law"].p_value == pytest.approx(p_value, abs=1e-3)


def test_the_likelier_family_is_told():
    rng = np.random.default_rng(1)
    decided = likelihood_ratios(exact := rng.pareto(1.5, 3000) + 1, fit_from(exact, 1.0))
    assert decided["exponential"].normalized > 3
    assert decided["exponential"].p_value < 0.01
    bent = np.exp(rng.standard_normal(3000))
    assert likelihood_ratios(bent, fit_from(bent, 0.5))["lognormal"].normalized < -3


def test_the_exponential_by_hand():
    t = np.array([1.0, 2.0, 3.0])
    assert exponential(t) == pytest.approx([0.0, -1.0, -2.0])


@settings(max_examples=200)
@given(mean=st.floats(-3, 3), sd=st.floats(0.2, 3))
def test_the_lognormal_is_the_maximum(mean, sd):
    """Exact quantiles of a normal cut off at 0; no nearby parameters are likelier."""
    shares = (np.arange(400) + 0.5) / 400
    y = truncnorm.ppf(shares, -mean / sd, np.inf, loc=mean, scale=sd)
    best = lognormal(y)
    if best is None:
        return
    for other_mean, other_sd in ((mean, sd), (mean + 0.05, sd), (mean, sd * 1.05), (mean - 0.2, sd * 0.9)):
        density = truncnorm.logpdf(y, -other_mean / other_sd, np.inf, loc=other_mean, scale=other_sd) - y
        assert best.sum() >= density.sum() - 1e-6


@pytest.mark.parametrize(("a", "z"), [(2.5, 0.3), (1.2, 0.05), (0.4, 1.0), (4.0, 0.01)])
def test_the_truncated_power_law_is_the_maximum(a, z):
    rng = np.random.default_rng(3)
    raw = (1 - rng.random(200_000)) ** (-1 / 1.05)
    t = raw[rng.random(len(raw)) < raw ** (2.05 - a) * np.exp(-z * (raw - 1))][:2000] if a >= 2.05 else raw[:500]
    y = np.log(t)
    best = truncated_power_law(t, y)
    for other_a in (a, a + 0.1, a - 0.1):
        for other_z in (z, z * 1.3, z / 1.3):
            density = -other_a * y - other_z * t - _truncated(other_a, other_z)[0]
            assert best is None or best.sum() >= density.sum() - 1e-6


@pytest.mark.parametrize(("a", "z"), [(2.5, 1e-9), (2.5, 0.1), (0.5, 0.01), (-3.0, 2.0), (1.0, 1e-6), (30.0, 5.0)])
def test_the_normalising_integral(a, z):
    def integrand(u, power):
        return math.exp((1 - a + power) * u - z * math.exp(u))

    total, t = (quad(integrand, 0, 60, args=(power,), limit=1000, epsabs=0)[0] for power in (0, 1))
    log_total, _, mean_t = _truncated(a, z)
    assert log_total == pytest.approx(math.log(total), abs=1e-9)
    assert mean_t == pytest.approx(t / total, rel=1e-8)


@pytest.mark.parametrize("k", [29.9, 30.1])
def test_both_forms_of_the_hazard_agree_where_they_meet(k):
    step = 1e-3
    slope = (_gap(k + step)[0] - _gap(k - step)[0]) / (2 * step)
    gap, rest = _gap(k)
    assert slope == pytest.approx(gap * (gap + k) - 1, rel=1e-4)  # dh/dk = h·(h - k)
    assert rest == pytest.approx(1 - k * gap, rel=1e-6)


def test_where_the_alternative_is_the_power_law_the_ratio_is_zero():
    quantiles = (1 - (np.arange(500) + 0.5) / 500) ** (-1 / 2.0)
    heavier = np.concatenate([quantiles, quantiles[-5:] ** 4])
    ratios = likelihood_ratios(heavier, fit_from(heavier, 1.0))
    assert (ratios["lognormal"].ratio, ratios["lognormal"].p_value) == (0.0, 1.0)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(list(FITS)), scale=st.sampled_from([2.0**-30, 2.0**20]))
def test_ratios_are_finite_and_free_of_scale(seed, name, scale):
    eigs = np.exp(np.random.default_rng(seed).standard_normal(64) * 2)
    fit = FITS[name](eigs)
    ratios = likelihood_ratios(eigs, fit)
    assert set(ratios) == ({"lognormal", "exponential", "truncated_power_law"} if fit.alpha else set())
    for ratio in ratios.values():
        assert math.isfinite(ratio.ratio)
        assert math.isfinite(ratio.normalized)
        assert 0 <= ratio.p_value <= 1
    if name != "xmin_peak_reference" and fit.alpha:
        scaled = likelihood_ratios(eigs * scale, FITS[name](eigs * scale))
        for key, ratio in ratios.items():
            assert scaled[key].ratio == pytest.approx(ratio.ratio, abs=1e-5)
