"""The pruned search and the bounded mode against the plain ones, to the bit."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from alphalloc.fits import peak_robust
from alphalloc.fits.power_law import prepare, tail_distance, tail_exponents
from alphalloc.fits.search import best_tail, some_tail_below

KINDS = ("pareto", "lognormal", "ties", "two humps")
spectra = st.builds(
    lambda seed, n, kind: drawn(np.random.default_rng(seed), n, kind),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(16, 300),
    kind=st.sampled_from(KINDS),
)


def drawn(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    if kind == "pareto":
        return rng.pareto(rng.uniform(0.3, 6), n) + 1
    if kind == "lognormal":
        return np.exp(rng.uniform(0.05, 6) * rng.standard_normal(n))
    if kind == "ties":
        return np.round(rng.pareto(1.0, n), 1) + 0.1
    return np.exp(np.where(rng.random(n) < 0.5, -rng.uniform(0, 20), 1.0) + 0.5 * rng.standard_normal(n))


def all_distances(spectrum) -> dict[int, float]:
    alphas = tail_exponents(spectrum)
    return {
        i: tail_distance(spectrum.logs[i:], float(spectrum.logs[i]), float(alphas[i]))
        for i in range(len(alphas) - 1)
        if np.isfinite(alphas[i]) and alphas[i] > 1
    }


@given(eigs=spectra, tolerance=st.sampled_from([0.0, 1e-12, 1e-3]))
def test_the_pruned_search_returns_the_index_of_the_full_one(eigs, tolerance):
    spectrum = prepare("ks", eigs)
    distances = all_distances(spectrum)
    smallest = min(distances.values())
    expected = min(i for i, distance in distances.items() if distance <= smallest + tolerance)
    assert best_tail(spectrum, np.arange(len(eigs) - 1), tolerance=tolerance) == expected


@given(eigs=spectra, factor=st.sampled_from([0.5, 1.0, 1.0000001, 1.5]))
def test_some_tail_below_is_the_comparison_with_the_smallest_distance(eigs, factor):
    spectrum = prepare("ks", eigs)
    smallest = min(all_distances(spectrum).values())
    found = some_tail_below(spectrum, np.arange(len(eigs) - 1), smallest * factor)
    assert found == (smallest < smallest * factor)


def test_the_search_at_full_size():
    spectrum = prepare("ks", np.random.default_rng(0).pareto(2.0, 2000) + 1)
    distances = all_distances(spectrum)
    assert best_tail(spectrum, np.arange(1999)) == min(distances, key=distances.__getitem__)


def test_no_candidate():
    spectrum = prepare("ks", np.random.default_rng(0).pareto(2.0, 64) + 1)
    assert best_tail(spectrum, np.array([], dtype=np.intp)) is None
    assert not some_tail_below(spectrum, np.array([], dtype=np.intp), 1.0)


@given(eigs=spectra)
def test_the_bounded_mode_is_the_mode_of_the_whole_grid(eigs):
    x = np.sort(np.log10(eigs))
    low, high = np.quantile(x, [0.05, 0.995])
    x = x[(x >= low) & (x <= high)]
    width = peak_robust._bandwidth(x, 1.8)
    if not width > 0:
        return
    density = peak_robust._density(x, np.linspace(low, high, 512), width)
    hopeful = peak_robust._hopeful_points(x, float(low), float(high), width)
    assert int(density.argmax()) in hopeful
    assert peak_robust._density(x, np.linspace(low, high, 512)[hopeful], width).max() == density.max()


@given(eigs=spectra, share=st.floats(0, 1))
def test_the_quantile_is_numpys(eigs, share):
    assert peak_robust._quantile(np.sort(eigs), share) == pytest.approx(np.quantile(eigs, share), rel=1e-15)
