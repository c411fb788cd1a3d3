"""Hill estimators at a fixed rank: ``xmin_median`` (TempBalance, arXiv 2312.00359) and ``hill_fraction``."""

from __future__ import annotations

import math

from alphalloc.fits.power_law import Float64Array, PowerLawFit, fit_at, prepare


def xmin_median(eigs: Float64Array) -> PowerLawFit:
    """Return the fit whose tail is the upper half, i = N // 2: TempBalance's default."""
    spectrum = prepare("xmin_median", eigs)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    return fit_at("xmin_median", spectrum, len(spectrum.logs) // 2)


def hill_fraction(eigs: Float64Array, fraction: float = 0.25) -> PowerLawFit:
    """Return the fit whose tail is the largest ``fraction`` of the eigenvalues, at least two: i = N - max(2, ⌈f·N⌉).

    ``fraction`` in (0, 1]; default 0.25, chosen here. hill_fraction(0.5) equals xmin_median. Raises ValueError outside.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"expected a fraction in (0, 1], found {fraction!r}")
    spectrum = prepare("hill_fraction", eigs)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    total = len(spectrum.logs)
    # 1e-9 keeps f·N = 12.000000000000002 from becoming 13.
    return fit_at("hill_fraction", spectrum, total - max(2, math.ceil(fraction * total - 1e-9)))
