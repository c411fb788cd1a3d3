"""Largest remainder where groups of slots share one count.

A group of ``g`` slots takes experts ``g`` at a time, so what the floors leave over cannot always go one each. The
counts returned are those nearest to the shares: they minimise ``sum (n_i - share*_i)^2`` over all slots, exactly.
Without groups that is the largest remainder itself. No count is then further from its share than the size ``G`` of
the largest group: were one, some of it could be exchanged with slots on the other side, and the sum would be
smaller. So only counts within ``G`` of a share are tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from alphalloc.allocation.shares import clamped_shares
from alphalloc.errors import InfeasibleBudgetError

Groups = Sequence[Sequence[int]]
Best = dict[int, tuple[int, tuple[int, ...]]]  # experts given away -> (cost so far, count of each group)


def grouped_remainder(
    weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], groups: Groups
) -> tuple[int, ...]:
    """Return the counts nearest to the shares that add up to ``total``, with one count a group.

    Each member of a group weighs as the mean of its members. Among equally near answers the groups with the larger
    weight, then the lower index, get more. The caller has checked weights and bounds, and the members of a group have
    the same ones. Raises InfeasibleBudgetError, with the nearest possible totals, when no counts add up.
    """
    common = common_weights(weights, groups)
    counts = _nearest(common, total, low, high, groups)
    if counts is not None:
        return counts
    reach = 2 * max(len(members) for members in groups)
    near = [total + sign * step for step in range(1, reach + 1) for sign in (-1, 1)]
    possible = [t for t in near if sum(low) <= t <= sum(high) and _nearest(common, t, low, high, groups) is not None]
    below = max((t for t in possible if t < total), default=None)
    above = min((t for t in possible if t > total), default=None)
    names = " and ".join(str(t) for t in (below, above) if t is not None) or "none nearby"
    raise InfeasibleBudgetError(
        f"no counts with these groups add up to {total} experts; the nearest totals that are possible: {names}"
    )


def common_weights(weights: Sequence[float], groups: Groups) -> list[float]:
    """Return the weights with those of each group replaced by their mean."""
    common = list(weights)
    for members in groups:
        mean = sum(weights[i] for i in members) / len(members)
        for i in members:
            common[i] = mean
    return common


class _Problem:
    """Shares as whole numerators over one denominator, and the counts within reach of each."""

    def __init__(
        self, weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], reach: int
    ) -> None:
        shares = clamped_shares(weights, total, low, high)
        self.weights = weights
        self.denominator = d = shares.denominator
        self.wanted = [whole * d + part for whole, part in zip(shares.whole, shares.remainder, strict=True)]
        self.first = [max(lo, -((reach * d - w) // d)) for lo, w in zip(low, self.wanted, strict=True)]
        self.last = [min(hi, (w + reach * d) // d) for hi, w in zip(high, self.wanted, strict=True)]

    def cost(self, slot: int, count: int) -> int:
        """Squared distance of ``count`` from the share, in units of the squared denominator."""
        return (count * self.denominator - self.wanted[slot]) ** 2


def _nearest(
    weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], groups: Groups
) -> tuple[int, ...] | None:
    problem = _Problem(weights, total, low, high, max(len(members) for members in groups))
    order = sorted(groups, key=lambda members: (-weights[members[0]], members[0]))
    ladder = _Ladder(problem, sorted(set(range(len(weights))) - {i for members in groups for i in members}))
    found = [
        (cost + ladder.costs[total - given - ladder.base], tuple(-n for n in counts), given, counts)
        for given, (cost, counts) in _over_groups(problem, order).items()
        if 0 <= total - given - ladder.base < len(ladder.costs)
    ]
    if not found:
        return None
    *_, given, chosen = min(found)
    counts = ladder.counts(total - given)
    for members, count in zip(order, chosen, strict=True):
        counts.update(dict.fromkeys(members, count))
    return tuple(counts[i] for i in range(len(weights)))


def _over_groups(problem: _Problem, groups: Groups) -> Best:
    """Return the cheapest counts of the groups for every number of experts that they can take together."""
    best: Best = {0: (0, ())}
    for members in groups:
        slot, size = members[0], len(members)
        steps = [(n, size * problem.cost(slot, n)) for n in range(problem.first[slot], problem.last[slot] + 1)]
        following: Best = {}
        for given, (cost, counts) in best.items():
            for n, more in steps:
                candidate = (cost + more, (*counts, n))
                known = following.get(given + size * n)
                if known is None or (candidate[0], known[1]) < (known[0], candidate[1]):
                    following[given + size * n] = candidate
        best = following
    return best


class _Ladder:
    """The slots outside groups: their nearest counts for every total within reach, one expert a rung.

    The cost of a slot is convex in its count, so the nearest counts for one expert more are those for one fewer
    plus the cheapest step: the one of (larger share minus count, larger weight, lower index).
    """

    def __init__(self, problem: _Problem, singles: Sequence[int]) -> None:
        self._start = {i: problem.first[i] for i in singles}
        steps = [
            (problem.wanted[i] - n * problem.denominator, problem.weights[i], -i, n)
            for i in singles
            for n in range(problem.first[i], problem.last[i])
        ]
        steps.sort(reverse=True)
        self._rungs = [-step[2] for step in steps]
        self.base = sum(self._start.values())
        self.costs = [sum(problem.cost(i, n) for i, n in self._start.items())]
        for _, _, negative, n in steps:
            self.costs.append(self.costs[-1] + problem.cost(-negative, n + 1) - problem.cost(-negative, n))

    def counts(self, total: int) -> dict[int, int]:
        """Return the count of each slot when all of them get ``total``."""
        counts = dict(self._start)
        for i in self._rungs[: total - self.base]:
            counts[i] += 1
        return counts
