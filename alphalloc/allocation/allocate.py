"""Scores and a budget in, a schedule out: the public verb of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphalloc.allocation.assemble import assemble, modules_of_slots, settings_of
from alphalloc.allocation.budget import SIZES, Budget, as_budget
from alphalloc.allocation.confidence import DRAWS, confidence_warning, estimate_confidence, uncertain_alphas
from alphalloc.allocation.constraints import Constraints, SlotBounds, as_constraints, slot_bounds
from alphalloc.allocation.parts import Bounds, BudgetRef, RuleRef
from alphalloc.allocation.references import LayerScores
from alphalloc.allocation.rounding import Rounding, get_rounding, reference
from alphalloc.allocation.rules import Rule, parse_rule
from alphalloc.allocation.schedule import ExpertSchedule
from alphalloc.allocation.scored import ScoredSlots, scored_slots
from alphalloc.allocation.settings import DEFAULT_BETA, checked_bound, checked_upper_bound
from alphalloc.allocation.spending import expert_cost, spend
from alphalloc.errors import InfeasibleBudgetError, InvalidBudgetError, InvalidParameterError

PAPERS: dict[str, dict[str, Any]] = {
    "alphalora": {
        "estimator": "xmin_peak_reference",
        "rule": "alpha_power",
        "beta": 2.5,
        "rounding": "reference",
    }
}
"""The settings under which a paper's released code ran: an estimator, and keywords of :func:`allocate`."""


def allocate(
    alphas: LayerScores | Sequence[float],
    budget: int | Budget,
    *,
    rule: str = "alpha_power",
    beta: float = DEFAULT_BETA,
    rounding: str = "largest_remainder",
    min_experts: int = 1,
    max_experts: int | None = None,
    top_k: int = 2,
    params: Mapping[str, Any] | None = None,
    level: str = "layer",
    target_modules: Sequence[str] | None = None,
    constraints: Constraints | Mapping[str, Any] | None = None,
    confidence: bool = False,
    draws: int = DRAWS,
) -> ExpertSchedule:
    """Return the schedule that gives ``budget`` to the layers by ``rule`` and ``rounding``.

    ``alphas`` is an analysis, another signal (:mod:`alphalloc.allocation.signals`) or one number a layer. Layer
    ``i`` has weight ``w_i`` by the rule (``alpha_i ** beta``), share ``clamp(c * w_i, min_experts, max_experts)``
    and the whole number the rounding makes of it; its ``top_k`` is ``min(top_k, experts)``; 2 is MoLA's and
    AlphaLoRA's.

    ``beta`` belongs to ``alpha_power``; ``params`` holds the settings of other rules (``rule="pattern"``:
    ``params={"pattern": [8, 6, 4, 2]}``, or in short ``rule="pattern:8,6,4,2"``). With ``level`` "module" every
    matrix of ``target_modules`` (default: all that were analysed) gets its own count, and the budget counts all of
    them. ``constraints`` bound, pin, freeze or group single layers or modules. ``confidence`` draws the alphas
    ``draws`` times within their error and records how the schedule moves, at the same number of experts.

    Raises InvalidScoresError, InvalidBudgetError, InfeasibleBudgetError, InvalidParameterError, UnknownRuleError or
    UnknownRoundingError, each at once: nothing here can loop.
    """
    scored = scored_slots(alphas, level, target_modules)
    chosen, inline = parse_rule(rule)
    round_counts = get_rounding(rounding)
    settings = settings_of(chosen, beta, {**inline, **(params or {})})
    low, high = checked_bound("min_experts", min_experts, 0), checked_upper_bound("experts", min_experts, max_experts)
    most_active = checked_bound("top_k", top_k, 1)
    limits = as_constraints(constraints)
    bounds = slot_bounds(scored.slots, low, high, limits)
    plan = _Plan(scored, chosen, settings, round_counts, rounding, bounds)
    asked = as_budget(budget)
    total, counts = _solve(plan, asked, (low, high))
    certainty = None
    if confidence:
        uncertain = uncertain_alphas(scored.matrices if scored.signal is None else ())
        certainty = estimate_confidence(
            uncertain, scored.slots, scored.scores, plan.counter(total), draws=draws, seed=0
        )
    warnings = scored.notes + plan.correction_note(total)
    return assemble(
        scored,
        counts,
        top_k=most_active,
        rule=RuleRef(name=chosen.name, params=settings),
        rounding="none" if chosen.name == "explicit" else rounding,
        bounds=Bounds(min_experts=low, max_experts=high),
        budget=_budget_ref(asked, total),
        adapter=asked.adapter,
        constraints=limits,
        confidence=certainty,
        warnings=warnings if certainty is None else warnings + confidence_warning(certainty),
    )


