"""The pieces of a schedule document, as small frozen values; :mod:`alphalloc.allocation.schedule` puts them together.

Fields that only some schedules have (a role's own count, a rank, a confidence) are left out of the document where they
say nothing, so a schedule that does not use them has the same content, and the same id, in every minor version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from alphalloc.allocation.references import Count, Frozen, Number, Positive, whole_numbers

Direction = Literal["higher", "lower"]
Level = Literal["layer", "module"]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class RuleRef(Frozen):
    """The rule and its settings."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @field_validator("params")
    @classmethod
    def _whole_numbers(cls, params: dict[str, Any]) -> dict[str, Any]:
        return {name: whole_numbers(value) for name, value in params.items()}


class SignalRef(Frozen):
    """What the scores are when they are not alphas: a metric or an external signal, and who gets more."""

    name: str
    direction: Direction = "higher"
    source: str | None = None


class BudgetRef(Frozen):
    """The budget: ``total`` in ``unit`` (experts, ranks, parameters or megabytes of 10^6 bytes in ``dtype``)."""

    unit: str = "experts"
    total: Count | Annotated[Number, Field(gt=0)]
    dtype: str | None = None

    @field_validator("total")
    @classmethod
    def _whole_number(cls, total: int | float) -> int | float:
        return int(total) if total == int(total) else total


class AdapterRef(Frozen):
    """The adapter a parameter count is for: ``num_parameters`` trainable ones in all.

    ``mola_parameters`` counts a router everywhere, as MoLA's tables do.
    """

    r: Positive | None = None
    target_modules: tuple[str, ...]
    num_parameters: Count
    mola_parameters: Count


class Bounds(Frozen):
    """The least and the most experts a layer may get; no upper bound when ``max_experts`` is null."""

    min_experts: Count = 1
    max_experts: Count | None = None


class RankBounds(Frozen):
    """Ranks are multiples of ``multiple_of`` from ``min_rank`` to ``max_rank``; no upper bound when it is null."""

    multiple_of: Positive = 1
    min_rank: Positive
    max_rank: Positive | None = None


class ModuleAllocation(Frozen):
    """What one target module of a layer gets, where every module has its own count."""

    role: str
    alpha: Number | None = None
    score: Number | None = None
    num_experts: Count
    top_k: Count
    rank: Count | None = None


class LayerAllocation(Frozen):
    """What one layer gets.

    ``alpha`` is the exponent behind the decision, null where there was none; ``score`` the signal, where it was
    another. ``rank`` is the LoRA rank of each expert where the schedule sets it. With ``modules`` each module has
    its own count, ``num_experts`` is their sum and ``top_k`` the largest of theirs.
    """

    layer: Count
    stack: str = ""
    alpha: Number | None = None
    score: Number | None = None
    num_experts: Count
    top_k: Count
    rank: Count | None = None
    modules: tuple[ModuleAllocation, ...] = ()


class Totals(Frozen):
    """Sums over the layers, for readers in a hurry."""

    num_layers: Positive
    num_experts: Count
    fewest_experts: Count
    most_experts: Count

    @classmethod
    def of(cls, counts: Sequence[int]) -> Totals:
        """Return the totals of these counts."""
        return cls(
            num_layers=len(counts), num_experts=sum(counts), fewest_experts=min(counts), most_experts=max(counts)
        )


class ExpertRange(Frozen):
    """The 5 % and 95 % quantile of a slot's experts over the draws; ``role`` where modules are counted on their own."""

    layer: Count
    stack: str = ""
    role: str | None = None
    low: Count
    high: Count


class Confidence(Frozen):
    """How far the estimator's own error moves the schedule: ``changed`` is the share of draws with another one."""

    draws: Positive
    seed: int
    changed: Share
    ranges: tuple[ExpertRange, ...]


# Left out of the document where they hold this value.
SILENT: dict[str, Any] = {
    "level": "layer",
    "signal": None,
    "constraints": None,
    "adapter": None,
    "rank_bounds": None,
    "confidence": None,
}
SILENT_IN_LAYER: dict[str, Any] = {"score": None, "rank": None, "modules": []}
SILENT_IN_BUDGET: dict[str, Any] = {"dtype": None}


def without_silent(document: dict[str, Any]) -> dict[str, Any]:
    """Take the optional fields that say nothing out of a dumped schedule, and return it."""
    _silence(document, SILENT)
    _silence(document["budget"], SILENT_IN_BUDGET)
    for layer in document["layers"]:
        _silence(layer, SILENT_IN_LAYER)
        for module in layer.get("modules", ()):
            _silence(module, SILENT_IN_LAYER)
    return document


def _silence(value: dict[str, Any], silent: dict[str, Any]) -> None:
    for name, nothing in silent.items():
        if name in value and value[name] == nothing:
            del value[name]
