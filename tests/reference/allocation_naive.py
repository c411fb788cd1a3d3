"""Allocation re-derived the slow and obvious way: exhaustive search with exact fractions, and loops with numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np


def shares(weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int]) -> list[Fraction]:
    """Try every split of the slots into at-minimum, at-maximum and proportional until one is consistent: 3^L cases."""
    exact = [Fraction(weight) for weight in weights]
    slots = range(len(exact))
    for state in itertools.product(["free", "low", "high"], repeat=len(exact)):
        fixed = sum(low[i] if state[i] == "low" else high[i] for i in slots if state[i] != "free")
        weight = sum((exact[i] for i in slots if state[i] == "free"), Fraction(0))
        if weight == 0:
            # Any c between the point where the last one reaches its top and the first one leaves its bottom will do.
            least = max((high[i] / exact[i] for i in slots if state[i] == "high"), default=Fraction(0))
            most = min((low[i] / exact[i] for i in slots if state[i] == "low"), default=None)
            if fixed == total and (most is None or least <= most):
                return [Fraction(low[i] if state[i] == "low" else high[i]) for i in slots]
            continue
        c = (total - fixed) / weight
        if c >= 0 and all(_consistent(state[i], c * exact[i], low[i], high[i]) for i in slots):
            return [min(max(c * exact[i], Fraction(low[i])), Fraction(high[i])) for i in slots]
    raise AssertionError("no consistent split: the total is out of reach")


def largest_remainder(weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int]) -> list[int]:
    """Floor the shares, then hand out what is left one by one to the best claim."""
    wanted = shares(weights, total, low, high)
    counts = [int(share) for share in wanted]
    claims = {i: (wanted[i] - counts[i], weights[i], -i) for i in range(len(counts))}
    while sum(counts) < total:
        best = max(claims, key=lambda i: claims[i])
        del claims[best]
        counts[best] += 1
    return counts


def reference(weights: Sequence[float], total: int) -> list[int]:
    """The released loop: one expert a step, to where unnormalised weight minus count is smallest (off: largest)."""
    array = np.asarray(weights, dtype=np.float64)
    counts = np.round(array / array.sum() * total).astype(int)
    for _ in range(abs(total - int(counts.sum()))):
        gap = array - counts
        missing = counts.sum() < total
        counts[gap.argmin() if missing else gap.argmax()] += 1 if missing else -1
    return [int(count) for count in counts]


def vectors(total: int, low: Sequence[int], high: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every vector of whole numbers within the bounds that adds up to the total."""
    for counts in itertools.product(*(range(lo, min(hi, total) + 1) for lo, hi in zip(low, high, strict=True))):
        if sum(counts) == total:
            yield counts


def _consistent(state: str, value: Fraction, low: int, high: int) -> bool:
    return {"free": low <= value <= high, "low": value <= low, "high": value >= high}[state]
