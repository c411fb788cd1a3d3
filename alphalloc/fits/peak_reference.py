"""``xmin_peak_reference``: AlphaLoRA's estimator as its authors released it, slip included (arXiv 2410.10054)."""

from __future__ import annotations

import math

import numpy as np

from alphalloc.fits.peak import BINS, LOWER, UPPER, histogram_peak
from alphalloc.fits.power_law import Float64Array, PowerLawFit, degenerate, fit_at, prepare
from alphalloc.fits.search import best_tail


def xmin_peak_reference(
    eigs: Float64Array, *, bins: int = BINS, window: tuple[float, float] = (LOWER, UPPER)
) -> PowerLawFit:
    """Return the fit of the released code: like ``xmin_peak``, but its lower bound is log10(0.95·peak).

    The released code compares that logarithm with eigenvalues in natural units. For a peak below 1.05 it is negative,
    so every eigenvalue up to 1.5·peak is a candidate; and the answer can depend on the scale of W. Kept to reproduce
    published schedules; in exact arithmetic of float64 where the released code uses float32.
    """
    spectrum = prepare("xmin_peak_reference", eigs)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    peak = histogram_peak(spectrum, bins)
    values = spectrum.eigs[:-1]
    candidates = np.flatnonzero((values >= math.log10(window[0] * peak)) & (values <= window[1] * peak))
    index = best_tail(spectrum, candidates)
    if index is None:
        reason = f"no tail starts below {window[1]} times the peak {peak:.4g}; the released code would return 0 here"
        return degenerate("xmin_peak_reference", "no_candidate", reason)
    return fit_at("xmin_peak_reference", spectrum, index, peak=peak)
