"""A spectrum as a histogram of log10 λ: what a report draws, so that it never needs the weights again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alphalloc.spectra.esd import ESD

BINS = 64  # chosen here: a power of two, so neighbours can be merged; 500 bytes of JSON a matrix
_FLAT = 0.01  # half the range, in decades, that a spectrum of one value is given


@dataclass(frozen=True)
class LogHistogram:
    """``counts[i]`` eigenvalues in the i-th of equal bins of log10 λ from ``log10_low`` to ``log10_high``."""

    log10_low: float
    log10_high: float
    counts: tuple[int, ...]


def log_histogram(spectrum: ESD, bins: int = BINS) -> LogHistogram | None:
    """Return the histogram of log10 λ over the range of the eigenvalues; None for a spectrum without any.

    Numerically zero eigenvalues are not among ``spectrum.eigs`` and have no logarithm. The counts add up to
    ``len(spectrum.eigs)``. Raises ValueError for fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"expected at least one bin, found {bins}")
    if len(spectrum.eigs) == 0:
        return None
    logs = np.log10(spectrum.eigs)
    low, high = float(logs[0]), float(logs[-1])
    if high - low < 2 * _FLAT:  # one value, or nearly
        low, high = low - _FLAT, high + _FLAT
    places = np.minimum(((logs - low) * (bins / (high - low))).astype(np.intp), bins - 1)
    counts = np.bincount(places, minlength=bins)
    return LogHistogram(low, high, tuple(int(count) for count in counts))
