"""``xmin_peak_robust``, the default: xmin at the mode of a smooth density of the log spectrum.

The idea is that of xmin at the peak of the ESD (arXiv 2410.10054), without the jumps of a histogram: 0.1 % noise on the
singular values moves alpha by at most 3 %.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
REFINED = 2  # cells of the coarse density between two grid points; any number gives the same answer
MIN_EIGS = 16


def xmin_peak_robust(
    eigs: Float64Array,
    *,
    bandwidth: float = BANDWIDTH,
    quantiles: tuple[float, float] = (LOW_QUANTILE, HIGH_QUANTILE),
) -> PowerLawFit:
    """Return the fit whose xmin is the mode of a Gaussian kernel density of log10 λ; the tail is every λ >= xmin.

    With l = log10 λ and x the l between its 0.05 and 0.995 quantiles: bandwidth
    h = 1.8·min(sd(x), IQR(x)/1.349)·len(x)^-0.2; the density is taken at 512 equal points, its first maximum refined by
    the parabola through three points; alpha = 1 + n / Σ ln(λ/xmin). xmin need not be an eigenvalue. ``bandwidth`` (the
    1.8) and ``quantiles`` are there to ask how much the answer hangs on them.
    """
    spectrum = prepare(NAME, eigs, min_eigs=MIN_EIGS)
    if isinstance(spectrum, PowerLawFit):
        return spectrum
    x = spectrum.logs / np.log(10.0)
    low, high = (_quantile(x, share) for share in quantiles)
    x = x[np.searchsorted(x, low) : np.searchsorted(x, high, side="right")]
    width = _bandwidth(x, bandwidth)
    if not width > 0:
        return degenerate(NAME, "flat_spectrum", "the middle of the spectrum is a single value")
    log_xmin = _mode(x, low, high, width) * np.log(10.0)
    tail = spectrum.logs[np.searchsorted(spectrum.logs, log_xmin) :]
    height = float((tail - log_xmin).sum())
    if not height * MAX_ALPHA > len(tail):
        return degenerate(NAME, "flat_spectrum", f"the {len(tail)} eigenvalues from the mode up are one value")
    alpha = 1.0 + len(tail) / height
    xmin = float(spectrum.largest * np.exp(log_xmin))
    return completed(NAME, alpha, xmin, tail_distance(tail, float(log_xmin), alpha), len(tail), peak=xmin)


def _quantile(ascending: Float64Array, share: float) -> float:
    """Return the linearly interpolated quantile, to the bit that of numpy, which sorts first and takes its time."""
    position = share * (len(ascending) - 1)
    index = min(int(position), len(ascending) - 2)
    lower, upper = float(ascending[index]), float(ascending[index + 1])
    weight = position - index
    return upper - (upper - lower) * (1.0 - weight) if weight >= 0.5 else lower + (upper - lower) * weight


def _bandwidth(x: Float64Array, factor: float) -> float:
    if len(x) < 2:
        return 0.0
    spread = (_quantile(x, 0.75) - _quantile(x, 0.25)) / 1.349
    return float(factor * min(x.std(ddof=1), spread) * len(x) ** -0.2)


def _mode(x: Float64Array, low: float, high: float, bandwidth: float) -> float:
    grid = np.linspace(low, high, GRID)
    hopeful = _hopeful_points(x, low, high, bandwidth)
    top = int(hopeful[_density(x, grid[hopeful], bandwidth).argmax()])
    if not 0 < top < GRID - 1:
        return float(grid[top])
    left, centre, right = _density(x, grid[top - 1 : top + 2], bandwidth)
    curvature = left - 2 * centre + right
    shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    return float(grid[top] + shift * (grid[1] - grid[0]))


def _density(x: Float64Array, points: Float64Array, bandwidth: float) -> Float64Array:
    """Return the kernel density, not normalised, at ``points``."""
    scaled = (points[:, None] - x[None, :]) / bandwidth
    density: Float64Array = np.exp(-0.5 * scaled * scaled).sum(axis=1)
    return density


def _hopeful_points(x: Float64Array, low: float, high: float, bandwidth: float) -> NDArray[np.intp]:
    """Return, ascending, the grid points that can hold the maximum of the density: usually one or two of the 512.

    The density of x spread linearly over the nodes of a grid ``REFINED`` times finer (one convolution) differs from
    the exact one by at most len(x)·(step/h)²/8, since the kernel's second derivative is at most 1/h²; points lower
    than the highest by more than twice that are out.
    """
    cells = (GRID - 1) * REFINED
    step = (high - low) / cells
    positions = (x - low) / step
    nodes = np.minimum(positions.astype(np.intp), cells - 1)
    weights = np.clip(positions - nodes, 0.0, 1.0)
    spread = np.bincount(nodes, 1.0 - weights, cells + 2)
    spread[1:] += np.bincount(nodes, weights, cells + 1)
    length = 2 * cells + 4  # no wrapping for lags up to ``cells``
    lags = np.minimum(np.arange(length), length - np.arange(length))
    kernel = np.exp(-0.5 * (lags * (step / bandwidth)) ** 2)
    density = np.fft.irfft(np.fft.rfft(spread, length) * np.fft.rfft(kernel), length)[: cells + 1 : REFINED]
    error = len(x) * ((step / bandwidth) ** 2 / 8 + 1e-10)  # 1e-10: rounding of the transform, with room
    return np.flatnonzero(density >= density.max() - 2 * error)
