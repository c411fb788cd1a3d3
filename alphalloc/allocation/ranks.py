"""Rank schedules: the same shares, mapped to LoRA ranks instead of numbers of experts.

For plain LoRA (one adapter a module) the ranks differ by layer. With experts given as well, experts x rank are bought
with one parameter budget: ``E`` comes from a schedule or is one number, ``r`` from the shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphalloc.allocation.assemble import assemble, modules_of_slots, settings_of
from alphalloc.allocation.budget import SIZES, Budget
from alphalloc.allocation.constraints import Constraints, SlotBounds, as_constraints, slot_bounds
from alphalloc.allocation.parameters import module_parameters
from alphalloc.allocation.parts import Bounds, BudgetRef, RankBounds, RuleRef
from alphalloc.allocation.references import LayerScores
from alphalloc.allocation.rounding import Rounding, get_rounding
from alphalloc.allocation.rules import parse_rule
from alphalloc.allocation.schedule import ExpertSchedule
from alphalloc.allocation.scored import ScoredSlots, scored_slots
from alphalloc.allocation.settings import DEFAULT_BETA, checked_bound, checked_upper_bound
from alphalloc.allocation.shapes import ModuleShape
from alphalloc.allocation.spending import Cost, spend
from alphalloc.errors import InfeasibleBudgetError, InvalidBudgetError, InvalidParameterError


def allocate_ranks(
    alphas: LayerScores | Sequence[float],
    budget: Budget,
    *,
    num_experts: int | Sequence[int] | ExpertSchedule = 1,
    rule: str = "alpha_power",
    beta: float = DEFAULT_BETA,
    rounding: str = "largest_remainder",
    multiple_of: int = 1,
    min_rank: int | None = None,
    max_rank: int | None = None,
    top_k: int = 2,
    params: Mapping[str, Any] | None = None,
    level: str = "layer",
    target_modules: Sequence[str] | None = None,
) -> ExpertSchedule:
    """Return a schedule whose layers (or modules) differ in rank.

    The shares are those of :func:`alphalloc.allocation.allocate`; a slot's rank is a multiple of ``multiple_of``
    between ``min_rank`` (default: one multiple) and ``max_rank``. The budget is ``Budget.ranks``,
    ``Budget.ranks_per_layer``, ``Budget.parameters`` or ``Budget.megabytes``. ``num_experts`` is one number for all
    slots, one a slot, or a schedule; slots without experts get rank 0.

    Raises the errors of :func:`alphalloc.allocation.allocate`; a total of ranks that is not a multiple is
    infeasible, and the nearest ones are named.
    """
    scored = scored_slots(alphas, level, target_modules)
    chosen, inline = parse_rule(rule)
    if chosen.name == "explicit" or rounding == "reference":
        raise InvalidParameterError(
            "ranks are allocated by shares: choose another rule than 'explicit' and a fair rounding"
        )
    settings = settings_of(chosen, beta, {**inline, **(params or {})})
    step = checked_bound("multiple_of", multiple_of, 1)
    low = checked_bound("min_rank", step if min_rank is None else min_rank, 1)
    high = checked_upper_bound("rank", low, max_rank)
    experts = _experts(num_experts, scored)
    bounds = _unit_bounds(scored, experts, step, low, high)
    weights = scored.weights(chosen, settings, scored.scores)
    units = _units(weights, budget, bounds, rounding, get_rounding(rounding), scored, experts, step)
    ranks = [step * n for n in units]
    least, most = min(experts), max(experts)
    return assemble(
        scored,
        experts,
        ranks=ranks,
        top_k=checked_bound("top_k", top_k, 1),
        rule=RuleRef(name=chosen.name, params=settings),
        rounding=rounding,
        bounds=Bounds(min_experts=least, max_experts=most),
        rank_bounds=RankBounds(multiple_of=step, min_rank=step * -(-low // step), max_rank=high),
        budget=_budget_ref(budget, sum(ranks)),
        adapter=budget.adapter,
        warnings=scored.notes,
    )


def _experts(given: int | Sequence[int] | ExpertSchedule, scored: ScoredSlots) -> list[int]:
    """Return the experts of each slot."""
    if isinstance(given, ExpertSchedule):
        known = dict(zip(given.slots, given.slot_entries, strict=True))
        missing = [slot for slot in scored.slots if slot not in known]
        if missing or len(known) != len(scored.slots):
            raise InvalidParameterError(
                f"the schedule of experts has {len(known)} slots, the scores {len(scored.slots)}"
                + (f"; it has no {missing[0]}" if missing else "")
            )
        return [known[slot].num_experts for slot in scored.slots]
    if isinstance(given, Sequence):
        experts = [checked_bound(f"num_experts of {slot}", n, 0) for slot, n in zip(scored.slots, given, strict=False)]
        if len(given) != len(scored.slots) or not any(experts):
            raise InvalidParameterError(
                f"expected experts for {len(scored.slots)} slots, at least one of them, found {list(given)}"
            )
        return experts
    return [checked_bound("num_experts", given, 1)] * len(scored.slots)


def _unit_bounds(scored: ScoredSlots, experts: Sequence[int], step: int, low: int, high: int | None) -> SlotBounds:
    """Return the bounds of each slot in multiples; slots without experts get none."""
    least, most = -(-low // step), None if high is None else high // step
    if most is not None and least > most:
        raise InvalidParameterError(f"no multiple of {step} lies between min_rank {low} and max_rank {high}")
    frozen = tuple(str(slot) for slot, n in zip(scored.slots, experts, strict=True) if n == 0)
    limits: Constraints | None = as_constraints({"frozen": frozen}) if frozen else None
    return slot_bounds(scored.slots, least, most, limits)


def _units(
    weights: Sequence[float],
    budget: Budget,
    bounds: SlotBounds,
    rounding: str,
    round_counts: Rounding,
    scored: ScoredSlots,
    experts: Sequence[int],
    step: int,
) -> tuple[int, ...]:
    if not isinstance(budget, Budget) or budget.unit.startswith("experts"):
        raise InvalidBudgetError("a rank schedule needs a budget in ranks, parameters or megabytes: Budget.ranks(256)")
    if budget.unit in SIZES:
        limit = budget.parameter_limit()
        assert budget.adapter is not None  # parameter_limit has checked it
        cost = _rank_cost(modules_of_slots(scored.slots, budget.adapter.shapes), experts, step)
        return spend(limit, weights, bounds, round_counts, rounding.startswith("min1"), cost).counts
    total = budget.total_experts(len(scored.slots))
    below = total // step
    if total % step:
        raise InfeasibleBudgetError(
            f"a total of {total} ranks is no multiple of {step}; nearest: {below * step} and {(below + 1) * step}"
        )
    least, most = sum(bounds.low) * step, sum(bounds.high_within(below)) * step
    if not least <= total <= most:
        raise InfeasibleBudgetError(
            f"a total of {total} ranks is out of reach: the rank bounds allow {least} to {most}"
        )
    return round_counts(weights, below, bounds.low, bounds.high_within(below), ())


def _rank_cost(modules: Sequence[Sequence[ModuleShape]], experts: Sequence[int], step: int) -> Cost:
    return lambda slot, units: sum(module_parameters(shape, experts[slot], units * step) for shape in modules[slot])


def _budget_ref(budget: Budget, total: int) -> BudgetRef:
    if budget.unit in SIZES:
        return BudgetRef(unit=budget.unit, total=budget.amount, dtype=budget.dtype)
    return BudgetRef(unit="ranks", total=total)
