"""How far an alpha moves when nothing that matters changes: a band from the eigenvalues alone.

Three kinds of change, each answered by the estimator itself:

- *noise*: every singular value times 1 + 0.001·z, z standard normal;
- *rounding* of the weights to float16 and bfloat16. Rounding adds to each weight an error with standard deviation
  u·|w|; to first order a singular value then moves by uᵀEv, normal with standard deviation s = u·‖W‖_F/√(rows·cols).
  (To second order the errors lift a small λ by s²·nmax and its neighbours push it down by s²·nmin: nothing is left in
  a square matrix, and in others no λ is that small.) u = 0.4247·2^-p with p = 11 (float16) or 8 (bfloat16): the error
  is uniform within half a unit in the last place, and significands m are log-uniform, E[m^-2] = 0.75 / (2 ln 2);
- *settings*: the estimator's own constants shifted by a little (``_shifts``); estimators without constants have their
  tail start 1 % of N earlier and later.

A band says how much the number hangs on details. It is no confidence interval: ``sigma`` of the fit is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from alphalloc.fits.hill import hill_fraction
from alphalloc.fits.peak import LOWER, UPPER, xmin_peak
from alphalloc.fits.peak_reference import xmin_peak_reference
from alphalloc.fits.peak_robust import BANDWIDTH, HIGH_QUANTILE, LOW_QUANTILE, xmin_peak_robust
from alphalloc.fits.power_law import Float64Array, PowerLawFit, Spectrum, fit_at, prepare

Fit = Callable[[Float64Array], PowerLawFit]

NOISE = 1e-3  # relative, on singular values
NOISE_DRAWS = 10  # chosen here: ten draws span 3.1 standard deviations, and a matrix of 576 takes some 10 ms
ROUNDING_DRAWS = 3  # per format
ROUNDING = 0.75**0.5 / (math.sqrt(3.0) * math.sqrt(2.0 * math.log(2.0)))  # 0.4247, in half units in the last place
SIGNIFICANDS = {"float16": 11, "bfloat16": 8}  # bits, the implicit one included


@dataclass(frozen=True)
class AlphaBand:
    """The smallest and largest alpha met, the unchanged one included; ``num_failed`` changes left no alpha at all."""

    low: float
    high: float
    num_failed: int = 0


def stability(
    estimator: str, fit: Fit, eigs: Float64Array, *, rows: int, cols: int, fraction: float = 0.25, seed: int = 0
) -> AlphaBand | None:
    """Return the band of alpha of a rows x cols matrix with these ``eigs``; None when the matrix has no alpha.

    ``fit``: what was used to fit, ``estimator`` its name, ``fraction`` the tail share of ``hill_fraction``. The same
    seed gives the same band; it depends on nothing else.
    """
    unchanged = fit(eigs).alpha
    if unchanged is None:
        return None
    changed = [fit(values).alpha for values in _disturbed(eigs, rows, cols, np.random.default_rng(seed))]
    changed += [shifted(eigs).alpha for shifted in _shifts(estimator, fit, fraction)]
    alphas = [unchanged, *(alpha for alpha in changed if alpha is not None)]
    return AlphaBand(min(alphas), max(alphas), sum(alpha is None for alpha in changed))


def rounding_noise(eigs: Float64Array, rows: int, cols: int, dtype: str) -> float:
    """Return s, the standard deviation by which rounding W to ``dtype`` moves each singular value."""
    return math.ldexp(ROUNDING, -SIGNIFICANDS[dtype]) * math.sqrt(float(eigs.sum()) / (rows * cols))


def _disturbed(eigs: Float64Array, rows: int, cols: int, rng: np.random.Generator) -> Iterator[Float64Array]:
    for _ in range(NOISE_DRAWS):
        yield eigs * (1.0 + NOISE * rng.standard_normal(len(eigs))) ** 2
    singular = np.sqrt(eigs)
    for dtype in SIGNIFICANDS:
        noise = rounding_noise(eigs, rows, cols, dtype)
        for _ in range(ROUNDING_DRAWS):
            values = (singular + noise * rng.standard_normal(len(eigs))) ** 2
            yield values[values > 0]


def _shifts(estimator: str, fit: Fit, fraction: float) -> list[Fit]:
    """The estimator with its own settings moved a little, one at a time: chosen here."""
    if estimator == "xmin_peak_robust":
        bandwidths = [partial(xmin_peak_robust, bandwidth=BANDWIDTH * factor) for factor in (0.9, 1.1)]
        ranges = ((0.04, HIGH_QUANTILE), (0.06, HIGH_QUANTILE), (LOW_QUANTILE, 0.99), (LOW_QUANTILE, 1.0))
        return [*bandwidths, *(partial(xmin_peak_robust, quantiles=pair) for pair in ranges)]
    if estimator in ("xmin_peak", "xmin_peak_reference"):
        function = xmin_peak if estimator == "xmin_peak" else xmin_peak_reference
        windows = ((0.9, UPPER), (LOWER, 1.4), (LOWER, 1.6))
        return [
            *(partial(function, bins=bins) for bins in (95, 105)),
            *(partial(function, window=pair) for pair in windows),
        ]
    if estimator == "hill_fraction":
        return [partial(hill_fraction, fraction=min(1.0, fraction * factor)) for factor in (0.95, 1.05)]
    return [partial(_moved, fit, share) for share in (-0.01, 0.01)]


def _moved(fit: Fit, share: float, eigs: Float64Array) -> PowerLawFit:
    """The fit whose tail starts ``share``·N eigenvalues later than that of ``fit``."""
    found = fit(eigs)
    spectrum = prepare(found.estimator, eigs)
    if found.xmin is None or not isinstance(spectrum, Spectrum):
        return found
    total = len(spectrum.logs)
    steps = max(1, round(abs(share) * total)) * (1 if share > 0 else -1)
    start = int(np.searchsorted(spectrum.eigs, found.xmin)) + steps
    return fit_at(found.estimator, spectrum, min(max(start, 0), total - 2))
