"""How many experts a budget in parameters buys.

Counts are not monotone in their total, and neither is their cost. But no fair rounding gives a slot less than its
whole share (less the size of the largest group), and shares only grow with the total. So a bisection on these
floors gives the largest total that could be affordable; from there the totals are tried downwards, and the first
affordable one is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alphalloc.allocation.constraints import SlotBounds
from alphalloc.allocation.grouped import common_weights
from alphalloc.allocation.parameters import module_parameters
from alphalloc.allocation.rounding import Rounding
from alphalloc.allocation.shapes import ModuleShape
from alphalloc.allocation.shares import clamped_shares
from alphalloc.errors import InfeasibleBudgetError

Cost = Callable[[int, int], int]  # (slot, count) -> parameters; grows with the count


@dataclass(frozen=True)
class Spending:
    """The counts that a limit buys and what they cost."""

    total: int
    counts: tuple[int, ...]
    parameters: int


def expert_cost(modules: Sequence[Sequence[ModuleShape]], r: int) -> Cost:
    """Return the parameters of ``count`` experts of rank ``r`` in a slot; ``modules`` are those of each slot."""
    return lambda slot, count: sum(module_parameters(shape, count, r) for shape in modules[slot])


def spend(
    limit: int, weights: Sequence[float], bounds: SlotBounds, rounding: Rounding, gift: bool, cost: Cost
) -> Spending:
    """Return the largest affordable total and its counts.

    ``gift`` says that the rounding gives every slot its minimum first. Raises InfeasibleBudgetError with the nearest
    possible budget when not even the minima are affordable, or when the maxima leave enough for one more expert.
    """
    slots = range(len(weights))
    groups = bounds.groups
    slack = max((len(members) for members in groups), default=0)
    common = common_weights(weights, groups)
    least, most = sum(bounds.low), _most(limit, bounds, cost)

    def price(counts: Sequence[int]) -> int:
        return sum(cost(slot, counts[slot]) for slot in slots)

    def floor_price(total: int) -> int:
        high = bounds.high_within(total)
        start = bounds.low if gift else [0] * len(weights)
        room = [hi - lo for lo, hi in zip(start, high, strict=True)]
        low = [lo - base for lo, base in zip(bounds.low, start, strict=True)]
        shares = clamped_shares(common, total - sum(start), low, room)
        return price([max(bounds.low[i], start[i] + shares.whole[i] - slack) for i in slots])

    if price(bounds.low) > limit:
        raise InfeasibleBudgetError(
            f"a budget of {limit} parameters is below the minima, which need {price(bounds.low)} parameters; raise the "
            "budget to that, or lower the minimum, the rank or the number of target modules"
        )
    top = _bisect(lambda total: floor_price(total) <= limit, least, most)
    for total in range(top, least - 1, -1):
        try:
            counts = rounding(weights, total, bounds.low, bounds.high_within(total), groups)
        except InfeasibleBudgetError:  # groups cannot add up to every total
            continue
        if price(counts) <= limit:
            _check_left(limit, price(counts), counts, bounds, cost)
            return Spending(total, counts, price(counts))
    raise InfeasibleBudgetError(f"no counts fit the groups and {limit} parameters")


def _most(limit: int, bounds: SlotBounds, cost: Cost) -> int:
    slots = [slot for slot, hi in enumerate(bounds.high) if hi != 0]
    cheapest = min((cost(i, n + 1) - cost(i, n) for i in slots for n in (0, 1)), default=1)
    if cheapest < 1:
        return sum(bounds.low)
    affordable = sum(bounds.low) + limit // cheapest
    if any(hi is None for hi in bounds.high):
        return affordable
    return min(affordable, sum(hi for hi in bounds.high if hi is not None))


def _bisect(affordable: Callable[[int], bool], least: int, most: int) -> int:
    """Return the largest total for which ``affordable``, which turns from true to false once."""
    while least < most:
        middle = (least + most + 1) // 2
        if affordable(middle):
            least = middle
        else:
            most = middle - 1
    return least


def _check_left(limit: int, spent: int, counts: Sequence[int], bounds: SlotBounds, cost: Cost) -> None:
    """Refuse a budget that the maxima keep from being spent."""
    if any(hi is None or n < hi for n, hi in zip(counts, bounds.high, strict=True)):
        return
    step = max(cost(slot, n + 1) - cost(slot, n) for slot, n in enumerate(counts))
    if limit - spent >= step:
        raise InfeasibleBudgetError(
            f"a budget of {limit} parameters is above the maxima, which need {spent} parameters; lower the budget to "
            "that or raise the maximum"
        )
