"""What all estimators share: the fitted value, the prepared spectrum, the tail's exponent and its distance.

The model is a continuous power law p(λ) ∝ λ^-alpha for λ >= xmin (Clauset, Shalizi and Newman, arXiv 0706.1062).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

STATUSES = ("ok", "flat_spectrum", "too_few", "non_finite", "no_candidate")

MIN_EIGS = 8  # below, an exponent says nothing
FLAT_LOG_RANGE = 0.02  # ln(λmax/λmin) under which a spectrum counts as flat: identity, orthogonal
MAX_ALPHA = 200.0  # beyond, the tail is a single value with rounding noise


@dataclass(frozen=True)
class PowerLawFit:
    """One fitted power-law tail.

    ``alpha``: exponent. ``xmin``: smallest eigenvalue of the tail. ``ks_distance``: D, the largest distance between the
    fitted and the empirical distribution (its lower steps). ``num_tail``: eigenvalues in the tail. ``sigma``:
    (alpha - 1)/sqrt(num_tail), the standard error. ``status``: "ok", or why there is no exponent, with ``reason`` in
    words; then all numbers are None and ``num_tail`` is 0. ``peak``: the histogram peak, where an estimator uses one.
    """

    estimator: str
    alpha: float | None
    xmin: float | None
    ks_distance: float | None
    num_tail: int
    sigma: float | None
    status: str = "ok"
    reason: str | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues prepared for fitting: ascending ``eigs`` and ``logs`` = ln(λ/λmax) <= 0.

    Logarithms are relative to λmax, so that a power-of-two scale of W changes no bit of any exponent.
    ``tail_sums``: Σ_{j>=i} logs_j for every i.
    """

    eigs: Float64Array
    logs: Float64Array
    tail_sums: Float64Array

    @property
    def largest(self) -> float:
        return float(self.eigs[-1])


def prepare(estimator: str, eigs: Float64Array, *, min_eigs: int = MIN_EIGS) -> Spectrum | PowerLawFit:
    """Return the spectrum ready for fitting, or the degenerate fit when it has no exponent.

    ``eigs`` must be the kept ones; values <= 0 have no logarithm and raise ValueError (``esd`` drops them).
    """
    values = np.sort(np.asarray(eigs, dtype=np.float64).ravel())
    if not np.isfinite(values).all():
        return degenerate(estimator, "non_finite", "the spectrum holds NaN or infinity")
    if len(values) < min_eigs:
        return degenerate(estimator, "too_few", f"{len(values)} nonzero eigenvalues; at least {min_eigs} are needed")
    if values[0] <= 0:
        raise ValueError(f"expected positive eigenvalues, found {values[0]!r}; drop the zeros first, as esd() does")
    logs = np.log(values / values[-1])
    if not np.isfinite(logs[0]) or -logs[0] < FLAT_LOG_RANGE:
        return degenerate(
            estimator, "flat_spectrum", f"ln(largest/smallest eigenvalue) is {-logs[0]:.3g}, below {FLAT_LOG_RANGE}"
        )
    return Spectrum(values, logs, np.cumsum(logs[::-1])[::-1])


def degenerate(estimator: str, status: str, reason: str) -> PowerLawFit:
    """Return the fit that carries no exponent but says why."""
    return PowerLawFit(estimator, None, None, None, 0, None, status, reason)


def tail_exponents(spectrum: Spectrum) -> Float64Array:
    """Return alpha_i = 1 + n / Σ_{j>=i} ln(λ_j/λ_i), n = N - i, for every i; inf where the tail is one value."""
    logs = spectrum.logs
    counts = np.arange(len(logs), 0, -1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return 1.0 + counts / np.maximum(spectrum.tail_sums - counts * logs, 0.0)


def tail_distance(logs: Float64Array, log_xmin: float, alpha: float) -> float:
    """Return D = max_j |1 - (λ_j/xmin)^(1-alpha) - j/n| over the n ascending ``logs`` of the tail (lower ECDF step)."""
    return float(np.abs(tail_deviations(logs, log_xmin, alpha)).max())


def tail_deviations(logs: Float64Array, log_xmin: float, alpha: float) -> Float64Array:
    """Return 1 - (λ_j/xmin)^(1-alpha) - j/n for the n ascending ``logs`` of the tail."""
    fitted = 1.0 - np.exp((1.0 - alpha) * (logs - log_xmin))
    return fitted - np.arange(len(logs)) / len(logs)


def fit_at(estimator: str, spectrum: Spectrum, index: int, *, peak: float | None = None) -> PowerLawFit:
    """Return the fit whose tail is λ_index … λ_{N-1}."""
    logs = spectrum.logs
    alpha = float(tail_exponents(spectrum)[index])
    if not alpha <= MAX_ALPHA:
        return degenerate(estimator, "flat_spectrum", f"alpha is {alpha:.3g}, beyond {MAX_ALPHA:g}: the tail is flat")
    distance = tail_distance(logs[index:], float(logs[index]), alpha)
    return completed(estimator, alpha, float(spectrum.eigs[index]), distance, len(logs) - index, peak=peak)


def completed(
    estimator: str, alpha: float, xmin: float, distance: float, num_tail: int, *, peak: float | None = None
) -> PowerLawFit:
    """Return the fit with its standard error filled in."""
    return PowerLawFit(estimator, alpha, xmin, distance, num_tail, (alpha - 1.0) / math.sqrt(num_tail), peak=peak)
