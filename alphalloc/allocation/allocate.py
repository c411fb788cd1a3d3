"""Scores and a budget in, a schedule out: the one public verb of this package."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from alphalloc.allocation.budget import Budget, as_budget
from alphalloc.allocation.references import AnalysisRef, LayerRef, LayerScores, ModelRef
from alphalloc.allocation.rounding import get_rounding, reference
from alphalloc.allocation.rules import checked_scores, parse_rule, rule_settings
from alphalloc.allocation.schedule import (
    Bounds,
    BudgetRef,
    ExpertSchedule,
    LayerAllocation,
    RuleRef,
    build_schedule,
)
from alphalloc.errors import InfeasibleBudgetError, InvalidParameterError, InvalidScoresError

DEFAULT_BETA = 2.5  # AlphaLoRA's default (arXiv 2410.10054); published for its own estimator

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
) -> ExpertSchedule:
    """Return the schedule that gives ``budget`` experts to the layers by ``rule`` and ``rounding``.

    ``alphas`` is an analysis or one number a layer. Layer ``i`` has weight ``w_i`` by the rule (``alpha_i ** beta``),
    share ``clamp(c * w_i, min_experts, max_experts)`` and the whole number the rounding makes of it; its ``top_k`` is
    ``min(top_k, experts)``. ``beta`` belongs to ``alpha_power``; ``params`` holds the settings of other rules
    (``rule="pattern"``: ``params={"pattern": [8, 6, 4, 2]}``, or in short ``rule="pattern:8,6,4,2"``). top_k 2 is
    MoLA's and AlphaLoRA's.

    Raises InvalidScoresError, InvalidBudgetError, InfeasibleBudgetError, InvalidParameterError, UnknownRuleError or
    UnknownRoundingError, each at once: nothing here can loop.
    """
    scores, refs, model, analysis, notes = _read_scores(alphas)
    chosen, inline = parse_rule(rule)
    round_shares = get_rounding(rounding)
    settings = rule_settings(chosen, _merged(chosen.parameters, beta, {**inline, **(params or {})}))
    low, high = _bound("min_experts", min_experts, 0), _upper_bound(min_experts, max_experts)
    most_active = _bound("top_k", top_k, 1)
    total = as_budget(budget).total_experts(len(scores))
    _check_feasible(total, len(scores), low, high)
    weights = chosen.weights(scores, **settings)
    lows, highs = [low] * len(scores), [total if high is None else high] * len(scores)
    counts = round_shares(weights, total, lows, highs)
    return build_schedule(
        [
            LayerAllocation(layer=ref.layer, stack=ref.stack, alpha=score, num_experts=n, top_k=min(most_active, n))
            for ref, score, n in zip(refs, scores, counts, strict=True)
        ],
        rule=RuleRef(name=chosen.name, params=settings),
        rounding=rounding,
        bounds=Bounds(min_experts=low, max_experts=high),
        max_top_k=most_active,
        model=model,
        analysis=analysis,
        budget=BudgetRef(unit="experts", total=total),
        warnings=(*notes, *_correction_note(rounding, weights, total)),
    )


Scores = tuple[tuple[float, ...], tuple[LayerRef, ...], ModelRef | None, AnalysisRef | None, tuple[str, ...]]


def _read_scores(alphas: LayerScores | Sequence[float]) -> Scores:
    if isinstance(alphas, LayerScores):
        scores, refs = checked_scores(alphas.per_layer), tuple(alphas.layer_refs)
        if len(scores) != len(refs):
            raise InvalidScoresError(f"the analysis has {len(scores)} alphas for {len(refs)} layers")
        return scores, refs, alphas.model_ref, alphas.analysis_ref, tuple(alphas.notes)
    scores = checked_scores(alphas)
    return scores, tuple(LayerRef(layer=i) for i in range(len(scores))), None, None, ()


def _merged(known: Mapping[str, Any], beta: float, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rule's settings; a ``beta`` other than the default is never ignored in silence."""
    if "beta" in known:
        return {"beta": beta, **given}
    if beta != DEFAULT_BETA:
        return {"beta": beta, **given}  # refused by name in rule_settings
    return dict(given)


def _bound(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        raise InvalidParameterError(f"{name} must be a whole number of at least {least}, found {value!r}")
    return operator.index(value)


def _upper_bound(min_experts: int, max_experts: int | None) -> int | None:
    if max_experts is None:
        return None
    high = _bound("max_experts", max_experts, 1)
    if high < min_experts:
        raise InvalidParameterError(
            f"min_experts {min_experts} and max_experts {max_experts} contradict: the minimum must not be larger"
        )
    return high


def _check_feasible(total: int, layers: int, low: int, high: int | None) -> None:
    if total < layers * low:
        raise InfeasibleBudgetError(
            f"a budget of {total} experts is below {layers} layers x min_experts {low} = {layers * low}: "
            f"raise the budget to at least {layers * low} or lower min_experts"
        )
    if high is not None and total > layers * high:
        raise InfeasibleBudgetError(
            f"a budget of {total} experts is above {layers} layers x max_experts {high} = {layers * high}: "
            f"lower the budget to at most {layers * high} or raise max_experts"
        )


def _correction_note(rounding: str, weights: Sequence[float], total: int) -> tuple[str, ...]:
    """Say where the published correction of rounding ``reference`` bent the schedule."""
    if rounding != "reference":
        return ()
    counts = reference(weights, total)
    shares = [weight * total / sum(weights) for weight in weights]
    off = [(layer, count - round(share)) for layer, (count, share) in enumerate(zip(counts, shares, strict=True))]
    layer, moved = max(off, key=lambda pair: abs(pair[1]))
    if not moved:
        return ()
    return (f"rounding 'reference': its correction gave layer {layer} {moved:+d} experts against its own share",)
