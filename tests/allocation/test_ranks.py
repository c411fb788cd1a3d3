"""Rank schedules: exact cases, laws, one parameter budget for experts x rank, bad input."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.allocation import (
    Adapter,
    Budget,
    ExpertSchedule,
    ModuleShapes,
    Slot,
    allocate,
    allocate_ranks,
    count_parameters,
    external_scores,
)
from alphalloc.errors import DocumentError, InfeasibleBudgetError, InvalidBudgetError, InvalidParameterError

SIZES = {"q_proj": (64, 64), "v_proj": (64, 16)}


def test_ranks_of_a_small_case() -> None:
    schedule = allocate_ranks([2.0, 4.0], Budget.ranks(48), beta=1, multiple_of=8)
    assert schedule.ranks == (16, 32)
    assert (schedule.num_experts, schedule.top_k) == ((1, 1), (1, 1))
    assert schedule.budget.model_dump(exclude_none=True) == {"unit": "ranks", "total": 48}
    assert schedule.rank_bounds is not None
    assert (schedule.rank_bounds.multiple_of, schedule.rank_bounds.min_rank) == (8, 8)
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


def test_shares_are_those_of_experts() -> None:
    alphas = [2.0, 2.5, 3.1, 4.0]
    ranks = allocate_ranks(alphas, Budget.ranks(40), multiple_of=2).ranks
    assert ranks == tuple(2 * n for n in allocate(alphas, 20).num_experts)
    assert ranks == allocate_ranks(alphas, Budget.ranks_per_layer(10), multiple_of=2).ranks


@given(
    alphas=st.lists(st.floats(1.1, 9), min_size=1, max_size=12),
    step=st.integers(1, 8),
    least=st.integers(1, 20),
    room=st.none() | st.integers(0, 64),
    rounding=st.sampled_from(["largest_remainder", "min1_largest_remainder"]),
    data=st.data(),
)
@settings(max_examples=EXAMPLES)
def test_laws(alphas: list[float], step: int, least: int, room: int | None, rounding: str, data: Any) -> None:
    most = None if room is None else least + room
    low = -(-least // step)
    high = 40 if most is None else most // step
    if low > high:
        with pytest.raises(InvalidParameterError, match=f"no multiple of {step} lies between"):
            allocate_ranks(alphas, Budget.ranks(step), multiple_of=step, min_rank=least, max_rank=most)
        return
    total = step * data.draw(st.integers(len(alphas) * low, len(alphas) * high))
    ranks = allocate_ranks(
        alphas, Budget.ranks(total), multiple_of=step, min_rank=least, max_rank=most, rounding=rounding
    ).ranks
    assert sum(r for r in ranks if r is not None) == total
    assert all(r is not None and r % step == 0 and least <= r and (most is None or r <= most) for r in ranks)
    for i, first in enumerate(alphas):
        for j, second in enumerate(alphas):
            if first < second * (1 - 1e-9):
                assert (ranks[i] or 0) <= (ranks[j] or 0)


@given(limit=st.integers(35_000, 400_000), experts=st.integers(1, 6), step=st.sampled_from([1, 2, 4]))
@settings(max_examples=EXAMPLES)
def test_one_parameter_budget_for_experts_times_rank(limit: int, experts: int, step: int) -> None:
    shapes = ModuleShapes.uniform(6, SIZES)
    alphas = [2.0 + i / 3 for i in range(6)]
    budget = Budget.parameters(limit, Adapter(shapes, None))
    counts = allocate(alphas, 6 * experts)
    schedule = allocate_ranks(alphas, budget, num_experts=counts, multiple_of=step)
    assert schedule.num_experts == counts.num_experts
    spent = count_parameters(schedule, shapes).parameters
    assert schedule.adapter is not None
    assert schedule.adapter.num_parameters == spent <= limit
    more = Budget.ranks(sum(r or 0 for r in schedule.ranks) + step)
    dearer = allocate_ranks(alphas, more, num_experts=counts, multiple_of=step)
    assert count_parameters(dearer, shapes).parameters > limit


def test_layers_without_experts_have_no_rank() -> None:
    counts = ExpertSchedule.from_counts([0, 2, 2])
    schedule = allocate_ranks([2.0, 3.0, 4.0], Budget.ranks(12), num_experts=counts)
    assert schedule.ranks[0] == 0
    assert schedule.num_experts == (0, 2, 2)
    assert sum(schedule.ranks[1:]) == 12  # type: ignore[arg-type]


def test_ranks_by_module() -> None:
    scores = external_scores({Slot(i, "", role): 1.0 + i for i in range(2) for role in SIZES})
    schedule = allocate_ranks(scores, Budget.ranks(24), level="module", beta=1, multiple_of=4)
    assert [entry.rank for entry in schedule.slot_entries] == [4, 4, 8, 8]
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"budget": Budget.ranks(50), "multiple_of": 8}, InfeasibleBudgetError, "no multiple of 8; nearest: 48 and 56"),
        ({"budget": Budget.ranks(8), "min_rank": 4}, InfeasibleBudgetError, "the rank bounds allow 16 to"),
        ({"budget": Budget.ranks(80), "max_rank": 8}, InfeasibleBudgetError, "the rank bounds allow 4 to 32"),
        ({"budget": Budget.ranks(8), "min_rank": 9, "max_rank": 4}, InvalidParameterError, "min_rank 9 and max_rank 4"),
        ({"budget": Budget.ranks(8), "multiple_of": 0}, InvalidParameterError, "multiple_of must be a whole number"),
        ({"budget": 64}, InvalidBudgetError, "needs a budget in ranks, parameters or megabytes"),
        ({"budget": Budget.experts(64)}, InvalidBudgetError, "needs a budget in ranks"),
        ({"budget": Budget.ranks(64), "rule": "explicit:[1,2,3,4]"}, InvalidParameterError, "another rule"),
        ({"budget": Budget.ranks(64), "rounding": "reference"}, InvalidParameterError, "a fair rounding"),
        ({"budget": Budget.ranks(64), "num_experts": [1, 2]}, InvalidParameterError, "expected experts for 4 slots"),
        ({"budget": Budget.ranks(64), "num_experts": [0] * 4}, InvalidParameterError, "at least one of them"),
        ({"budget": Budget.ranks(64), "num_experts": 0}, InvalidParameterError, "num_experts must be a whole number"),
        (
            {"budget": Budget.ranks(64), "num_experts": ExpertSchedule.from_counts([1] * 3)},
            InvalidParameterError,
            "has 3 slots, the scores 4; it has no 3",
        ),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        allocate_ranks([2.0, 3.0, 4.0, 5.0], **options)


def test_a_document_whose_ranks_do_not_fit_is_refused() -> None:
    schedule = allocate_ranks([2.0, 4.0], Budget.ranks(48), multiple_of=8)
    other = [layer.model_copy(update={"rank": 20}) for layer in schedule.layers]
    with pytest.raises(DocumentError, match="the ranks do not add up to the budget of 48"):
        schedule.revised(layers=other)
    with pytest.raises(DocumentError, match="layer 0 has rank 20, outside"):
        schedule.revised(layers=[other[0], other[1].model_copy(update={"rank": 28})])
    with pytest.raises(DocumentError, match="has no rank, but the schedule is one of ranks"):
        schedule.revised(
            layers=[layer.model_copy(update={"rank": None}) for layer in schedule.layers],
            budget=schedule.budget.model_copy(update={"unit": "experts", "total": 2}),
        )
