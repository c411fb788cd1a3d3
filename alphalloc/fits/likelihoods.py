"""Would another distribution describe the same tail better? Vuong's likelihood ratios (arXiv 0706.1062, app. C).

All in t = λ/xmin >= 1 and y = ln t of the tail, each family with its own maximum-likelihood parameters:

- power law          ln p = ln(alpha - 1) - alpha·y
- exponential        ln p = ln z - z·(t - 1), z = 1 / (mean t - 1)
- lognormal          y is a normal variable cut off at 0. Its two moments fix k = -mu/sigma through
                     E[y²]/E[y]² = (1 - k·(h - k)) / (h - k)², h = φ(k)/Φ(-k), and then sigma = mean y / (h - k)
- truncated power law ln p = -a·y - z·t - ln ∫₁^∞ t^-a e^(-z·t) dt, z >= 0: convex in (a, z), solved by its moments

Lognormal and truncated power law both hold the power law as a limit; when the best of them is that limit, the ratio
is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr

from alphalloc.fits.power_law import Float64Array, PowerLawFit

LARGE_K = 30.0  # from here on the asymptotic series of h - k is exact to 1e-9
LIMIT_K = 1e4  # a lognormal this far out is a power law to eight digits
DECAY = 45.0  # e-folds after which an integrand counts as zero
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)


@dataclass(frozen=True)
class LikelihoodRatio:
    """Power law against an alternative on the same tail.

    ``ratio``: Σ (ln p_power_law - ln p_alternative), positive when the power law is likelier. ``normalized``:
    ratio / (sd·√n), standard normal if neither is nearer to the truth. ``p_value``: two-sided, of a ratio this far from
    0 by chance; for the truncated power law, which contains the power law, from 2·|ratio| ~ χ² with one degree of
    freedom.
    """

    ratio: float
    normalized: float
    p_value: float


def likelihood_ratios(eigs: Float64Array, fit: PowerLawFit) -> dict[str, LikelihoodRatio]:
    """Return the ratios of ``fit`` on its own tail of ``eigs`` by name of the alternative; empty without an alpha."""
    if fit.alpha is None or fit.xmin is None:
        return {}
    t = np.maximum(np.sort(eigs)[len(eigs) - fit.num_tail :] / fit.xmin, 1.0)
    y = np.log(t)
    power_law = math.log(fit.alpha - 1.0) - fit.alpha * y
    return {
        "lognormal": _compared(power_law, lognormal(y)),
        "exponential": _compared(power_law, exponential(t)),
        "truncated_power_law": _compared(power_law, truncated_power_law(t, y), nested=True),
    }


def _compared(first: Float64Array, second: Float64Array | None, *, nested: bool = False) -> LikelihoodRatio:
    if second is None:
        return LikelihoodRatio(0.0, 0.0, 1.0)
    difference = first - second
    ratio, spread = float(difference.sum()), float(difference.std()) * math.sqrt(len(difference))
    if not spread > 0:
        return LikelihoodRatio(ratio, 0.0, 1.0)
    p_value = math.erfc(math.sqrt(abs(ratio))) if nested else math.erfc(abs(ratio) / (math.sqrt(2.0) * spread))
    return LikelihoodRatio(ratio, ratio / spread, p_value)


def exponential(t: Float64Array) -> Float64Array:
    """Return ln p of every t under the likeliest exponential distribution on t >= 1."""
    rate = 1.0 / (float(t.mean()) - 1.0)
    return math.log(rate) - rate * (t - 1.0)


def lognormal(y: Float64Array) -> Float64Array | None:
    """Return ln p of every t = e^y under the likeliest lognormal cut off at t = 1; None when that is the power law."""
    mean, spread = float(y.mean()), float((y * y).mean()) / float(y.mean()) ** 2
    if not _moment_ratio(-LIMIT_K) < spread < _moment_ratio(LIMIT_K):
        return None
    k = float(brentq(lambda value: _moment_ratio(value) - spread, -LIMIT_K, LIMIT_K, xtol=1e-13))
    gap, _ = _gap(k)
    scaled = y * (gap / mean)
    return -0.5 * scaled * scaled - k * scaled + math.log(gap / mean) + _log_hazard(k) - y


def _log_hazard(k: float) -> float:
    """Return ln h = ln(φ(k)/Φ(-k)) without overflow on either side."""
    if k < 0:
        return -0.5 * k * k - 0.5 * math.log(2.0 * math.pi) - float(log_ndtr(-k))
    return 0.5 * math.log(2.0 / math.pi) - math.log(float(erfcx(k / math.sqrt(2.0))))


def _moment_ratio(k: float) -> float:
    """E[y²]/E[y]² of a normal variable with mean -k, sd 1, cut off at 0: rises from 1 to 2, the exponential's."""
    gap, rest = _gap(k)
    return rest / gap**2


def _gap(k: float) -> tuple[float, float]:
    """Return g = h - k and 1 - k·g with h = φ(k)/Φ(-k), free of cancellation for large k."""
    if k > LARGE_K:
        inverse = 1.0 / (k * k)
        rest = inverse * (2.0 - inverse * (10.0 - inverse * (74.0 - inverse * 706.0)))
        return (1.0 - rest) / k, rest
    gap = math.sqrt(2.0 / math.pi) / float(erfcx(k / math.sqrt(2.0))) - k
    return gap, 1.0 - k * gap


def truncated_power_law(t: Float64Array, y: Float64Array) -> Float64Array | None:
    """Return ln p of every t under the likeliest power law with exponential cut-off; None when that has none."""
    mean_y, mean_t = float(y.mean()), float(t.mean())

    def excess(log_z: float) -> float:
        z = math.exp(log_z)
        return mean_t - _truncated(_exponent(z, mean_y), z)[2]

    low, high = math.log(1e-8 / mean_t), math.log(1.0 / mean_t)
    if excess(low) >= 0:
        return None
    while excess(high) < 0:
        high += 1.0
    z = math.exp(float(brentq(excess, low, high, xtol=1e-10)))
    exponent = _exponent(z, mean_y)
    return -exponent * y - z * t - _truncated(exponent, z)[0]


def _exponent(z: float, mean_y: float) -> float:
    """Return the exponent a for which E[ln t] is ``mean_y`` at cut-off z; it is largest without cut-off."""
    high = 1.0 + 1.0 / mean_y
    step = 1.0
    while _truncated(high - step, z)[1] < mean_y:
        step *= 2.0
    return float(brentq(lambda a: _truncated(a, z)[1] - mean_y, high - step, high + 1e-6, xtol=1e-12))


def _truncated(a: float, z: float) -> tuple[float, float, float]:
    """Return ln ∫₁^∞ t^-a e^(-z·t) dt and the means of ln t and t under that density; Gauss-Legendre in ln t."""
    end = math.log1p(DECAY / z)
    for _ in range(6):  # z·(e^end - 1) = DECAY + (1 - a)·end
        end = math.log1p((DECAY + max(1.0 - a, 0.0) * end) / z)
    if a > 1.0:
        end = min(end, DECAY / (a - 1.0))
    u = 0.5 * end * (_NODES + 1.0)
    t = np.exp(u)
    exponents = (1.0 - a) * u - z * t
    top = float(exponents.max())
    density = _WEIGHTS * np.exp(exponents - top)
    total = float(density.sum())
    return top + math.log(0.5 * end * total), float(density @ u) / total, float(density @ t) / total
