"""Constraints: against exhaustive search, with every law, and everything that contradicts."""

from __future__ import annotations

from typing import Any

import allocation_brute as brute
import allocation_naive as naive
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.allocation import RULES, Constraints, ExpertSchedule, Slot, allocate, external_scores
from alphalloc.allocation.constraints import slot_bounds
from alphalloc.allocation.grouped import common_weights, grouped_remainder
from alphalloc.allocation.rounding import ROUNDINGS
from alphalloc.allocation.slots import select
from alphalloc.errors import DocumentError, InfeasibleBudgetError, InvalidParameterError

SLOTS = [Slot(i) for i in range(8)]
FAIR = ["largest_remainder", "min1_largest_remainder"]


@st.composite
def grouped_problems(draw: st.DrawFn) -> tuple:
    """Weights, a total, bounds that are equal within groups, and the groups."""
    size = draw(st.integers(2, 6))
    weights = draw(st.lists(st.floats(0.05, 20), min_size=size, max_size=size))
    order = draw(st.permutations(range(size)))
    groups = []
    while len(order) >= 2 and draw(st.booleans()):
        taken = draw(st.integers(2, min(4, len(order))))
        groups.append(tuple(sorted(order[:taken])))
        order = order[taken:]
    if not groups:
        groups = [tuple(sorted(order[:2]))]
    low = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    high = [lo + draw(st.integers(0, 5)) for lo in low]
    for members in groups:
        for i in members:
            low[i], high[i] = low[members[0]], high[members[0]]
    return weights, draw(st.integers(sum(low), sum(high))), low, high, groups


@st.composite
def constrained_calls(draw: st.DrawFn) -> dict[str, Any]:
    """A call of allocate with constraints that do not contradict each other."""
    size = draw(st.integers(4, 10))
    alphas = draw(st.lists(st.floats(1.1, 9), min_size=size, max_size=size))
    roles = st.sampled_from(["free", "free", "pinned", "frozen", "min", "max", "group"])
    kinds = draw(st.lists(roles, min_size=size, max_size=size))
    least = draw(st.integers(1, 2))
    constraints: dict[str, Any] = {"pinned": {}, "frozen": [], "min_experts": {}, "max_experts": {}, "groups": []}
    group = []
    for i, kind in enumerate(kinds):
        if kind == "pinned":
            constraints["pinned"][i] = draw(st.integers(1, 6))
        elif kind == "frozen":
            constraints["frozen"].append(i)
        elif kind in ("min", "max"):
            constraints[f"{kind}_experts"][i] = draw(st.integers(1, 4))
        elif kind == "group":
            group.append(str(i))
    if len(group) > 1:
        constraints["groups"].append(group)
    rules = [name for name in RULES if name not in ("pattern", "explicit")]
    return {
        "alphas": alphas,
        "budget": draw(st.integers(size, 60)),
        "rule": draw(st.sampled_from(rules)),
        "rounding": draw(st.sampled_from(FAIR)),
        "min_experts": least,
        "constraints": {name: value for name, value in constraints.items() if value},
    }


# Exact cases.


def test_one_of_each() -> None:
    schedule = allocate(
        [3.0] * 8,
        40,
        constraints={"pinned": {0: 2}, "frozen": ["7"], "min_experts": {"1": 9}, "max_experts": {"2-3": 3}},
    )
    assert schedule.num_experts == (2, 9, 3, 3, 8, 8, 7, 0)
    assert schedule.top_k == (2,) * 7 + (0,)
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


def test_a_group_shares_a_count() -> None:
    schedule = allocate([2.0, 4.0, 6.0], 14, beta=1, constraints={"groups": [["0", "2"]]})
    # The group weighs 4 a layer, as layer 1 does: 14 / 3 each, and only even numbers can go to two layers.
    assert schedule.num_experts == (5, 4, 5)


