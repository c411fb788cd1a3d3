"""``ks``: xmin at the smallest KS distance over all eigenvalues (Clauset et al., arXiv 0706.1062; WeightWatcher)."""

from __future__ import annotations

import numpy as np

from alphalloc.fits.power_law import Float64Array, PowerLawFit, degenerate, fit_at, prepare
from alphalloc.fits.search import best_tail


def ks(eigs: Float64Array) -> PowerLawFit:
    """Return the fit with the smallest D over the tails i = 0 … N-2 whose alpha exceeds 1; of equal D the first."""
    spectrum = prepare("ks", eigs)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    index = best_tail(spectrum, np.arange(len(spectrum.logs) - 1))
    if index is None:
        return degenerate("ks", "no_candidate", "no tail has a finite exponent above 1")
    return fit_at("ks", spectrum, index)
