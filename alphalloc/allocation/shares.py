"""Exact bounded shares: what every fair rounding starts from.

``share*_i = clamp(c * w_i, low_i, high_i)`` with the one ``c`` for which the shares add up to the total. Weights are
floats, and a float is a fraction whose denominator is a power of two, so all of this is done in integers: no share is
off by a rounding error, equal weights have equal shares, and the laws of the roundings hold without a tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Shares:
    """One exact share a slot: ``whole_i + remainder_i / denominator`` with ``0 <= remainder_i < denominator``."""

    whole: tuple[int, ...]
    remainder: tuple[int, ...]
    denominator: int

    def as_fractions(self) -> tuple[Fraction, ...]:
        """Return the shares as fractions; their sum is the total exactly."""
        pairs = zip(self.whole, self.remainder, strict=True)
        return tuple(whole + Fraction(remainder, self.denominator) for whole, remainder in pairs)


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Return integers in exactly the proportions of ``weights`` (positive finite floats)."""
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two: the largest is a common multiple
    return tuple(numerator * (scale // denominator) for numerator, denominator in ratios)


def clamped_shares(weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int]) -> Shares:
    """Return the shares of ``total`` in proportion to ``weights`` within ``low_i <= share_i <= high_i``.

    The caller has checked that weights are positive and finite, that ``low_i <= high_i`` and that
    ``sum(low) <= total <= sum(high)``; under these the answer exists and is unique.
    """
    exact = integer_weights(weights)
    everything = sum(exact)
    if all(lo * everything <= total * w <= hi * everything for w, lo, hi in zip(exact, low, high, strict=True)):
        return _shares(exact, set(range(len(exact))), [0] * len(exact), total)  # no bound is felt: nothing to search
    free, fixed = _clamped_at(exact, total, low, high)
    return _shares(exact, free, fixed, total)


def _clamped_at(
    exact: Sequence[int], total: int, low: Sequence[int], high: Sequence[int]
) -> tuple[set[int], list[int]]:
    """Return which slots follow ``c * w`` and the values of the others.

    The sum of the shares grows with ``c``, in straight lines between the points where a slot leaves its lower bound or
    reaches its upper one. Walking these points in order finds the line that crosses ``total``.
    """
    leaves_low = [(Fraction(lo, w), 0, i) for i, (w, lo) in enumerate(zip(exact, low, strict=True))]
    meets_high = [(Fraction(hi, w), 1, i) for i, (w, hi) in enumerate(zip(exact, high, strict=True))]
    values = list(low)
    free: set[int] = set()
    fixed_sum, slope = sum(low), 0
    for c, kind, slot in sorted(leaves_low + meets_high):
        if fixed_sum + c * slope >= total:
            break
        if kind == 0:
            free.add(slot)
            fixed_sum -= low[slot]
            slope += exact[slot]
        else:
            free.discard(slot)
            values[slot] = high[slot]
            fixed_sum += high[slot]
            slope -= exact[slot]
    return free, values


def _shares(exact: Sequence[int], free: set[int], fixed: Sequence[int], total: int) -> Shares:
    denominator = sum(exact[slot] for slot in free) or 1
    left = total - sum(value for slot, value in enumerate(fixed) if slot not in free)
    parts = [divmod(left * w, denominator) if i in free else (fixed[i], 0) for i, w in enumerate(exact)]
    return Shares(tuple(part[0] for part in parts), tuple(part[1] for part in parts), denominator)