def test_own_bounds_replace_the_general_ones() -> None:
    limits = slot_bounds(SLOTS, 2, 5, Constraints(max_experts={"0": 1}, min_experts={"1": 7}))
    assert (limits.low[0], limits.high[0]) == (1, 1)
    assert (limits.low[1], limits.high[1]) == (7, 7)
    assert (limits.low[2], limits.high[2]) == (2, 5)


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("3", [3]),
        (3, [3]),
        ("2-4", [2, 3, 4, 9, 10, 11]),  # of every stack
        ("encoder.1", [8]),
        ("encoder", [8, 9, 10]),
        ("q_proj", [9, 11]),
        ("2.q_proj", [9, 11]),
        ("decoder.2.q_proj", [11]),
        ("encoder.2.q_proj", [9]),
        ("encoder.q_proj", [9]),
        ("encoder.1-2", [8, 9, 10]),
        ("attention.output.dense", [10]),
        ("encoder.2.attention.output.dense", [10]),
    ],
)
def test_selectors(selector: str | int, found: list[int]) -> None:
    slots = [
        *SLOTS,
        Slot(1, "encoder", "k_proj"),
        Slot(2, "encoder", "q_proj"),
        Slot(2, "encoder", "attention.output.dense"),
        Slot(2, "decoder", "q_proj"),
    ]
    assert list(select(selector, slots)) == found


# Laws and exhaustive search.


@given(problem=grouped_problems())
@settings(max_examples=EXAMPLES)
def test_groups_against_every_vector(problem: tuple) -> None:
    weights, total, low, high, groups = problem
    nearest = brute.least_distance(*problem)
    if nearest is None:
        with pytest.raises(InfeasibleBudgetError, match=f"add up to {total} experts; the nearest totals"):
            grouped_remainder(weights, total, low, high, groups)
        return
    counts = grouped_remainder(weights, total, low, high, groups)
    assert counts in set(brute.feasible(total, low, high, groups))
    shares = naive.shares(common_weights(weights, groups), total, low, high)
    assert brute.distance(counts, shares) == nearest


@given(call=constrained_calls())
@settings(max_examples=EXAMPLES)
def test_every_constraint_holds_or_is_refused_by_name(call: dict[str, Any]) -> None:
    try:
        schedule = allocate(**call)
    except (InfeasibleBudgetError, InvalidParameterError):
        return
    counts, limits = schedule.num_experts, call["constraints"]
    assert sum(counts) == call["budget"]
    for i, count in limits.get("pinned", {}).items():
        assert counts[i] == count
    assert all(counts[i] == 0 for i in limits.get("frozen", []))
    assert all(counts[i] >= n for i, n in limits.get("min_experts", {}).items())
    assert all(counts[i] <= n for i, n in limits.get("max_experts", {}).items())
    for members in limits.get("groups", []):
        assert len({counts[int(i)] for i in members}) == 1
    free = set(range(len(counts))) - {int(i) for names in limits.values() for name in names for i in _flat(name)}
    assert all(counts[i] >= call["min_experts"] for i in free)
    if call["rule"] == "alpha_power":  # the order holds among layers that no constraint touches
        for i in free:
            for j in free:
                if call["alphas"][i] < call["alphas"][j] * (1 - 1e-9):
                    assert counts[i] <= counts[j]
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


def _flat(name: Any) -> list[int]:
    return [int(part) for part in name] if isinstance(name, (list, tuple)) else [int(name)]


@given(call=constrained_calls())
@settings(max_examples=EXAMPLES)
def test_what_is_refused_as_infeasible_is_infeasible(call: dict[str, Any]) -> None:
    """Whatever allocate refuses, no vector satisfies; whatever it returns is nearest to the shares."""
    call = {**call, "rounding": "largest_remainder", "alphas": call["alphas"][:5], "budget": min(call["budget"], 14)}
    size = len(call["alphas"])
    limits = {
        name: [v for v in value if max(_flat(v)) < size]
        if isinstance(value, list)
        else {k: v for k, v in value.items() if int(k) < size}
        for name, value in call["constraints"].items()
    }
    call["constraints"] = {name: value for name, value in limits.items() if value}
    bounds = slot_bounds([Slot(i) for i in range(size)], call["min_experts"], None, _as(call["constraints"]))
    high = bounds.high_within(call["budget"])
    possible = set(brute.feasible(call["budget"], bounds.low, high, bounds.groups))
    try:
        counts = allocate(**call).num_experts
    except InfeasibleBudgetError:
        assert not possible
    else:
        assert counts in possible


def _as(value: dict[str, Any]) -> Constraints | None:
    from alphalloc.allocation.constraints import as_constraints

    return as_constraints(value)


