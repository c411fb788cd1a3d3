"""From an allocation request to its schedule: the library's own verb, and where the alphas come from."""

from __future__ import annotations

from collections.abc import Sequence

from alphalloc import ModelAlphas
from alphalloc.allocation import Budget, ExpertSchedule, allocate

from .schemas import AllocationRequest, MeanBudget

INLINE_LAYERS = 128  # so many take a few milliseconds; larger questions must not hold up the others


def schedule_of(question: AllocationRequest, scores: Sequence[float] | ModelAlphas) -> ExpertSchedule:
    """Return the schedule that the library gives for the same question. Raises an AllocationError."""
    budget = question.budget
    return allocate(
        scores,
        Budget.experts_per_layer(budget.per_layer_mean) if isinstance(budget, MeanBudget) else budget.total,
        rule=question.method,
        rounding=question.rounding,
        min_experts=question.bounds.min,
        max_experts=question.bounds.max,
        top_k=question.top_k,
        params=question.params,
        confidence=question.confidence,
    )


def is_quick(question: AllocationRequest, scores: Sequence[float] | ModelAlphas) -> bool:
    """Whether the schedule is made in a few milliseconds, so that a thread would cost more than it saves."""
    layers = len(scores.layers) if isinstance(scores, ModelAlphas) else len(scores)
    return not question.confidence and layers <= INLINE_LAYERS
