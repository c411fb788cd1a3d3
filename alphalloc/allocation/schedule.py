"""The schedule: one versioned JSON document that library, command line, service, trainer and report all speak.

Its id is ``al_`` + 32 hex digits of the SHA-256 of the canonical document without ``id``, ``created_by`` and
``warnings``. Reading checks everything: the totals against the layers, the counts against the bounds, the id against
the content. JSON null stands for a missing number; NaN never occurs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from alphalloc.allocation.checks import check_bounds, check_modules, check_ranks
from alphalloc.allocation.constraints import Constraints
from alphalloc.allocation.handwritten import as_edited, from_strings, listed, validation_message, whole
from alphalloc.allocation.parts import (
    AdapterRef,
    Bounds,
    BudgetRef,
    Confidence,
    LayerAllocation,
    Level,
    ModuleAllocation,
    RankBounds,
    RuleRef,
    SignalRef,
    Totals,
    without_silent,
)
from alphalloc.allocation.references import AnalysisRef, CreatedBy, Frozen, LayerRef, LayerScores, ModelRef, Positive
from alphalloc.allocation.slots import Slot
from alphalloc.documents import content_id, parse_document, pretty_json, read_document, write_atomic
from alphalloc.errors import DocumentError

__all__ = [
    "AdapterRef",
    "AnalysisRef",
    "Bounds",
    "BudgetRef",
    "Confidence",
    "CreatedBy",
    "ExpertSchedule",
    "LayerAllocation",
    "LayerRef",
    "LayerScores",
    "ModelRef",
    "ModuleAllocation",
    "RankBounds",
    "RuleRef",
    "SignalRef",
    "Totals",
]

KIND: Final = "LoRAExpertSchedule"
SCHEMA_VERSION: Final = "1.0"
ID_PREFIX = "al_"
NOT_HASHED = ("id", "created_by", "warnings")


class ExpertSchedule(Frozen):
    """How many experts, and how many active ones a token, each layer gets, and why.

    Built by :func:`alphalloc.allocation.allocate` or :func:`~alphalloc.allocation.allocate_ranks`, or, by hand, with
    :meth:`from_counts`. Without an ``id`` it is stamped with that of its content; with one, the two must agree. With
    ``level`` "module" each target module has its own count, in ``layers[i].modules``.
    """

    kind: Literal["LoRAExpertSchedule"] = KIND
    schema_version: Literal["1.0"] = SCHEMA_VERSION
    id: str = ""
    created_by: CreatedBy = Field(default_factory=CreatedBy.current)
    model: ModelRef | None = None
    analysis: AnalysisRef | None = None
    rule: RuleRef
    rounding: str
    budget: BudgetRef
    bounds: Bounds
    max_top_k: Positive
    level: Level = "layer"
    signal: SignalRef | None = None
    constraints: Constraints | None = None
    adapter: AdapterRef | None = None
    rank_bounds: RankBounds | None = None
    confidence: Confidence | None = None
    layers: tuple[LayerAllocation, ...] = Field(min_length=1)
    totals: Totals
    warnings: tuple[str, ...] = ()

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Experts of each layer, in order; with level "module" the sum over its modules."""
        return tuple(layer.num_experts for layer in self.layers)

    @property
    def top_k(self) -> tuple[int, ...]:
        """Active experts a token of each layer: ``min(max_top_k, experts)`` unless written by hand."""
        return tuple(layer.top_k for layer in self.layers)

    @property
    def alphas(self) -> tuple[float | None, ...]:
        """The alpha of each layer, None where there was none."""
        return tuple(layer.alpha for layer in self.layers)

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """The LoRA rank of each layer's experts, None where the trainer's own holds."""
        return tuple(layer.rank for layer in self.layers)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What was given experts: the layers, or their modules."""
        if self.level == "layer":
            return tuple(Slot(layer.layer, layer.stack) for layer in self.layers)
        return tuple(Slot(layer.layer, layer.stack, module.role) for layer in self.layers for module in layer.modules)

    @property
    def slot_entries(self) -> tuple[LayerAllocation | ModuleAllocation, ...]:
        """The entry of each slot, in the order of ``slots``."""
        if self.level == "layer":
            return self.layers
        return tuple(module for layer in self.layers for module in layer.modules)

    @classmethod
    def from_counts(
        cls,
        num_experts: Sequence[int],
        *,
        top_k: int | Sequence[int] = 2,
        model: ModelRef | None = None,
        layer_refs: Sequence[LayerRef] | None = None,
    ) -> ExpertSchedule:
        """Return a schedule written by hand: ``ExpertSchedule.from_counts([3, 5, 4], top_k=2)``.

        ``top_k`` is one number, cut to each layer's experts, or one a layer. Raises DocumentError when the numbers
        do not make a schedule (empty, negative, not whole, more active experts than experts).
        """
        counts = [whole(count, f"num_experts of layer {i}") for i, count in enumerate(listed(num_experts))]
        if not counts:
            raise DocumentError("expected the experts of at least one layer, found an empty list")
        if hasattr(top_k, "__index__"):
            most_active = whole(top_k, "top_k")
            active = [min(most_active, count) for count in counts]
        else:
            active = [whole(k, f"top_k of layer {i}") for i, k in enumerate(listed(top_k))]
            most_active = max(1, *active)
        refs = [LayerRef(layer=i) for i in range(len(counts))] if layer_refs is None else list(layer_refs)
        if not len(counts) == len(active) == len(refs):
            raise DocumentError(
                f"{len(counts)} counts, {len(active)} top_k and {len(refs)} layer references do not match"
            )
        return build_schedule(
            [
                LayerAllocation(layer=ref.layer, stack=ref.stack, num_experts=count, top_k=k)
                for ref, count, k in zip(refs, counts, active, strict=True)
            ],
            rule=RuleRef(name="explicit"),
            rounding="none",
            bounds=Bounds(min_experts=min(counts)),
            max_top_k=most_active,
            model=model,
        )

    @classmethod
    def from_comma_strings(
        cls, num_experts: str, top_k: str | int = 2, lora_r: str | None = None, *, model: ModelRef | None = None
    ) -> ExpertSchedule:
        """Return the schedule in MoLA's and AlphaLoRA's notation: ``from_comma_strings("1,3,5", "1,2,2", "8,8,8")``.

        ``top_k`` is a string of numbers, one a layer, or one number for all, cut to each layer's experts; ``lora_r``
        gives the rank of each layer's experts. Raises DocumentError when a string holds anything but whole numbers or
        their lengths differ.
        """
        counts, active, ranks = from_strings(num_experts, top_k, lora_r)
        schedule = cls.from_counts(counts, top_k=active, model=model)
        if ranks is None:
            return schedule
        return schedule.revised(
            layers=[layer.model_copy(update={"rank": r}) for layer, r in zip(schedule.layers, ranks, strict=True)]
        )

    def revised(self, **changes: Any) -> ExpertSchedule:
        """Return this schedule with other fields, checked and stamped anew. Raises DocumentError if they contradict."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self)(**{**fields, "id": "", **changes})
        except ValidationError as exc:
            raise DocumentError(f"these changes make no schedule: {validation_message(exc)}") from exc

    def document(self) -> dict[str, Any]:
        """Return the document as plain JSON values; optional fields that say nothing are left out."""
        return without_silent(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """Return the document as indented JSON with sorted keys."""
        return pretty_json(self.document())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the document to ``path`` atomically and return the path."""
        return write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, restamp: bool = False) -> ExpertSchedule:
        """Return the schedule saved at ``path``; see :meth:`from_json`."""
        return cls._read(read_document(path, kind=KIND, major=1), str(path), restamp)

    @classmethod
    def from_json(cls, text: str, *, restamp: bool = False) -> ExpertSchedule:
        """Return the schedule in ``text``.

        Raises SchemaVersionError for a newer major version, and DocumentError when a field is missing or malformed,
        when totals and layers disagree or when the content is not what the id was made from. ``restamp=True`` accepts
        content edited by hand: totals, budget and id are made anew and the rule becomes ``explicit``. Fields that a
        newer minor version added are ignored; such a schedule gets the id of what is left.
        """
        return cls._read(parse_document(text, kind=KIND, major=1), "document", restamp)

    @classmethod
    def _read(cls, raw: dict[str, Any], where: str, restamp: bool) -> ExpertSchedule:
        given = raw.get("id")
        if restamp:
            raw = as_edited(raw)
        elif not isinstance(given, str) or not given:
            raise DocumentError(f"{where}: the schedule has no id. {_RESTAMP}")
        elif given == content_id(ID_PREFIX, _hashed(raw)):
            raw.pop("id")  # proven on the raw content, which may hold fields of a newer minor version
        try:
            return cls.model_validate({**raw, "schema_version": SCHEMA_VERSION})
        except ValidationError as exc:
            raise DocumentError(f"{where}: not a valid schedule: {validation_message(exc)}") from exc

    @model_validator(mode="after")
    def _agree(self) -> ExpertSchedule:
        if self.totals != Totals.of(self.num_experts):
            raise ValueError(
                f"the layers add up to {Totals.of(self.num_experts)}, the totals say {self.totals}. {_RESTAMP}"
            )
        if self.budget.unit == "experts" and self.budget.total != self.totals.num_experts:
            raise ValueError(
                f"the layers have {self.totals.num_experts} experts, the budget says {self.budget.total}. {_RESTAMP}"
            )
        if self.budget.unit == "ranks" and self.budget.total != sum(entry.rank or 0 for entry in self.slot_entries):
            raise ValueError(f"the ranks do not add up to the budget of {self.budget.total}. {_RESTAMP}")
        check_modules(self.level, self.layers)
        slots, entries = self.slots, self.slot_entries
        check_bounds(slots, entries, self.bounds, self.constraints, self.max_top_k)
        check_ranks(slots, entries, self.rank_bounds)
        stamp = content_id(ID_PREFIX, _hashed(self.document()))
        if not self.id:
            object.__setattr__(self, "id", stamp)
        elif self.id != stamp:
            raise ValueError(f"the content was edited: its id says {self.id}, the content gives {stamp}. {_RESTAMP}")
        return self


_RESTAMP = "If that is meant, re-stamp it: ExpertSchedule.load(path, restamp=True).save(path)"


def build_schedule(
    layers: Sequence[LayerAllocation],
    *,
    rule: RuleRef,
    rounding: str,
    bounds: Bounds,
    max_top_k: int,
    model: ModelRef | None = None,
    analysis: AnalysisRef | None = None,
    budget: BudgetRef | None = None,
    warnings: Sequence[str] = (),
    **optional: Any,
) -> ExpertSchedule:
    """Return the stamped schedule of these layers; the budget defaults to what the layers add up to.

    ``optional`` holds the fields that only some schedules have.
    """
    counts = [layer.num_experts for layer in layers]
    try:
        return ExpertSchedule(
            model=model,
            analysis=analysis,
            rule=rule,
            rounding=rounding,
            budget=budget or BudgetRef(total=sum(counts)),
            bounds=bounds,
            max_top_k=max_top_k,
            layers=tuple(layers),
            totals=Totals.of(counts),
            warnings=tuple(warnings),
            **optional,
        )
    except ValidationError as exc:
        raise DocumentError(f"these layers make no schedule: {validation_message(exc)}") from exc


def _hashed(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in NOT_HASHED}
