"""The six estimators on a batch of spectra at once, in torch on any device; each gives what its own file gives.

Rows are eigenvalues in ascending order whose first ``num_zero`` are numerically zero and take no part. Formulas, bounds
and tie rules are those of the estimators' own files; sums run in another order, so numbers agree to about 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alphalloc.fits import FITS, PowerLawFit
from alphalloc.fits.batched_search import best_tails, deviations, tail_exponents
from alphalloc.fits.peak import BINS, LOWER, SLACK, TIE, UPPER
from alphalloc.fits.peak_robust import BANDWIDTH, GRID, HIGH_QUANTILE, LOW_QUANTILE, REFINED
from alphalloc.fits.peak_robust import MIN_EIGS as ROBUST_MIN_EIGS
from alphalloc.fits.power_law import FLAT_LOG_RANGE, MAX_ALPHA, MIN_EIGS, completed

LN10 = math.log(10.0)
DENSITY_BYTES = 64 * 2**20  # of one piece of a batch's kernel densities; chosen here


@dataclass(frozen=True)
class BatchSpectrum:
    """``eigs`` [B, N] ascending; ``logs`` = ln(λ/λmax), -inf where not ``valid``; ``first`` [B] = number of zeros."""

    eigs: Tensor
    logs: Tensor
    valid: Tensor
    first: Tensor

    @property
    def counts(self) -> Tensor:
        """Kept eigenvalues of every row."""
        return self.eigs.shape[1] - self.first

    @property
    def largest(self) -> Tensor:
        """λmax of every row."""
        return self.eigs[:, -1]


@dataclass(frozen=True)
class BatchFit:
    """One number a row: where ``good`` is False the estimator has no exponent, and the other numbers mean nothing."""

    good: Tensor
    alpha: Tensor
    xmin: Tensor
    distance: Tensor
    num_tail: Tensor
    peak: Tensor | None = None


def fit_batch(estimator: str, eigs: Tensor, num_zero: Tensor, *, fraction: float = 0.25) -> list[PowerLawFit]:
    """Return the fit of every row of ``eigs`` [B, N] (float64, ascending) without its first ``num_zero`` [B] values.

    ``estimator``: a name of ``FITS``; ``fraction``: the tail share of ``hill_fraction``. Everything is computed on the
    device of ``eigs`` and fetched at once. A row without an exponent is given to the estimator's own file, which says
    why. Raises ValueError for a fraction outside (0, 1], KeyError for an unknown estimator.
    """
    if estimator == "hill_fraction" and not 0.0 < fraction <= 1.0:
        raise ValueError(f"expected a fraction in (0, 1], found {fraction!r}")
    spectrum = prepare(eigs, num_zero)
    fit = _ESTIMATORS[estimator](spectrum, fraction)
    least = ROBUST_MIN_EIGS if estimator == "xmin_peak_robust" else MIN_EIGS
    smallest = spectrum.logs.gather(1, spectrum.first.clamp_max(eigs.shape[1] - 1)[:, None])[:, 0]
    good = fit.good & (spectrum.counts >= least) & (-smallest >= FLAT_LOG_RANGE) & torch.isfinite(smallest)
    peak = fit.peak if fit.peak is not None else torch.zeros_like(fit.alpha)
    rows = torch.stack([good.double(), fit.alpha, fit.xmin, fit.distance, fit.num_tail.double(), peak]).cpu()
    found: list[PowerLawFit] = []
    for row, (usable, alpha, xmin, distance, num_tail, top) in enumerate(rows.T.tolist()):
        if usable:
            where = top if fit.peak is not None else None
            found.append(completed(estimator, alpha, xmin, distance, int(num_tail), peak=where))
        else:
            found.append(_without_exponent(estimator, eigs[row, int(num_zero[row]) :], fraction))
    return found


def prepare(eigs: Tensor, num_zero: Tensor) -> BatchSpectrum:
    """Return the batch ready for fitting: logarithms relative to λmax, so that a power-of-two scale changes no bit."""
    first = num_zero.to(torch.int64)
    valid = torch.arange(eigs.shape[1], device=eigs.device) >= first[:, None]
    logs = torch.where(valid, torch.log(eigs / eigs[:, -1:]), -torch.inf)
    return BatchSpectrum(eigs, logs, valid, first)


def _without_exponent(estimator: str, kept: Tensor, fraction: float) -> PowerLawFit:
    values = kept.cpu().numpy()
    return FITS[estimator](values, fraction) if estimator == "hill_fraction" else FITS[estimator](values)


def _at(spectrum: BatchSpectrum, index: Tensor, usable: Tensor, peak: Tensor | None = None) -> BatchFit:
    """The fits whose tails begin at ``index`` [B], an absolute position in each row."""
    index = index.clamp(0, spectrum.eigs.shape[1] - 1)
    column = index[:, None]
    alpha = tail_exponents(spectrum.logs).gather(1, column)[:, 0]
    start = spectrum.logs.gather(1, column)[:, 0]
    distance = _distance(spectrum.logs, index, start, alpha)
    count = spectrum.eigs.shape[1] - index
    good = usable & (alpha <= MAX_ALPHA)
    return BatchFit(good, alpha, spectrum.eigs.gather(1, column)[:, 0], distance, count, peak)


def _distance(logs: Tensor, index: Tensor, start: Tensor, alpha: Tensor) -> Tensor:
    found: Tensor = deviations(logs, index[:, None], start[:, None], alpha[:, None]).abs().amax(dim=2)[:, 0]
    return found


def _hill_fraction(spectrum: BatchSpectrum, fraction: float) -> BatchFit:
    tail = torch.ceil(fraction * spectrum.counts.double() - 1e-9).to(torch.int64).clamp_min(2)
    return _at(spectrum, spectrum.eigs.shape[1] - tail, spectrum.counts >= 2)


def _xmin_median(spectrum: BatchSpectrum, fraction: float) -> BatchFit:
    return _at(spectrum, spectrum.first + spectrum.counts // 2, spectrum.counts >= 2)


def _ks(spectrum: BatchSpectrum, fraction: float) -> BatchFit:
    candidates = spectrum.valid.clone()
    candidates[:, -1] = False
    index, found = best_tails(spectrum.logs, candidates)
    return _at(spectrum, index, found)


def _xmin_peak(spectrum: BatchSpectrum, fraction: float) -> BatchFit:
    peak = _histogram_peak(spectrum)
    low, high = LOWER * peak * (1 - SLACK), UPPER * peak * (1 + SLACK)
    inside = spectrum.valid & (spectrum.eigs >= low[:, None]) & (spectrum.eigs <= high[:, None])
    inside &= tail_exponents(spectrum.logs) < 1.0 + 1e9
    inside[:, -1] = False
    index, found = best_tails(spectrum.logs, inside, tolerance=TIE)
    return _at(spectrum, index, found, peak)


def _xmin_peak_reference(spectrum: BatchSpectrum, fraction: float) -> BatchFit:
    peak = _histogram_peak(spectrum)
    low, high = torch.log10(LOWER * peak), UPPER * peak
    inside = spectrum.valid & (spectrum.eigs >= low[:, None]) & (spectrum.eigs <= high[:, None])
    inside[:, -1] = False
    index, found = best_tails(spectrum.logs, inside)
    return _at(spectrum, index, found, peak)


def _histogram_peak(spectrum: BatchSpectrum) -> Tensor:
    x = spectrum.logs / LN10
    lowest = x.gather(1, spectrum.first.clamp_max(x.shape[1] - 1)[:, None])
    bins = torch.floor((x - lowest) / -lowest * BINS + 1e-6)
    bins = torch.where(spectrum.valid, bins, 0.0).nan_to_num(0.0, 0.0, 0.0).clamp(0, BINS - 1).to(torch.int64)
    counts = torch.zeros(len(x), BINS, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, bins, spectrum.valid.to(torch.int64))
    edge = lowest[:, 0] - lowest[:, 0] * counts.argmax(dim=1) / BINS
    peak: Tensor = spectrum.largest * 10.0**edge
    return peak


def _xmin_peak_robust(spectrum: BatchSpectrum, fraction: float) -> BatchFit:
    x, last = spectrum.logs / LN10, torch.full_like(spectrum.first, spectrum.eigs.shape[1])
    low, high = (_quantile(x, spectrum.first, last, share) for share in (LOW_QUANTILE, HIGH_QUANTILE))
    start, stop = (x < low[:, None]).sum(dim=1), (x <= high[:, None]).sum(dim=1)
    width = _bandwidth(x, start, stop)
    log_xmin = _mode(x, start, stop, low, high, width) * LN10
    index = (spectrum.logs < log_xmin[:, None]).sum(dim=1)
    count = spectrum.eigs.shape[1] - index
    heights = torch.where(spectrum.logs >= log_xmin[:, None], spectrum.logs - log_xmin[:, None], 0.0).sum(dim=1)
    alpha = 1.0 + count / heights
    xmin = spectrum.largest * torch.exp(log_xmin)
    distance = _distance(spectrum.logs, index, log_xmin, alpha)
    return BatchFit((width > 0) & (heights * MAX_ALPHA > count), alpha, xmin, distance, count, xmin)


def _quantile(x: Tensor, start: Tensor, stop: Tensor, share: float) -> Tensor:
    """The linearly interpolated quantile of x[start:stop] of every row, rounded as in ``peak_robust``."""
    position = share * (stop - start - 1).double()
    index = torch.minimum(position.to(torch.int64), stop - start - 2).clamp_min(0)
    at = (start + index)[:, None].clamp(0, x.shape[1] - 1)
    lower, upper = x.gather(1, at)[:, 0], x.gather(1, (at + 1).clamp_max(x.shape[1] - 1))[:, 0]
    weight = position - index
    from_above = upper - (upper - lower) * (1.0 - weight)
    return torch.where(weight >= 0.5, from_above, lower + (upper - lower) * weight)


def _bandwidth(x: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """1.8·min(sd, IQR/1.349)·n^-0.2 over x[start:stop] of every row; 0 for fewer than two values."""
    inside, counts = _between(x, start, stop), (stop - start).double()
    mean = torch.where(inside, x, 0.0).sum(dim=1) / counts
    squares = torch.where(inside, x - mean[:, None], 0.0).square().sum(dim=1)
    spread = (_quantile(x, start, stop, 0.75) - _quantile(x, start, stop, 0.25)) / 1.349
    width = BANDWIDTH * torch.minimum((squares / (counts - 1.0)).sqrt(), spread) * counts**-0.2
    return torch.where(counts >= 2, width, 0.0).nan_to_num(0.0, 0.0, 0.0)


def _mode(x: Tensor, start: Tensor, stop: Tensor, low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    """The first maximum of the kernel density at 512 equal points of [low, high], refined by a parabola."""
    inside = _between(x, start, stop)
    step = (high - low) / (GRID - 1)
    grid = low[:, None] + torch.arange(GRID, device=x.device, dtype=x.dtype) * step[:, None]
    grid[:, -1] = high
    hopeful = _hopeful_points(x, inside, low, high, width)
    most = int(hopeful.sum(dim=1).max())
    # The hopeful points of every row in ascending order, then others (whose density is lower) up to the most of a row.
    points = torch.argsort(hopeful.to(torch.int8), dim=1, descending=True, stable=True)[:, : max(most, 1)]
    heights = _density(x, inside, grid.gather(1, points), width)
    heights = torch.where(hopeful.gather(1, points), heights, -1.0)
    top = points.gather(1, heights.argmax(dim=1, keepdim=True))
    centre = top.clamp(1, GRID - 2)
    around = _density(x, inside, grid.gather(1, torch.cat([centre - 1, centre, centre + 1], dim=1)), width)
    left, middle, right = around.unbind(dim=1)
    curvature = left - 2 * middle + right
    shift = torch.where(curvature < 0, 0.5 * (left - right) / curvature, 0.0)
    shift = torch.where((top[:, 0] > 0) & (top[:, 0] < GRID - 1), shift, 0.0)
    mode: Tensor = grid.gather(1, top)[:, 0] + shift * (grid[:, 1] - grid[:, 0])
    return mode


def _hopeful_points(x: Tensor, inside: Tensor, low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    """The mask [B, 512] of grid points that can hold the maximum of the density, as in ``peak_robust``."""
    cells = (GRID - 1) * REFINED
    step = (high - low) / cells
    positions = torch.where(inside, (x - low[:, None]) / step[:, None], 0.0).nan_to_num(0.0, 0.0, 0.0)
    nodes = positions.to(torch.int64).clamp(0, cells - 1)
    weights = (positions - nodes).clamp(0.0, 1.0)
    spread = torch.zeros(len(x), cells + 2, dtype=x.dtype, device=x.device)
    spread.scatter_add_(1, nodes, torch.where(inside, 1.0 - weights, 0.0))
    spread.scatter_add_(1, nodes + 1, torch.where(inside, weights, 0.0))
    length = 2 * cells + 4  # no wrapping for lags up to ``cells``
    lags = torch.arange(length, device=x.device, dtype=x.dtype)
    lags = torch.minimum(lags, length - lags)
    kernel = torch.exp(-0.5 * (lags * (step / width)[:, None]).square())
    transformed = torch.fft.rfft(spread, length) * torch.fft.rfft(kernel)
    density = torch.fft.irfft(transformed, length)[:, : cells + 1 : REFINED]
    # What spreading each value over two nodes changes at most, and the rounding of the transform with room.
    error = inside.sum(dim=1) * ((step / width).square() / 8 + 1e-10)
    hopeful: Tensor = density >= (density.amax(dim=1) - 2 * error)[:, None]
    return hopeful


def _density(x: Tensor, inside: Tensor, points: Tensor, width: Tensor) -> Tensor:
    """The kernel density, not normalised, at ``points`` [B, P], piece by piece."""
    x = torch.where(inside, x, torch.inf)
    piece = max(1, DENSITY_BYTES // (8 * x.numel()))
    parts = []
    for some in torch.split(points, piece, dim=1):
        scaled = (some[:, :, None] - x[:, None, :]) / width[:, None, None]
        parts.append(scaled.square_().mul_(-0.5).exp_().sum(dim=2))
    return torch.cat(parts, dim=1)


def _between(x: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    columns = torch.arange(x.shape[1], device=x.device)
    return (columns >= start[:, None]) & (columns < stop[:, None])


_ESTIMATORS: dict[str, Callable[[BatchSpectrum, float], BatchFit]] = {
    "xmin_peak_robust": _xmin_peak_robust,
    "xmin_peak": _xmin_peak,
    "xmin_peak_reference": _xmin_peak_reference,
    "ks": _ks,
    "xmin_median": _xmin_median,
    "hill_fraction": _hill_fraction,
}