@dataclass(frozen=True)
class _Plan:
    """All of a call but its budget: scores in, counts out."""

    scored: ScoredSlots
    rule: Rule
    settings: Mapping[str, Any]
    round_counts: Rounding
    rounding: str
    bounds: SlotBounds

    def weights(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Return the rule's weights of these scores."""
        return self.scored.weights(self.rule, self.settings, scores)

    def counts(self, weights: Sequence[float], total: int) -> tuple[int, ...]:
        """Return the rounded counts of these weights."""
        bounds = self.bounds
        return self.round_counts(weights, total, bounds.low, bounds.high_within(total), bounds.groups)

    def counter(self, total: int) -> Callable[[Sequence[float]], tuple[int, ...]]:
        """Return the way from scores to counts at a fixed total."""
        return lambda scores: self.counts(self.weights(scores), total)

    def correction_note(self, total: int) -> tuple[str, ...]:
        """Say where the published correction of rounding ``reference`` bent the schedule."""
        if self.rounding != "reference" or self.rule.name == "explicit":
            return ()
        weights = self.weights(self.scored.scores)
        counts, norm = reference(weights, total), sum(weights)
        off = [count - round(weight / norm * total) for weight, count in zip(weights, counts, strict=True)]
        slot = max(range(len(off)), key=lambda i: abs(off[i]))
        if not off[slot]:
            return ()
        name = self.scored.slots[slot]
        return (f"rounding 'reference': its correction gave layer {name} {off[slot]:+d} experts against its own share",)


def _solve(plan: _Plan, budget: Budget, general: tuple[int, int | None]) -> tuple[int, tuple[int, ...]]:
    """Return the total and the counts."""
    size = len(plan.scored.slots)
    if plan.rule.name == "explicit":
        return _explicit(plan, budget, size)
    if budget.unit in SIZES:
        if plan.rounding == "reference":
            raise InvalidParameterError("rounding 'reference' takes a budget in experts; use 'largest_remainder'")
        limit = budget.parameter_limit()  # checks that there is an adapter
        if budget.adapter is None or budget.adapter.r is None:
            raise InvalidBudgetError(f"a budget in {budget.unit} needs an adapter with a rank r")
        cost = expert_cost(modules_of_slots(plan.scored.slots, budget.adapter.shapes), budget.adapter.r)
        weights = plan.weights(plan.scored.scores)
        gift = plan.rounding.startswith("min1")
        spending = spend(limit, weights, plan.bounds, plan.round_counts, gift, cost)
        return spending.total, spending.counts
    if not budget.unit.startswith("experts"):
        raise InvalidBudgetError(f"a budget in {budget.unit} is one of a rank schedule: use allocate_ranks")
    total = budget.total_experts(size)
    _check_feasible(total, size, plan.bounds, general)
    return total, plan.counts(plan.weights(plan.scored.scores), total)


def _explicit(plan: _Plan, budget: Budget, size: int) -> tuple[int, tuple[int, ...]]:
    counts = tuple(int(weight) for weight in plan.weights(plan.scored.scores))
    total = sum(counts)
    asked = budget.total_experts(size)
    if asked != total:
        raise InfeasibleBudgetError(f"the explicit counts add up to {total} experts, the budget says {asked}")
    for slot, count, lo, hi in zip(plan.scored.slots, counts, plan.bounds.low, plan.bounds.high, strict=True):
        if count < lo or (hi is not None and count > hi):
            raise InfeasibleBudgetError(
                f"explicit count {count} of {slot} is outside its bounds, min {lo} and max {hi}"
            )
    return total, counts


def _check_feasible(total: int, size: int, bounds: SlotBounds, general: tuple[int, int | None]) -> None:
    low, high = sum(bounds.low), sum(bounds.high_within(total))
    if low <= total <= high:
        return
    plain = all(lo == general[0] for lo in bounds.low) and all(hi == general[1] for hi in bounds.high)
    if total < low:
        why = f"{size} layers x min_experts {general[0]} = {low}" if plain else f"the sum of all minima, {low}"
        raise InfeasibleBudgetError(
            f"a budget of {total} experts is below {why}: raise the budget to at least {low} or lower min_experts"
        )
    why = f"{size} layers x max_experts {general[1]} = {high}" if plain else f"the sum of all maxima, {high}"
    raise InfeasibleBudgetError(
        f"a budget of {total} experts is above {why}: lower the budget to at most {high} or raise max_experts"
    )


def _budget_ref(budget: Budget, total: int) -> BudgetRef:
    if budget.unit in SIZES:
        return BudgetRef(unit=budget.unit, total=budget.amount, dtype=budget.dtype)
    return BudgetRef(unit="experts", total=total)