def test_groups_of_one_size_are_the_largest_remainder() -> None:
    weights, low, high = [1.0, 1.0, 3.0, 3.0], [0] * 4, [99] * 4
    pairs = grouped_remainder(weights, 10, low, high, [(0, 1), (2, 3)])
    alone = ROUNDINGS["largest_remainder"]([1.0, 3.0], 5, [0] * 2, [99] * 2, ())
    assert pairs == (alone[0], alone[0], alone[1], alone[1])


# What contradicts.


@pytest.mark.parametrize(
    ("constraints", "match"),
    [
        ({"pinned": {"9": 3}}, "'9' names no layer; there are: layers 0-7"),
        ({"frozen": ["q_proj"]}, "'q_proj' names no layer"),
        ({"pinned": {"1": 3, "0-2": 4}}, "1 is fixed twice, to 3 and to 4"),
        ({"pinned": {"1": 3}, "frozen": ["1"]}, "1 is fixed twice, to 3 and to 0"),
        ({"pinned": {"1": 3}, "min_experts": {"1": 4}}, "fixed to 3 experts, outside its own bounds min 4"),
        ({"min_experts": {"1": 4}, "max_experts": {"1": 3}}, "1: min 4 and max 3 contradict"),
        ({"groups": [["1", "2"], ["2", "3"]]}, "2 is in two groups"),
        ({"groups": [["1", "2"]], "pinned": {"1": 3, "2": 4}}, "group 1, 2 has no common count: min 4, max 3"),
        ({"pin": {"1": 3}}, "no constraint is called 'pin'; there are: min_experts, max_experts, pinned"),
        ({"pinned": {"1": -3}}, r"constraints: pinned\.1: .* found -3"),
        ({"pinned": {"1": 2.5}}, r"constraints: pinned\.1: "),
        ({"frozen": "7"}, "constraints: frozen"),
        ([], "constraints must be an object"),
    ],
)
def test_contradictions(constraints: Any, match: str) -> None:
    with pytest.raises(InvalidParameterError, match=match):
        allocate([3.0] * 8, 40, constraints=constraints)


def test_infeasible_totals_name_the_nearest() -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"below the sum of all minima, 47: raise the budget to at least 47"
    ):
        allocate([3.0] * 8, 40, constraints={"min_experts": {"0": 40}})
    with pytest.raises(InfeasibleBudgetError, match="above the sum of all maxima, 16: lower the budget to at most 16"):
        allocate([3.0] * 8, 40, constraints={"max_experts": {"0-7": 2}})
    with pytest.raises(
        InfeasibleBudgetError, match="add up to 7 experts; the nearest totals that are possible: 6 and 8"
    ):
        allocate([3.0, 2.0], 7, constraints={"groups": [["0", "1"]]})


def test_reference_knows_no_groups() -> None:
    with pytest.raises(InvalidParameterError, match="'reference' knows no groups"):
        allocate([3.0, 2.0], 8, rounding="reference", constraints={"groups": [["0", "1"]]})


def test_roles_are_bounded_where_modules_have_counts() -> None:
    scores = external_scores({Slot(i, "", role): 1.0 + i for i in range(3) for role in ("q_proj", "v_proj")})
    schedule = allocate(scores, 20, level="module", constraints={"max_experts": {"q_proj": 2}, "frozen": ["0.v_proj"]})
    by_role = {str(slot): entry.num_experts for slot, entry in zip(schedule.slots, schedule.slot_entries, strict=True)}
    assert [by_role[f"{i}.q_proj"] for i in range(3)] == [1, 2, 2]
    assert by_role["0.v_proj"] == 0
    assert sum(by_role.values()) == 20


def test_a_schedule_that_breaks_its_constraints_is_refused() -> None:
    schedule = allocate([3.0] * 4, 12, constraints={"groups": [["0", "1"]], "pinned": {"3": 3}})
    layers = [
        layer.model_copy(update={"num_experts": n}) for layer, n in zip(schedule.layers, (2, 4, 3, 3), strict=True)
    ]
    totals = schedule.totals.model_copy(update={"fewest_experts": 2, "most_experts": 4})
    with pytest.raises(DocumentError, match="the group of 0, 1 does not share a count"):
        schedule.revised(layers=layers, totals=totals)
