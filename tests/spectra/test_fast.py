"""float32 eigenvalues with the smallest corrected: what it keeps, and what it hands back to float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alphalloc.spectra.batched import add_gram, batch_spectra, symmetric_eigenvalues
from alphalloc.spectra.fast import FAST_TOLERANCE, fast_eigenvalues


def grams_of(*weights):
    side = min(weights[0].shape)
    grams = torch.zeros(len(weights), side, side, dtype=torch.float64)
    norms = torch.stack([add_gram(grams[i], torch.from_numpy(weight)) for i, weight in enumerate(weights)])
    return grams, norms


class Counting:
    def __init__(self):
        self.calls = []

    def __call__(self, grams):
        self.calls.append((len(grams), grams.dtype))
        return symmetric_eigenvalues(grams)


def test_the_smallest_eigenvalue_is_that_of_float64():
    rng = np.random.default_rng(0)
    grams, norms = grams_of(*(rng.standard_normal((120, 120)) for _ in range(3)))
    exact, solve = symmetric_eigenvalues(grams), Counting()
    found = batch_spectra(grams, norms, lambda g: fast_eigenvalues(g, solve=solve), tolerance=FAST_TOLERANCE).values
    assert solve.calls == [(3, torch.float32)]
    assert found[:, 0].tolist() == pytest.approx(exact[:, 0].tolist(), rel=1e-6)
    assert ((found - exact).abs() <= 120 * 6e-8 * exact[:, -1:]).all()
    assert (found >= found[:, :1]).all()
    rounded = torch.linalg.eigvalsh(grams.float()).double()
    assert (rounded[:, 0] / exact[:, 0] - 1).abs().max() > 1e-4  # what the correction is for


def test_what_float32_hides_is_solved_in_float64():
    rng = np.random.default_rng(1)
    sound = rng.standard_normal((60, 90))
    singular = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 90))
    hidden = 1e-4 * sound + singular  # the bulk lies below float32 rounding of λmax
    grams, _ = grams_of(sound, singular, hidden, np.zeros((60, 90)))
    solve = Counting()
    found = fast_eigenvalues(grams.clone(), solve=solve)
    assert solve.calls == [(4, torch.float32), (3, torch.float64)]
    assert torch.equal(found[1:], symmetric_eigenvalues(grams[1:]))


def test_a_scale_that_float32_cannot_hold_does_no_harm():
    weight = np.random.default_rng(2).standard_normal((40, 60))
    small, _ = grams_of(weight * 1e-30)
    usual, _ = grams_of(weight)
    scaled = fast_eigenvalues(small, solve=symmetric_eigenvalues) * 1e60
    assert scaled[0].tolist() == pytest.approx(
        fast_eigenvalues(usual, solve=symmetric_eigenvalues)[0].tolist(), rel=1e-5
    )
