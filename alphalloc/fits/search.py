"""The exact search for the tail with the smallest KS distance, pruned by cheap lower bounds.

D_i, the maximum of a deviation over the positions of tail i, costs O(n) for each of up to N candidates; the deviation
at any one position bounds it from below. A few fixed positions order the candidates. The most promising is evaluated
in full, and where its own deviation is largest and smallest becomes a witness: those positions are looked at in every
other candidate too, because neighbouring tails deviate at the same eigenvalues. Candidates whose bound exceeds the best
D found are dropped; three to six full evaluations usually remain. The answer is that of the full search.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alphalloc.fits.power_law import Float64Array, Spectrum, tail_deviations, tail_exponents

PROBES = 4  # tail positions looked at first: chosen by timing, any number gives the same answer
MARGIN = 1e-14  # covers the last-bit difference between a bound and the full evaluation


def best_tail(spectrum: Spectrum, candidates: NDArray[np.intp], *, tolerance: float = 0.0) -> int | None:
    """Return the candidate index whose tail has the smallest D; among those within ``tolerance`` of it the smallest.

    ``candidates`` ascend. Those whose exponent is not a finite number above 1 are passed over; None when none is left.
    """
    live = _Live(spectrum, candidates)
    best = np.inf
    distances: dict[int, float] = {}
    for index, distance in live.by_bound():
        distances[index] = distance
        best = min(best, distance)
        live.drop_above(best + tolerance)
    return min((index for index, distance in distances.items() if distance <= best + tolerance), default=None)


def some_tail_below(spectrum: Spectrum, candidates: NDArray[np.intp], limit: float) -> bool:
    """Return whether a candidate's D lies below ``limit``: ``best_tail`` with an end as soon as the answer is known."""
    live = _Live(spectrum, candidates)
    below = float(np.nextafter(limit, -np.inf))
    live.drop_above(below)
    for _, distance in live.by_bound():
        if distance < limit:
            return True
        live.drop_above(below)
    return False


class _Live:
    """The candidates not yet evaluated or dropped, each with a lower bound of its D."""

    def __init__(self, spectrum: Spectrum, candidates: NDArray[np.intp]) -> None:
        alphas = tail_exponents(spectrum)[candidates]
        usable = np.isfinite(alphas) & (alphas > 1.0)
        self.logs = spectrum.logs
        self.indices = candidates[usable]
        self.alphas = alphas[usable]
        self.starts = self.logs[self.indices]
        self.counts = len(self.logs) - self.indices
        self.bounds = np.zeros(len(self.indices))
        for probe in range(1, PROBES + 1):
            offsets = (self.counts - 1) * probe // PROBES
            self._raise_bounds(slice(None), self.logs[self.indices + offsets], offsets)

    def by_bound(self) -> Iterator[tuple[int, float]]:
        """Yield (index, D), the candidate with the lowest bound next, until ``drop_above`` has left none."""
        while len(self.indices):
            first = int(self.bounds.argmin())
            index, alpha = int(self.indices[first]), float(self.alphas[first])
            tail = self.logs[index:]
            deviations = tail_deviations(tail, float(tail[0]), alpha)
            self.bounds[first] = np.inf  # leaves with the next drop_above
            largest, smallest = int(deviations.argmax()), int(deviations.argmin())
            self._look_at(index + largest)
            self._look_at(index + smallest)
            yield index, float(max(deviations[largest], -deviations[smallest]))

    def drop_above(self, limit: float) -> None:
        """Forget the candidates whose bound exceeds ``limit``."""
        kept = self.bounds <= limit
        if not kept.all():
            self.indices, self.alphas = self.indices[kept], self.alphas[kept]
            self.starts, self.counts, self.bounds = self.starts[kept], self.counts[kept], self.bounds[kept]

    def _look_at(self, position: int) -> None:
        """Raise the bounds of all tails that hold ``position`` by their deviation there."""
        holding = slice(0, int(np.searchsorted(self.indices, position, side="right")))
        self._raise_bounds(holding, self.logs[position], position - self.indices[holding])

    def _raise_bounds(self, which: slice, logs: Float64Array, offsets: NDArray[np.intp]) -> None:
        fitted = 1.0 - np.exp((1.0 - self.alphas[which]) * (logs - self.starts[which]))
        gaps = np.abs(fitted - offsets / self.counts[which]) - MARGIN
        np.maximum(self.bounds[which], gaps, out=self.bounds[which])
