"""Intervals of accuracies: Wilson's for one evaluation, Student's for a mean over seeds and for paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95  # the usual convention


@dataclass(frozen=True)
class Interval:
    """An estimate between two limits; the limits are None where one value says nothing about its spread."""

    value: float
    low: float | None
    high: float | None

    def plain(self) -> list[float] | None:
        """Return ``[low, high]``, or None without limits."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def wilson(correct: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = correct / n. Raises ValueError unless
    0 <= correct <= total, total >= 1 and 0 < confidence < 1.
    """
    if not 0 <= correct <= total or total < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected 0 <= correct <= total and 0 < confidence < 1, got {correct}, {total}, {confidence}")
    z, p = _normal_quantile(0.5 + confidence / 2), correct / total
    scale = 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
    # At the ends the limit is exact; rounding must not leave [0, 1] or the estimate outside.
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == total else centre + half)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``values`` and Student's interval of it: mean ± t(n-1)·sd/sqrt(n), sd with n - 1.

    It speaks of what the values vary in (seeds, or questions) and of nothing else. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("expected at least one value, got none")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Interval(mean, None, None)
    from scipy.stats import t

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(t.ppf(0.5 + confidence / 2, count - 1)) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def paired_interval(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``first - second`` and its interval; the two are measured on the same seeds (or questions).

    Raises ValueError when they are not equally many.
    """
    return mean_interval([a - b for a, b in zip(first, second, strict=True)], confidence)


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
