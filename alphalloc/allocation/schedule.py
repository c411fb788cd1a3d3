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

from alphalloc.allocation.references import (
    AnalysisRef,
    Count,
    CreatedBy,
    Frozen,
    LayerRef,
    LayerScores,
    ModelRef,
    Number,
    Positive,
)
from alphalloc.documents import content_id, parse_document, pretty_json, read_document, write_atomic
from alphalloc.errors import DocumentError

__all__ = [
    "AnalysisRef",
    "Bounds",
    "BudgetRef",
    "CreatedBy",
    "ExpertSchedule",
    "LayerAllocation",
    "LayerRef",
    "LayerScores",
    "ModelRef",
    "RuleRef",
    "Totals",
    "schedule_schema",
]

KIND: Final = "LoRAExpertSchedule"
SCHEMA_VERSION: Final = "1.0"
ID_PREFIX = "al_"
NOT_HASHED = ("id", "created_by", "warnings")


class LayerAllocation(Frozen):
    """What one layer gets. ``alpha`` is the exponent behind the decision, null where there was none."""

    layer: Count
    stack: str = ""
    alpha: Number | None = None
    num_experts: Count
    top_k: Count


class RuleRef(Frozen):
    """The rule and its settings."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class BudgetRef(Frozen):
    """The budget: ``total`` in ``unit``."""

    unit: str = "experts"
    total: Count


class Bounds(Frozen):
    """The least and the most experts a layer may get; no upper bound when ``max_experts`` is null."""

    min_experts: Count = 1
    max_experts: Count | None = None


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


class ExpertSchedule(Frozen):
    """How many experts, and how many active ones a token, each layer gets, and why.

    Built by :func:`alphalloc.allocation.allocate` or, by hand, with :meth:`from_counts`. Without an ``id`` it is
    stamped with that of its content; with one, the two must agree.
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
    layers: tuple[LayerAllocation, ...] = Field(min_length=1)
    totals: Totals
    warnings: tuple[str, ...] = ()

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Experts of each layer, in order."""
        return tuple(layer.num_experts for layer in self.layers)

    @property
    def top_k(self) -> tuple[int, ...]:
        """Active experts a token of each layer: ``min(max_top_k, experts)`` unless written by hand."""
        return tuple(layer.top_k for layer in self.layers)

    @property
    def alphas(self) -> tuple[float | None, ...]:
        """The alpha of each layer, None where there was none."""
        return tuple(layer.alpha for layer in self.layers)

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
        counts = [_whole(count, f"num_experts of layer {i}") for i, count in enumerate(_listed(num_experts))]
        if not counts:
            raise DocumentError("expected the experts of at least one layer, found an empty list")
        if hasattr(top_k, "__index__"):
            most_active = _whole(top_k, "top_k")
            active = [min(most_active, count) for count in counts]
        else:
            active = [_whole(k, f"top_k of layer {i}") for i, k in enumerate(_listed(top_k))]
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

    def document(self) -> dict[str, Any]:
        """Return the document as plain JSON values."""
        return self.model_dump(mode="json")

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
            raw = _edited(raw)
        elif not isinstance(given, str) or not given:
            raise DocumentError(f"{where}: the schedule has no id. {_RESTAMP}")
        elif given == content_id(ID_PREFIX, _hashed(raw)):
            raw.pop("id")  # proven on the raw content, which may hold fields of a newer minor version
        try:
            return cls.model_validate({**raw, "schema_version": SCHEMA_VERSION})
        except ValidationError as exc:
            raise DocumentError(f"{where}: not a valid schedule: {_first_errors(exc)}") from exc

    @model_validator(mode="after")
    def _agree(self) -> ExpertSchedule:
        refs = [(layer.stack, layer.layer) for layer in self.layers]
        if len(set(refs)) != len(refs):
            twice = next(ref for ref in refs if refs.count(ref) > 1)
            raise ValueError(f"layer {twice[1]} of stack {twice[0]!r} is listed twice")
        if self.totals != Totals.of(self.num_experts):
            raise ValueError(
                f"the layers add up to {Totals.of(self.num_experts)}, the totals say {self.totals}. {_RESTAMP}"
            )
        if self.budget.unit == "experts" and self.budget.total != self.totals.num_experts:
            raise ValueError(
                f"the layers have {self.totals.num_experts} experts, the budget says {self.budget.total}. {_RESTAMP}"
            )
        for layer in self.layers:
            _check_layer(layer, self.bounds, self.max_top_k)
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
) -> ExpertSchedule:
    """Return the stamped schedule of these layers; the budget defaults to what the layers add up to."""
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
        )
    except ValidationError as exc:
        raise DocumentError(f"these layers make no schedule: {_first_errors(exc)}") from exc


def schedule_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a saved schedule."""
    schema = ExpertSchedule.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = KIND
    schema["required"] = sorted({*schema["required"], "kind", "schema_version", "id", "created_by"})
    schema["properties"]["id"] = {"type": "string", "pattern": f"^{ID_PREFIX}[0-9a-f]{{32}}$", "title": "Id"}
    return schema


def _hashed(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in NOT_HASHED}


def _check_layer(layer: LayerAllocation, bounds: Bounds, max_top_k: int) -> None:
    name = f"layer {LayerRef(layer=layer.layer, stack=layer.stack)}"
    most = layer.num_experts if bounds.max_experts is None else bounds.max_experts
    if not bounds.min_experts <= layer.num_experts <= most:
        raise ValueError(f"{name} has {layer.num_experts} experts, outside the bounds {bounds}")
    if not min(1, layer.num_experts) <= layer.top_k <= min(max_top_k, layer.num_experts):
        raise ValueError(
            f"{name}: top_k {layer.top_k} does not fit {layer.num_experts} experts and max_top_k {max_top_k}"
        )


def _edited(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the document as one written by hand, after an edit: without id, its sums taken from its layers."""
    try:
        counts = [_whole(layer["num_experts"], "num_experts") for layer in raw["layers"]]
        totals = Totals.of(counts).model_dump()
        rule = {"name": "explicit", "params": {"edited_from": raw["rule"]["name"]}}
        bounds = {"min_experts": min(counts), "max_experts": None}
    except (KeyError, TypeError, ValueError) as exc:
        raise DocumentError(
            f"cannot re-stamp: layers with num_experts and a rule with a name are needed: {exc}"
        ) from exc
    budget = {"unit": "experts", "total": sum(counts)}
    kept = {key: value for key, value in raw.items() if key != "id"}
    return {**kept, "totals": totals, "rule": rule, "rounding": "none", "bounds": bounds, "budget": budget}


def _listed(values: Any) -> Sequence[Any]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise DocumentError(f"expected a list of whole numbers, found {values!r}")
    return [values[i] for i in range(len(values))]


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise DocumentError(f"{what} must be a whole number and not negative, found {value!r}")
    return int(value.__index__())


def _first_errors(exc: ValidationError) -> str:
    found = [
        f"{'.'.join(str(part) for part in error['loc']) or 'document'}: {error['msg'].removeprefix('Value error, ')}"
        for error in exc.errors(include_url=False, include_context=False)
    ]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
