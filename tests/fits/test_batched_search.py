"""The batched search against every tail evaluated in a loop."""

from __future__ import annotations

import naive_fits
import numpy as np
import torch

from alphalloc.fits.batched_search import best_tails, tail_exponents


def test_the_smallest_distance_of_every_row_is_found():
    rng = np.random.default_rng(3)
    for _ in range(12):
        eigs = np.sort(np.exp(rng.standard_normal((4, 60))), axis=1)
        logs = torch.from_numpy(np.log(eigs / eigs[:, -1:]))
        mask = torch.from_numpy(rng.random((4, 60)) < rng.choice([0.1, 1.0]))
        mask[:, -1] = False
        mask[3] = False
        index, found = best_tails(logs, mask)
        for row in range(3):
            candidates = np.flatnonzero(mask[row].numpy())
            assert bool(found[row]) == (len(candidates) > 0)
            if len(candidates):
                distances = [naive_fits.tail(eigs[row], i)[1] for i in candidates]
                assert int(index[row]) == candidates[int(np.argmin(distances))]
        assert not found[3]


def test_a_tolerance_prefers_the_first_of_almost_equal_tails():
    eigs = np.sort(np.exp(np.random.default_rng(0).standard_normal(80)))
    logs = torch.from_numpy(np.log(eigs / eigs[-1]))[None]
    mask = torch.ones(1, 80, dtype=torch.bool)
    mask[:, -1] = False
    distances = [naive_fits.tail(eigs, i)[1] for i in range(79)]
    for tolerance in (0.0, 0.01, 0.1, 1.0):
        expected = next(i for i in range(79) if distances[i] <= min(distances) + tolerance)
        assert int(best_tails(logs, mask, tolerance=tolerance)[0]) == expected


def test_exponents_of_values_that_take_no_part_are_one():
    logs = torch.tensor([[-torch.inf, -2.0, -1.0, 0.0]], dtype=torch.float64)
    found = tail_exponents(logs)[0].tolist()
    assert found == [1.0, 1 + 3 / 3.0, 1 + 2 / 1.0, float("inf")]
