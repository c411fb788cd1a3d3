"""Budgets in experts and in experts a layer; what is no budget."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alphalloc.allocation import Budget, allocate
from alphalloc.errors import InfeasibleBudgetError, InvalidBudgetError


def test_a_bare_number_counts_experts() -> None:
    assert allocate([3.0] * 4, 20) == allocate([3.0] * 4, Budget.experts(20)) == allocate([3.0] * 4, np.int64(20))


@pytest.mark.parametrize(("mean", "total"), [(5, 160), (2.5, 80), (1, 32), (4.6875, 150), (150 / 32, 150)])
def test_experts_per_layer(mean: float, total: int) -> None:
    assert Budget.experts_per_layer(mean).total_experts(32) == total


def test_thirds_are_exact_enough() -> None:
    assert Budget.experts_per_layer(10 / 3).total_experts(30) == 100


def test_a_mean_that_gives_no_whole_number_names_the_nearest() -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"150\.4 experts.*4\.6875 \(150 experts\) and 4\.71875 \(151 experts\)"
    ):
        Budget.experts_per_layer(4.7).total_experts(32)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (True, "found the boolean True"),
        (160.0, r"must be a whole number, found 160\.0 \(float\)"),
        (math.nan, "must be a whole number, found nan"),
        (math.inf, "must be a whole number, found inf"),
        ("160", r"found '160' \(str\)"),
        (None, "found None"),
        ([160], r"found \[160\]"),
        (0, "between 1 and 1000000000, found 0"),
        (-5, "found -5"),
        (10**9 + 1, "found 1000000001"),
        pytest.param(10**5000, "found a number of 16610 bits", id="huge"),
    ],
)
@pytest.mark.timeout(5)
def test_what_is_no_budget(bad, match: str) -> None:
    with pytest.raises(InvalidBudgetError, match=match):
        allocate([3.0] * 4, bad)


@pytest.mark.parametrize("bad", [True, math.nan, math.inf, 0, -1, "5", None])
def test_what_is_no_mean(bad) -> None:
    with pytest.raises(InvalidBudgetError, match="experts per layer must be a positive number"):
        allocate([3.0] * 4, Budget.experts_per_layer(bad))


def test_budgets_out_of_reach_say_both_numbers() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"17 experts is below 32 layers x min_experts 1 = 32: raise"):
        allocate([3.0] * 32, 17)
    with pytest.raises(InfeasibleBudgetError, match=r"200 experts is above 32 layers x max_experts 6 = 192: lower"):
        allocate([3.0] * 32, 200, max_experts=6)
