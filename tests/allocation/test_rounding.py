"""Roundings: exact cases, laws, exhaustive search, the naive re-derivation, published values, bad input."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import allocation_naive as naive
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.allocation.rounding import (
    ROUNDINGS,
    bounded_reference,
    get_rounding,
    largest_remainder,
    min1_largest_remainder,
    reference,
)
from alphalloc.allocation.shares import clamped_shares
from alphalloc.errors import (
    InfeasibleBudgetError,
    InvalidParameterError,
    InvalidScoresError,
    UnknownRoundingError,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "allocation_reference.json").read_text())
RUNS = GOLDEN["runs"]

weights_of_layers = st.floats(min_value=1e-3, max_value=1e3) | st.sampled_from([1.0, 2.0, 3.0, 0.1])


@st.composite
def problems(draw: st.DrawFn, max_layers: int = 12, max_room: int = 9, least: int = 0) -> tuple:
    """Weights, bounds of each slot and a total between the sums of the bounds."""
    size = draw(st.integers(1, max_layers))
    weights = draw(st.lists(weights_of_layers, min_size=size, max_size=size))
    low = draw(st.lists(st.integers(least, 4), min_size=size, max_size=size))
    high = [lo + draw(st.integers(0, max_room)) for lo in low]
    total = draw(st.integers(sum(low), sum(high)))
    return weights, total, low, high


def weights_and_total(run: list) -> tuple[list[float], int]:
    model, total, beta = run[:3]
    return [alpha**beta for alpha in GOLDEN["alphas"][model]], total


# Exact cases.


def test_equal_weights_share_to_within_one() -> None:
    counts = largest_remainder([3.0] * 32, 170, [1] * 32, [170] * 32)
    assert counts == (6,) * 10 + (5,) * 22


def test_ties_go_to_the_larger_weight_then_to_the_lower_index() -> None:
    assert largest_remainder([1.0, 3.0], 2, [0, 0], [2, 2]) == (0, 2)  # shares 1/2 and 3/2
    assert largest_remainder([1.0, 1.0, 1.0], 4, [0] * 3, [4] * 3) == (2, 1, 1)


def test_a_maximum_passes_its_surplus_on_in_proportion() -> None:
    # Without bounds 1, 2, 12; capped at 6 the other nine go 1 : 2.
    assert largest_remainder([1.0, 2.0, 12.0], 15, [0] * 3, [6] * 3) == (3, 6, 6)


def test_min1_is_flatter_than_largest_remainder() -> None:
    assert largest_remainder([1.0, 9.0], 20, [1, 1], [20, 20]) == (2, 18)
    assert min1_largest_remainder([1.0, 9.0], 20, [1, 1], [20, 20]) == (3, 17)


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([3.0**2.5] * 32, 170, [15] + [5] * 31),
        ([3.0**2.5] * 32, 17, [-14] + [1] * 31),
        ([2.0**2.5] + [3.0**2.5] * 31, 16, [0, -14] + [1] * 30),
    ],
)
def test_reference_keeps_the_published_defects(weights: list[float], total: int, expected: list[int]) -> None:
    assert list(reference(weights, total)) == expected


def test_reference_moves_the_whole_difference_to_the_least_deserving_layer() -> None:
    mistral = GOLDEN["alphas"]["mistral-7b@mola_appendixH"]
    counts = reference([alpha**2.5 for alpha in mistral], 80)
    assert counts[:12] == (4, 2, 2, 2, 2, 3, 2, 2, 1, 2, 1, 1)  # layer 0 has the lowest alpha and a share of 0.6


def test_reference_sums_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 7, 8, 9, 32, 100, 127, 128, 129, 300, 1031):
        weights = rng.lognormal(size=size).tolist()
        assert list(reference(weights, 7 * size)) == naive.reference(weights, 7 * size)
    # 2.5 experts each, exactly: every layer rounds to the even 2, and the correction gives layer 0 the other 16.
    assert list(reference([3.1**2.5] * 32, 80)) == [18] + [2] * 31 == naive.reference([3.1**2.5] * 32, 80)


# Laws.


@given(problem=problems(), name=st.sampled_from(["largest_remainder", "min1_largest_remainder"]))
@settings(max_examples=EXAMPLES)
def test_sum_bounds_and_order(problem: tuple, name: str) -> None:
    weights, total, low, high = problem
    if name == "min1_largest_remainder" and not any(low):
        low, high, total = [lo + 1 for lo in low], [hi + 1 for hi in high], total + len(low)
    counts = ROUNDINGS[name](weights, total, low, high)
    assert sum(counts) == total
    assert all(lo <= n <= hi for n, lo, hi in zip(counts, low, high, strict=True))
    for i, first in enumerate(weights):
        for j, second in enumerate(weights):
            if first < second and low[i] <= low[j] and high[i] <= high[j]:
                assert counts[i] <= counts[j]


@given(problem=problems())
@settings(max_examples=EXAMPLES)
def test_less_than_one_from_the_share(problem: tuple) -> None:
    counts = largest_remainder(*problem)
    shares = clamped_shares(*problem).as_fractions()
    assert sum(shares) == problem[1]
    assert all(abs(n - share) < 1 for n, share in zip(counts, shares, strict=True))


@given(problem=problems(), order=st.randoms(use_true_random=False))
@settings(max_examples=EXAMPLES)
def test_sorted_pairs_do_not_depend_on_the_order(problem: tuple, order) -> None:
    weights, total, low, high = problem
    low, high = [min(low)] * len(low), [max(high)] * len(high)
    shuffled = list(weights)
    order.shuffle(shuffled)
    first = largest_remainder(weights, total, low, high)
    second = largest_remainder(shuffled, total, low, high)
    assert sorted(zip(weights, first, strict=True)) == sorted(zip(shuffled, second, strict=True))


@given(problem=problems(), power=st.integers(-40, 40))
@settings(max_examples=EXAMPLES)
def test_the_scale_of_the_weights_does_not_matter(problem: tuple, power: int) -> None:
    weights, total, low, high = problem
    scaled = [math.ldexp(weight, power) for weight in weights]
    assert largest_remainder(scaled, total, low, high) == largest_remainder(weights, total, low, high)


@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200),
    total=st.integers(0, 5000),
)
@settings(max_examples=EXAMPLES)
def test_reference_is_the_loop(weights: list[float], total: int) -> None:
    counts = reference(weights, total)
    assert sum(counts) == total
    assert list(counts) == naive.reference(weights, total)


def test_one_more_expert_can_take_one_from_a_layer() -> None:
    """Why no monotonicity in the total is promised: the Alabama paradox of largest remainders."""
    weights = [6.0, 6.0, 2.0]
    smaller = largest_remainder(weights, 10, [0] * 3, [99] * 3)
    larger = largest_remainder(weights, 11, [0] * 3, [99] * 3)
    assert (smaller, larger) == ((4, 4, 2), (5, 5, 1))


# Exhaustive search and re-derivation.


@given(problem=problems(max_layers=4, max_room=5))
@settings(max_examples=EXAMPLES)
def test_against_every_split_and_every_vector(problem: tuple) -> None:
    _, total, low, high = problem
    shares = naive.shares(*problem)
    assert list(clamped_shares(*problem).as_fractions()) == shares
    counts = largest_remainder(*problem)
    assert list(counts) == naive.largest_remainder(*problem)

    def distance(vector: tuple[int, ...]) -> Fraction:
        return sum((abs(n - share) for n, share in zip(vector, shares, strict=True)), Fraction(0))

    assert distance(counts) == min(distance(vector) for vector in naive.vectors(total, low, high))


# Published values.


@pytest.mark.parametrize("rounding", ["reference", "largest_remainder", "min1_largest_remainder"])
def test_all_352_published_runs(rounding: str) -> None:
    assert len(RUNS) == 352
    column = GOLDEN["columns"].index(rounding)
    for run in RUNS:
        weights, total = weights_and_total(run)
        size = len(weights)
        if rounding == "reference":
            assert list(reference(weights, total)) == run[column] == naive.reference(weights, total)
        elif rounding == "largest_remainder":
            assert list(largest_remainder(weights, total, [0] * size, [total] * size)) == run[column]
        elif run[column] is None:
            with pytest.raises(InfeasibleBudgetError, match=f"a total of {total} is not possible over {size} layers"):
                min1_largest_remainder(weights, total, [1] * size, [max(1, total)] * size)
        else:
            assert list(min1_largest_remainder(weights, total, [1] * size, [total] * size)) == run[column]


# Bad input.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("function", [lambda w: reference(w, 5), lambda w: largest_remainder(w, 5, [0, 0], [5, 5])])
@pytest.mark.timeout(5)
def test_weights_that_are_no_weights(function, bad: float) -> None:
    with pytest.raises(InvalidScoresError, match=r"layer 1: the weight must be .*finite"):
        function([1.0, bad])


@pytest.mark.timeout(5)
def test_reference_refuses_where_the_published_loop_hangs() -> None:
    with pytest.raises(InvalidScoresError, match=r"add up to 0\.0"):
        reference([0.0, 0.0], 5)
    with pytest.raises(InvalidScoresError, match="add up to inf"):
        reference([1e308, 1e308, 1e308], 5)
    with pytest.raises(InvalidScoresError, match="found none"):
        reference([], 5)


def test_bounded_reference_names_the_layer_without_experts() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"layer 0 -14 experts.*Use rounding 'largest_remainder'"):
        bounded_reference([3.0**2.5] * 32, 17, [0] * 32, [17] * 32)
    with pytest.raises(InfeasibleBudgetError, match=r"layer 0 0 experts, outside \[1, 9\].*min_experts=0"):
        bounded_reference([0.1, 3.0, 3.0], 9, [1] * 3, [9] * 3)


def test_bounds_that_contradict() -> None:
    with pytest.raises(InvalidParameterError, match="layer 1: expected 0 <= min <= max, found min 3 and max 2"):
        largest_remainder([1.0, 1.0], 4, [1, 3], [9, 2])
    with pytest.raises(InvalidParameterError, match="2 weights, 1 minima and 2 maxima"):
        largest_remainder([1.0, 1.0], 4, [1], [9, 2])
    with pytest.raises(InvalidParameterError, match="needs min_experts >= 1"):
        min1_largest_remainder([1.0, 1.0], 4, [0, 0], [4, 4])


@pytest.mark.parametrize("total", [1, 7])
def test_totals_out_of_reach_say_what_is_possible(total: int) -> None:
    with pytest.raises(InfeasibleBudgetError, match=f"a total of {total} is not possible over 2 layers.*2 to 6"):
        largest_remainder([1.0, 1.0], total, [1, 1], [3, 3])


def test_unknown_rounding_lists_the_names() -> None:
    with pytest.raises(UnknownRoundingError, match=r"'nearest'.*largest_remainder, min1_largest_remainder, reference"):
        get_rounding("nearest")
