"""The exact search for the tail with the smallest KS distance, pruned by a cheap lower bound.

D_i costs O(n) for each of up to N candidates. Looking at a few tail positions of every candidate bounds D_i from
below; candidates are then evaluated in the order of their bounds until the bound exceeds the best D found. The answer
is that of the full search.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alphalloc.fits.power_law import Float64Array, Spectrum, tail_distance, tail_exponents

PROBES = 48  # tail positions looked at per candidate: chosen by timing, any number gives the same answer


def best_tail(spectrum: Spectrum, candidates: NDArray[np.intp], *, tolerance: float = 0.0) -> int | None:
    """Return the candidate index whose tail has the smallest D; among those within ``tolerance`` of it the smallest.

    Candidates whose exponent is not a finite number above 1 are passed over; None when none is left.
    """
    alphas = tail_exponents(spectrum)
    candidates = candidates[np.isfinite(alphas[candidates]) & (alphas[candidates] > 1.0)]
    if len(candidates) == 0:
        return None
    bounds = _lower_bounds(spectrum.logs, alphas, candidates)
    best = np.inf
    distances: dict[int, float] = {}
    for position in np.argsort(bounds, kind="stable"):
        if bounds[position] > best + tolerance:
            break
        index = int(candidates[position])
        logs = spectrum.logs
        distances[index] = tail_distance(logs[index:], float(logs[index]), float(alphas[index]))
        best = min(best, distances[index])
    return min(index for index, distance in distances.items() if distance <= best + tolerance)


def _lower_bounds(logs: Float64Array, alphas: Float64Array, candidates: NDArray[np.intp]) -> Float64Array:
    counts = len(logs) - candidates
    steps = (counts[:, None] - 1) * np.linspace(0.0, 1.0, PROBES)[None, :]
    offsets = steps.astype(np.intp)
    heights = logs[candidates[:, None] + offsets] - logs[candidates][:, None]
    fitted = 1.0 - np.exp((1.0 - alphas[candidates])[:, None] * heights)
    # One part in 1e14 covers the last-bit difference to the full evaluation.
    gaps: Float64Array = np.abs(fitted - offsets / counts[:, None])
    bounds: Float64Array = gaps.max(axis=1) - 1e-14
    return bounds
