"""From a spectrum to its power-law exponent. One file an estimator; ``FITS`` maps each name to its function.

Every function takes the kept eigenvalues (1-D, float64, any order, natural units) and returns a PowerLawFit. What has
no exponent comes back with a status and a reason, never as NaN, infinity or zero.
"""

from __future__ import annotations

from collections.abc import Callable

from alphalloc.fits.hill import hill_fraction, xmin_median
from alphalloc.fits.ks import ks
from alphalloc.fits.peak import xmin_peak
from alphalloc.fits.peak_reference import xmin_peak_reference
from alphalloc.fits.peak_robust import xmin_peak_robust
from alphalloc.fits.power_law import STATUSES, PowerLawFit

FITS: dict[str, Callable[..., PowerLawFit]] = {
    "xmin_peak_robust": xmin_peak_robust,
    "xmin_peak": xmin_peak,
    "xmin_peak_reference": xmin_peak_reference,
    "ks": ks,
    "xmin_median": xmin_median,
    "hill_fraction": hill_fraction,
}

__all__ = [
    "FITS",
    "STATUSES",
    "PowerLawFit",
    "hill_fraction",
    "ks",
    "xmin_median",
    "xmin_peak",
    "xmin_peak_reference",
    "xmin_peak_robust",
]
