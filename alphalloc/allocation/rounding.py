"""From weights and a total to whole numbers of experts: three roundings, one dictionary.

``largest_remainder`` is the default. ``min1_largest_remainder`` gives every layer its minimum first (arXiv 2505.23811,
section 3.3). ``reference`` reproduces the released AlphaLoRA code (arXiv 2410.10054) bit for bit, defects included.
Every rounding takes unnormalised weights. No rounding is monotone in the total: one more expert can take one from a
layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from alphalloc.allocation.grouped import Groups, grouped_remainder
from alphalloc.allocation.shares import Shares, clamped_shares
from alphalloc.errors import InfeasibleBudgetError, InvalidParameterError, InvalidScoresError, UnknownRoundingError

Rounding = Callable[[Sequence[float], int, Sequence[int], Sequence[int], Groups], tuple[int, ...]]


def largest_remainder(
    weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], groups: Groups = ()
) -> tuple[int, ...]:
    """Return ``floor(share*)`` plus one for the largest remainders; the counts add up to ``total``.

    ``share*_i = clamp(c * w_i, low_i, high_i)`` with the unique ``c`` for which they add up to ``total``. The experts
    that the floors leave over go one each by (larger fraction, larger weight, lower index). So ``low_i <= n_i <=
    high_i``, ``|n_i - share*_i| < 1``, and a larger weight never gets fewer. Slots of one group (positions) share a
    count: see :mod:`alphalloc.allocation.grouped`.

    Raises InvalidScoresError for weights that are not positive and finite, InvalidParameterError for contradictory
    bounds and InfeasibleBudgetError when ``total`` lies outside ``[sum(low), sum(high)]``.
    """
    _check(weights, total, low, high)
    if groups:
        return grouped_remainder(weights, total, low, high, groups)
    return _by_remainder(weights, clamped_shares(weights, total, low, high))


def min1_largest_remainder(
    weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], groups: Groups = ()
) -> tuple[int, ...]:
    """Return ``low_i`` plus the largest-remainder share of what is left: ``n = low + LR(total - sum(low))``.

    Flatter than :func:`largest_remainder`: the minimum is a gift and not a part of the share. Needs a minimum of at
    least one somewhere (InvalidParameterError otherwise); errors else as :func:`largest_remainder`.
    """
    _check(weights, total, low, high)
    if not any(low):
        raise InvalidParameterError(
            "rounding 'min1_largest_remainder' needs min_experts >= 1, found 0: with 0 it is 'largest_remainder'"
        )
    room = [hi - lo for lo, hi in zip(low, high, strict=True)]
    extra = largest_remainder(weights, total - sum(low), [0] * len(room), room, groups)
    return tuple(lo + more for lo, more in zip(low, extra, strict=True))


def reference(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Return what the released AlphaLoRA allocator returns, bit for bit: counts can be 0 or negative.

    ``n_i = round_half_even((w_i / sum w) * total)`` in float64, summed as numpy sums. What is then missing goes
    entirely to the layer with the smallest ``w_i - n_i``, what is too much comes entirely off the one with the largest,
    the first of equals: the released code compares unnormalised weights with counts, one expert a step, and the same
    layer wins every step. Here it is one step, so nothing can loop.

    Raises InvalidScoresError for weights that are empty, negative, not finite or all zero, where the released code
    hangs or fails.
    """
    _check_reference(weights)
    norm = _numpy_sum(weights)
    if not 0 < norm < math.inf:
        raise InvalidScoresError(f"the weights add up to {norm}: expected a positive finite sum; lower beta")
    counts = [round(weight / norm * total) for weight in weights]  # round() is half-to-even, as np.round
    correction = total - sum(counts)
    gaps = [weight - count for weight, count in zip(weights, counts, strict=True)]
    if correction > 0:
        counts[gaps.index(min(gaps))] += correction
    elif correction < 0:
        counts[gaps.index(max(gaps))] += correction
    return tuple(counts)


def bounded_reference(
    weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], groups: Groups = ()
) -> tuple[int, ...]:
    """Return :func:`reference` if it lies within the bounds, else raise InfeasibleBudgetError that names the layer.

    Raises InvalidParameterError for groups: the released code knows none.
    """
    _check(weights, total, low, high)
    if groups:
        raise InvalidParameterError("rounding 'reference' knows no groups; use 'largest_remainder'")
    counts = reference(weights, total)
    for layer, (count, lo, hi) in enumerate(zip(counts, low, high, strict=True)):
        if not max(lo, 0) <= count <= hi:
            raise InfeasibleBudgetError(
                f"rounding 'reference' gives layer {layer} {count} experts, outside [{lo}, {hi}] "
                f"(total {total} over {len(counts)} layers): its published correction moves the whole difference to "
                "one layer. Use rounding 'largest_remainder'"
                + (", or min_experts=0 to keep layers without experts" if count == 0 else "")
            )
    return counts


ROUNDINGS: dict[str, Rounding] = {
    "largest_remainder": largest_remainder,
    "min1_largest_remainder": min1_largest_remainder,
    "reference": bounded_reference,
}


def get_rounding(name: str) -> Rounding:
    """Return the rounding of that name; UnknownRoundingError lists the names there are."""
    if not isinstance(name, str) or name not in ROUNDINGS:
        raise UnknownRoundingError(f"no rounding is called {name!r}; there are: {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]


def _by_remainder(weights: Sequence[float], shares: Shares) -> tuple[int, ...]:
    counts = list(shares.whole)
    left = sum(shares.remainder) // shares.denominator
    order = sorted(range(len(counts)), key=lambda i: (-shares.remainder[i], -weights[i], i))
    for slot in order[:left]:
        counts[slot] += 1
    return tuple(counts)


def _check(weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int]) -> None:
    if not weights:
        raise InvalidScoresError("expected at least one weight, found none")
    for layer, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise InvalidScoresError(f"layer {layer}: the weight must be positive and finite, found {weight}")
    if not len(weights) == len(low) == len(high):
        raise InvalidParameterError(f"{len(weights)} weights, {len(low)} minima and {len(high)} maxima do not match")
    for layer, (lo, hi) in enumerate(zip(low, high, strict=True)):
        if not 0 <= lo <= hi:
            raise InvalidParameterError(f"layer {layer}: expected 0 <= min <= max, found min {lo} and max {hi}")
    if not sum(low) <= total <= sum(high):
        raise InfeasibleBudgetError(
            f"a total of {total} is not possible over {len(weights)} layers: the bounds allow {sum(low)} to {sum(high)}"
        )


def _check_reference(weights: Sequence[float]) -> None:
    if not weights:
        raise InvalidScoresError("expected at least one weight, found none")
    for layer, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise InvalidScoresError(f"layer {layer}: the weight must be finite and not negative, found {weight}")


def _numpy_sum(values: Sequence[float]) -> float:
    """Return the sum in the order in which numpy adds float64: eight running sums a block of at most 128, then halves.

    The order decides ties: 32 equal weights must share 80 experts as exactly 2.5 each.
    """
    size = len(values)
    if size < 8:
        plain = 0.0
        for value in values:
            plain += value
        return plain
    if size > 128:
        half = size // 2 - size // 2 % 8
        return _numpy_sum(values[:half]) + _numpy_sum(values[half:])
    whole = size - size % 8
    lanes = [0.0] * 8
    for start in range(0, whole, 8):
        lanes = [lane + values[start + k] for k, lane in enumerate(lanes)] if start else list(values[:8])
    a, b, c, d, e, f, g, h = lanes
    result = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for value in values[whole:]:
        result += value
    return result
