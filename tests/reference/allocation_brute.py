"""Constraints and parameter budgets by trying everything: for small cases only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import allocation_naive as naive

Groups = Sequence[Sequence[int]]


def feasible(total: int, low: Sequence[int], high: Sequence[int], groups: Groups) -> Iterator[tuple[int, ...]]:
    """Every vector within the bounds that adds up to the total and has one count a group."""
    for counts in naive.vectors(total, low, high):
        if all(len({counts[i] for i in members}) == 1 for members in groups):
            yield counts


def least_distance(
    weights: Sequence[float], total: int, low: Sequence[int], high: Sequence[int], groups: Groups
) -> Fraction | None:
    """The least sum of squared distances from the shares, a group weighing as its mean; None when nothing adds up."""
    common = list(weights)
    for members in groups:
        for i in members:
            common[i] = sum(weights[k] for k in members) / len(members)
    shares = naive.shares(common, total, low, high)
    return min((distance(counts, shares) for counts in feasible(total, low, high, groups)), default=None)


def distance(counts: Sequence[int], shares: Sequence[Fraction]) -> Fraction:
    """Sum of squared distances of counts from shares."""
    return sum(((n - share) ** 2 for n, share in zip(counts, shares, strict=True)), Fraction(0))


def largest_affordable(price_of: Callable[[int], int | None], least: int, most: int, limit: int) -> int | None:
    """The largest total whose price (None: no counts) is within the limit: all of them are tried."""
    prices = {total: price_of(total) for total in range(least, most + 1)}
    return max((total for total, price in prices.items() if price is not None and price <= limit), default=None)
