"""``xmin_peak``: AlphaLoRA's estimator (arXiv 2410.10054) with the bounds it meant."""

from __future__ import annotations

import numpy as np

from alphalloc.fits.power_law import Float64Array, PowerLawFit, Spectrum, degenerate, fit_at, prepare, tail_exponents
from alphalloc.fits.search import best_tail

BINS = 100
LOWER, UPPER = 0.95, 1.5  # the window around the peak, in units of the peak (arXiv 2410.10054, released settings)
SLACK = 1e-9  # an eigenvalue exactly on a bound belongs to the window whatever the last bit says
TIE = 1e-12


def xmin_peak(eigs: Float64Array, *, bins: int = BINS, window: tuple[float, float] = (LOWER, UPPER)) -> PowerLawFit:
    """Return the fit with the smallest D among the tails that start near the histogram peak.

    The peak is the left edge of the fullest of 100 equal bins of log10 λ; candidates satisfy
    0.95·peak <= λ_i <= 1.5·peak; of distances within 1e-12 the lower index wins. ``peak`` is kept in the fit. ``bins``
    and ``window`` are there to ask how much the answer hangs on them.
    """
    spectrum = prepare("xmin_peak", eigs)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    peak = histogram_peak(spectrum, bins)
    values = spectrum.eigs[:-1]
    inside = (values >= window[0] * peak * (1 - SLACK)) & (values <= window[1] * peak * (1 + SLACK))
    # A tail whose mean log ratio is below 1e-9 is one repeated value.
    steep = tail_exponents(spectrum)[:-1] < 1.0 + 1e9
    index = best_tail(spectrum, np.flatnonzero(inside & steep), tolerance=TIE)
    if index is None:
        return degenerate(
            "xmin_peak", "no_candidate", f"no tail starts from {window[0]} to {window[1]} times the peak {peak:.4g}"
        )
    return fit_at("xmin_peak", spectrum, index, peak=peak)


def histogram_peak(spectrum: Spectrum, num_bins: int = BINS) -> float:
    """Return the left edge, as an eigenvalue, of the first fullest of ``num_bins`` equal bins of log10 λ."""
    x = spectrum.logs / np.log(10.0)
    lowest = float(x[0])
    bins = np.minimum(np.floor((x - lowest) / -lowest * num_bins + 1e-6), num_bins - 1).astype(np.intp)
    fullest = int(np.bincount(bins, minlength=num_bins).argmax())
    return float(spectrum.largest * 10.0 ** (lowest - lowest * fullest / num_bins))
