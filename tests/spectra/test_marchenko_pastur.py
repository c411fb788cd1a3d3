"""Bulk, spikes, random spectra and the two distances from noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from alphalloc.spectra import esd, marchenko_pastur, mp_softrank, rand_distance, random_spectrum
from alphalloc.spectra.esd import ESD


def gauss(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def spiked(strength: float, count: int = 3) -> np.ndarray:
    left, right = np.linalg.qr(gauss(120, count, seed=1)).Q, np.linalg.qr(gauss(200, count, seed=2)).Q
    return gauss(120, 200) + strength * left @ right.T


def test_the_edge_by_hand():
    bulk = marchenko_pastur(ESD(np.array([1.0, 1.0, 1.0, 1.0]), 4, 9, 0, 2.0))
    assert bulk.variance == pytest.approx(4 / 36)
    assert bulk.edge == pytest.approx(4 / 36 * 25)
    assert bulk.num_spikes == 0


def test_the_edge_of_noise_is_its_largest_eigenvalue():
    spectrum = esd(gauss(400, 700) * 0.02)
    bulk = marchenko_pastur(spectrum)
    assert bulk.variance == pytest.approx(0.02**2, rel=0.01)
    assert bulk.edge == pytest.approx(spectrum.eigs[-1], rel=0.03)
    assert mp_softrank(spectrum) == pytest.approx(1, abs=0.03)


def test_noise_has_a_spike_once_in_a_hundred_matrices():
    found = sum(marchenko_pastur(esd(gauss(40, 60, seed=seed))).num_spikes > 0 for seed in range(400))
    assert binomtest(found, 400, 0.01, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("transpose", [False, True])
def test_planted_directions_are_counted_and_do_not_lift_the_edge(transpose):
    weight = spiked(60.0).T if transpose else spiked(60.0)
    bulk = marchenko_pastur(esd(weight))
    assert bulk.num_spikes == 3
    assert bulk.edge == pytest.approx(marchenko_pastur(esd(gauss(120, 200))).edge, rel=0.03)
    assert marchenko_pastur(esd(spiked(1.0))).num_spikes == 0  # below the transition nothing leaves the bulk


def test_scale_law():
    first, second = (marchenko_pastur(esd(spiked(60.0) * scale)) for scale in (1.0, 4.0))
    assert second.edge == pytest.approx(16 * first.edge, rel=1e-12)
    assert second.num_spikes == first.num_spikes


def test_the_random_spectrum_has_the_law_of_a_gaussian_matrix():
    """Eigenvalues of 60 drawn matrices against 60 tridiagonal draws, two-sample Kolmogorov-Smirnov."""
    drawn = np.concatenate([random_spectrum(12, 20, 240.0, seed=seed) for seed in range(60)])
    matrices = []
    for seed in range(60):
        eigs = np.linalg.eigvalsh((w := gauss(12, 20, seed=seed)) @ w.T)
        matrices.append(eigs * 240.0 / eigs.sum())
    assert kstest(drawn, np.concatenate(matrices)).pvalue > 0.01
    assert random_spectrum(12, 20, 240.0).sum() == pytest.approx(240.0)
    assert np.array_equal(random_spectrum(20, 12, 1.0, seed=3), random_spectrum(12, 20, 1.0, seed=3))


def test_the_distance_is_small_for_noise_and_large_for_structure():
    noise = rand_distance(esd(gauss(200, 300)))
    heavy = rand_distance(esd(np.random.default_rng(0).standard_cauchy((200, 300))))
    assert noise < 0.15
    assert heavy > 0.5
    assert 0 <= noise <= heavy <= 1


def test_the_distance_is_seeded_and_free_of_scale():
    spectrum, doubled = esd(spiked(60.0)), esd(spiked(60.0) * 2)
    assert rand_distance(spectrum) == rand_distance(spectrum)
    assert rand_distance(spectrum, seed=1) != rand_distance(spectrum)
    assert rand_distance(doubled) == pytest.approx(rand_distance(spectrum), abs=0.03)


def test_empty_and_tiny_spectra():
    empty = esd(np.zeros((5, 5)))
    assert marchenko_pastur(empty).num_spikes == 0
    assert mp_softrank(empty) is None
    assert rand_distance(empty) is None
    single = esd(np.ones((1, 1)))
    assert marchenko_pastur(single).num_spikes == 0
    assert 0 <= rand_distance(single) <= 1
    assert rand_distance(esd(gauss(30, 4) @ gauss(4, 30))) > 0.5
