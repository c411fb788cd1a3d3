"""The bootstrap p-value: obvious cases, uniform under the null, the naive re-derivation, determinism."""

from __future__ import annotations

import naive_goodness
import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from alphalloc.fits import FITS
from alphalloc.fits.goodness import _replica, _search_at_least, goodness_p_value
from alphalloc.fits.power_law import PowerLawFit


def power_law_above_one(rng: np.random.Generator, n: int = 160) -> np.ndarray:
    """60 % an exact power law above 1, the rest something else below."""
    tail = rng.binomial(n, 0.6)
    return np.concatenate([np.sqrt(rng.uniform(0.05, 1, n - tail)), (1 - rng.random(tail)) ** (-1 / 1.5)])


def test_a_power_law_passes_and_a_lognormal_does_not():
    rng = np.random.default_rng(0)
    assert goodness_p_value(FITS["xmin_median"], rng.pareto(2.0, 1000) + 1, replicas=99) > 0.1
    assert goodness_p_value(FITS["xmin_median"], np.exp(rng.standard_normal(1000)), replicas=99) == 0.01


@pytest.mark.parametrize("name", ["xmin_peak_robust", "hill_fraction"])
def test_p_values_are_uniform_under_the_null(name):
    rng = np.random.default_rng(1)
    p_values = [goodness_p_value(FITS[name], power_law_above_one(rng), replicas=49, seed=k) for k in range(120)]
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_p_values_of_ks_reject_no_more_than_they_claim():
    """The smallest D over all tails flatters the data as it flatters the replicas, and the data a little more."""
    rng = np.random.default_rng(2)
    p_values = np.array(
        [goodness_p_value(FITS["ks"], power_law_above_one(rng), replicas=49, seed=k) for k in range(80)]
    )
    for level in (0.1, 0.2, 0.5):
        assert binomtest(int((p_values <= level).sum()), 80, level, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("name", ["ks", "xmin_peak_robust", "xmin_peak"])
def test_against_the_naive_bootstrap(name):
    """Other random numbers, another algorithm, the same probability up to its Monte Carlo error."""
    eigs = np.exp(0.8 * np.random.default_rng(4).standard_normal(80))
    ours = goodness_p_value(FITS[name], eigs, replicas=400)
    theirs = naive_goodness.p_value(FITS[name], eigs, 200)
    assert abs(ours - theirs) < 4 * np.sqrt(0.25 * (1 / 400 + 1 / 200))


def test_the_shortcut_of_ks_decides_as_the_full_fit():
    rng = np.random.default_rng(6)
    for _ in range(50):
        values = rng.pareto(2.0, 60) + 1
        distance = FITS["ks"](values).ks_distance
        for limit in (distance * 0.99, distance, distance * 1.01):
            assert _search_at_least(FITS["ks"], values, limit) == (distance >= limit)


def test_a_replica_is_drawn_as_described():
    rng = np.random.default_rng(7)
    body = np.array([0.1, 0.2, 0.5])
    replicas = [_replica(body, 97, 1.0, 3.0, rng) for _ in range(300)]
    assert {len(replica) for replica in replicas} == {100}
    assert all((np.diff(replica) >= 0).all() for replica in replicas)
    pooled = np.concatenate(replicas)
    assert set(np.unique(pooled[pooled < 1])) == set(body)
    assert (pooled < 1).mean() == pytest.approx(0.03, abs=0.004)
    assert kstest(pooled[pooled >= 1], lambda t: 1 - t**-2.0).pvalue > 0.01


def test_the_seed_decides():
    eigs = np.random.default_rng(8).pareto(2.0, 100) + 1
    first, again, other = (goodness_p_value(FITS["ks"], eigs, replicas=60, seed=seed) for seed in (0, 0, 5))
    assert first == again
    assert 0 < first <= 1
    assert other != first


def test_no_power_law_no_p_value():
    assert goodness_p_value(FITS["ks"], np.ones(64)) is None


def test_no_p_value_when_most_replicas_cannot_be_fitted():
    calls = []

    def once(values: np.ndarray) -> PowerLawFit:
        calls.append(len(values))
        if len(calls) == 1:
            return PowerLawFit("once", 2.0, 1.0, 0.1, len(values), 0.1)
        return PowerLawFit("once", None, None, None, 0, None, "too_few", "by construction")

    assert goodness_p_value(once, np.arange(1.0, 20.0), replicas=10) is None
    assert len(calls) == 11
