"""What ``alphalloc allocate`` was asked for beyond rule and rounding: units, ranks, signals, constraints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphalloc.cli.options import AllocationOptions
from alphalloc.documents import MAX_DOCUMENT_BYTES, read_text
from alphalloc.errors import InvalidBudgetError, InvalidParameterError

if TYPE_CHECKING:
    from alphalloc.allocation import Budget, ExpertSchedule, ModuleShapes
    from alphalloc.allocation.signals import SignalScores
    from alphalloc.alphas import ModelAlphas


@dataclass(frozen=True)
class BudgetOptions:
    """The budget in one unit, and the adapter it buys; None where nothing was said."""

    experts_per_layer: float | None = None
    parameters: int | None = None
    megabytes: float | None = None
    dtype: str | None = None
    ranks: int | None = None
    ranks_per_layer: float | None = None
    rank: int | None = None
    targets: tuple[str, ...] | None = None

    def budget(self, experts: int | None, shapes: ModuleShapes, *, in_ranks: bool) -> Budget:
        """Return the budget; five experts a layer when none was given. Raises InvalidBudgetError for two of them."""
        from alphalloc.allocation import Adapter, Budget

        r = None if in_ranks else self.rank or 8
        sized = self.parameters is not None or self.megabytes is not None
        wanted = sized or self.rank is not None or self.targets is not None
        adapter = Adapter.on(shapes, r=r, target_modules=self.targets) if wanted else None
        given = {
            "experts": experts,
            "experts_per_layer": self.experts_per_layer,
            "parameters": self.parameters,
            "megabytes": self.megabytes,
            "ranks": self.ranks,
            "ranks_per_layer": self.ranks_per_layer,
        }
        named = {unit: amount for unit, amount in given.items() if amount is not None}
        if len(named) > 1:
            options = " and ".join(f"--{unit.replace('_', '-')}" for unit in named)
            raise InvalidBudgetError(f"expected one budget, found {options}; keep one")
        if self.dtype is not None and self.megabytes is None:
            raise InvalidBudgetError("--dtype belongs to --megabytes; give both or neither")
        if not named:
            return Budget.experts_per_layer(adapter=adapter)
        unit, amount = next(iter(named.items()))
        return Budget(amount, unit, adapter, (self.dtype or "float32") if unit == "megabytes" else None)


@dataclass(frozen=True)
class RankOptions:
    """How ranks may vary, where ranks are what is allocated."""

    vary_rank: bool = False
    experts_each: int | None = None
    multiple_of: int | None = None
    min_rank: int | None = None
    max_rank: int | None = None

    def given(self) -> dict[str, Any]:
        """Return the keywords of ``allocate_ranks`` that were given."""
        values = {
            "num_experts": self.experts_each,
            "multiple_of": self.multiple_of,
            "min_rank": self.min_rank,
            "max_rank": self.max_rank,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class SignalOptions:
    """What decides instead of alpha: a metric column or a file of scores."""

    metric: str | None = None
    scores: Path | None = None
    direction: str | None = None

    def read(self, alphas: ModelAlphas) -> ModelAlphas | SignalScores:
        """Return the scores to allocate by."""
        from alphalloc.allocation import metric_scores, read_scores

        direction: Any = self.direction
        if self.metric is not None and self.scores is not None:
            raise InvalidParameterError("expected one signal, found --metric and --scores; keep one")
        if self.scores is not None:
            signal = read_scores(self.scores, direction=direction, expected=alphas.layer_refs)
            return replace(signal, model_ref=alphas.model_ref)
        if self.metric is not None:
            if direction is None:
                raise InvalidParameterError("--metric needs --direction: does a higher or a lower one get more?")
            return metric_scores(alphas, self.metric, direction=direction)
        if direction is not None:
            raise InvalidParameterError("--direction belongs to --metric or --scores; for alpha, higher gets more")
        return alphas


@dataclass(frozen=True)
class AllocationRequest:
    """A whole call of ``alphalloc allocate``."""

    options: AllocationOptions
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    ranks: RankOptions = field(default_factory=RankOptions)
    signal: SignalOptions = field(default_factory=SignalOptions)
    level: str = "layer"
    params: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, Any] | None = None
    confidence: bool = False
    draws: int | None = None

    def schedule(self, alphas: ModelAlphas) -> ExpertSchedule:
        """Return the schedule for ``alphas``."""
        from alphalloc.allocation import ModuleShapes, allocate, allocate_ranks

        scores = self.signal.read(alphas)
        shapes = ModuleShapes.of_matrices(alphas.matrices)
        budget = self.budget.budget(self.options.experts, shapes, in_ranks=self._in_ranks)
        common: dict[str, Any] = {"params": self.params, "level": self.level}
        if self.level == "module":
            common["target_modules"] = self.budget.targets
        given = self.options.given()
        if self._in_ranks:
            self._refuse_in_ranks(given)
            return allocate_ranks(scores, budget, **common, **given, **self.ranks.given())
        if self.ranks.given():
            raise InvalidParameterError("rank bounds and --experts-each need --ranks, --ranks-per-layer or --vary-rank")
        if self.confidence:
            given |= {"confidence": True} | ({} if self.draws is None else {"draws": self.draws})
        return allocate(scores, budget, constraints=self.constraints, **common, **given)

    @property
    def _in_ranks(self) -> bool:
        return self.ranks.vary_rank or self.budget.ranks is not None or self.budget.ranks_per_layer is not None

    def _refuse_in_ranks(self, given: Mapping[str, Any]) -> None:
        refused = [f"--{name.replace('_', '-')}" for name in ("min_experts", "max_experts") if name in given]
        refused += ["constraints"] if self.constraints else []
        refused += ["--confidence"] if self.confidence else []
        refused += ["--rank"] if self.budget.rank is not None else []
        if refused:
            raise InvalidParameterError(f"{refused[0]} is not for ranks; bound them by --min-rank and --max-rank")


def rule_params(texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings in ``KEY=VALUE`` texts; values are JSON (numbers, lists). Raises InvalidParameterError."""
    return {key: _json_value(key, value) for key, value in _pairs(texts, "--param")}


def constraint_fields(
    file: Path | None, pin: Sequence[str], freeze: Sequence[str], group: Sequence[str]
) -> dict[str, Any] | None:
    """Return the constraints of a JSON file and of the options, or None when there are none."""
    fields = {} if file is None else _constraint_file(file)
    if pin:
        fields["pinned"] = {**fields.get("pinned", {}), **{key: _json_value(key, n) for key, n in _pairs(pin, "--pin")}}
    if freeze:
        fields["frozen"] = [*fields.get("frozen", []), *freeze]
    if group:
        fields["groups"] = [*fields.get("groups", []), *(text.split(",") for text in group)]
    return fields or None


def _constraint_file(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(file, MAX_DOCUMENT_BYTES))
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidParameterError(f"--constraints {file}: cannot be read as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidParameterError(f"--constraints {file}: expected a JSON object, found {type(value).__name__}")
    return value


def _pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InvalidParameterError(f"{option} {text!r}: expected KEY=VALUE")
        pairs.append((key, value))
    return pairs


def _json_value(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidParameterError(f"{key}={text}: expected a number or a JSON list") from exc
