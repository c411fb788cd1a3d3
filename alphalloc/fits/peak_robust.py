"""``xmin_peak_robust``, the default: xmin at the mode of a smooth density of the log spectrum.

The idea is that of xmin at the peak of the ESD (arXiv 2410.10054), without the jumps of a histogram: 0.1 % noise on the
singular values moves alpha by at most 3 %.
"""

from __future__ import annotations

import numpy as np

from alphalloc.fits.power_law import (
    MAX_ALPHA,
    Float64Array,
    PowerLawFit,
    completed,
    degenerate,
    prepare,
    tail_distance,
)

NAME = "xmin_peak_robust"
LOW_QUANTILE, HIGH_QUANTILE = 0.05, 0.995  # chosen here: trims the noise floor and the few outliers
BANDWIDTH = 1.8  # chosen here: twice Silverman's 0.9, so that one mode is left
GRID = 512
MIN_EIGS = 16


def xmin_peak_robust(eigs: Float64Array) -> PowerLawFit:
    """Return the fit whose xmin is the mode of a Gaussian kernel density of log10 λ; the tail is every λ >= xmin.

    With l = log10 λ and x the l between its 0.05 and 0.995 quantiles: bandwidth
    h = 1.8·min(sd(x), IQR(x)/1.349)·len(x)^-0.2; the density is taken at 512 equal points, its first maximum refined by
    the parabola through three points; alpha = 1 + n / Σ ln(λ/xmin). xmin need not be an eigenvalue.
    """
    spectrum = prepare(NAME, eigs, min_eigs=MIN_EIGS)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    x = spectrum.logs / np.log(10.0)
    low, high = np.quantile(x, [LOW_QUANTILE, HIGH_QUANTILE])
    x = x[(x >= low) & (x <= high)]
    bandwidth = _bandwidth(x)
    if not bandwidth > 0:
        return degenerate(NAME, "flat_spectrum", "the middle of the spectrum is a single value")
    log_xmin = _mode(x, float(low), float(high), bandwidth) * np.log(10.0)
    tail = spectrum.logs[spectrum.logs >= log_xmin]
    height = float((tail - log_xmin).sum())
    if not height * MAX_ALPHA > len(tail):
        return degenerate(NAME, "flat_spectrum", f"the {len(tail)} eigenvalues from the mode up are one value")
    alpha = 1.0 + len(tail) / height
    xmin = float(spectrum.largest * np.exp(log_xmin))
    return completed(NAME, alpha, xmin, tail_distance(tail, float(log_xmin), alpha), len(tail), peak=xmin)


def _bandwidth(x: Float64Array) -> float:
    lower, upper = np.quantile(x, [0.25, 0.75])
    return float(BANDWIDTH * min(x.std(ddof=1), (upper - lower) / 1.349) * len(x) ** -0.2)


def _mode(x: Float64Array, low: float, high: float, bandwidth: float) -> float:
    grid = np.linspace(low, high, GRID)
    scaled = (grid[:, None] - x[None, :]) / bandwidth
    density = np.exp(-0.5 * scaled * scaled).sum(axis=1)
    top = int(density.argmax())
    if not 0 < top < GRID - 1:
        return float(grid[top])
    left, centre, right = density[top - 1 : top + 2]
    curvature = left - 2 * centre + right
    shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    return float(grid[top] + shift * (grid[1] - grid[0]))
