"""From whatever carries scores to slots with one score each: the first step of every allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from alphalloc.allocation.parts import Level, SignalRef
from alphalloc.allocation.references import AnalysisRef, LayerRef, LayerScores, ModelRef
from alphalloc.allocation.rules import Rule, checked_scores
from alphalloc.allocation.signals import module_means, oriented
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError, InvalidScoresError


@dataclass(frozen=True)
class ScoredSlots:
    """The slots of an allocation, their scores and where these come from. ``matrices`` are the analysis' own."""

    slots: tuple[Slot, ...]
    scores: tuple[float, ...]
    level: Level
    signal: SignalRef | None = None
    model: ModelRef | None = None
    analysis: AnalysisRef | None = None
    notes: tuple[str, ...] = ()
    matrices: tuple[Any, ...] = ()

    def weights(self, rule: Rule, settings: Mapping[str, Any], scores: Sequence[float]) -> tuple[float, ...]:
        """Return the weights that ``rule`` gives ``scores``, one a slot.

        Rules over the depth give the modules of a layer the weight of their layer. Raises InvalidScoresError for scores
        that are not finite, or not positive where the rule or alphas need it.
        """
        usable = self._for_rule(rule, scores)
        if self.level == "layer" or rule.uses_scores or rule.name == "explicit":
            return rule.weights(usable, **settings)
        layers = list(dict.fromkeys((slot.stack, slot.layer) for slot in self.slots))
        by_layer = dict(zip(layers, rule.weights([1.0] * len(layers), **settings), strict=True))
        return tuple(by_layer[slot.stack, slot.layer] for slot in self.slots)

    def _for_rule(self, rule: Rule, scores: Sequence[float]) -> tuple[float, ...]:
        """Return ``scores`` as ``rule`` takes them: checked, and turned round where a lower score gets more."""
        if self.signal is None:
            return checked_scores(scores)
        positive = rule.needs_positive
        checked = checked_scores(scores, what=self.signal.name, positive=positive)
        return oriented(checked, self.signal.direction, positive=positive)


def scored_slots(
    alphas: LayerScores | Sequence[float], level: str, target_modules: Sequence[str] | None
) -> ScoredSlots:
    """Return the slots of ``alphas``: its layers, or the modules of these layers.

    Raises InvalidParameterError for an unknown level, target modules without level "module" or roles that do not occur,
    and InvalidScoresError when there is no score for a slot.
    """
    if level not in get_args(Level):
        raise InvalidParameterError(f"level must be 'layer' or 'module', found {level!r}")
    if level == "module":
        return _modules(alphas, target_modules)
    if target_modules is not None:
        raise InvalidParameterError("target_modules choose roles of level 'module'; layers have the analysis' own")
    if not isinstance(alphas, LayerScores):
        scores = checked_scores(alphas)
        return ScoredSlots(tuple(Slot(i) for i in range(len(scores))), scores, "layer")
    refs = tuple(alphas.layer_refs)
    if len(alphas.per_layer) != len(refs):
        raise InvalidScoresError(f"the analysis has {len(alphas.per_layer)} alphas for {len(refs)} layers")
    slots = tuple(Slot(ref.layer, ref.stack) for ref in refs)
    return ScoredSlots(slots, alphas.per_layer, "layer", **_origin(alphas))


def _modules(alphas: Any, target_modules: Sequence[str] | None) -> ScoredSlots:
    values = _module_values(alphas)
    roles = tuple(dict.fromkeys(slot.role for slot in values))
    unknown = [role for role in target_modules or () if role not in roles]
    if unknown or (target_modules is not None and not target_modules):
        raise InvalidParameterError(
            f"no module has the role {unknown[0] if unknown else ''!r}; there are: {', '.join(str(r) for r in roles)}"
        )
    refs: tuple[LayerRef, ...] = tuple(alphas.layer_refs)
    wanted = {(ref.layer, ref.stack): i for i, ref in enumerate(refs)}
    chosen = [
        slot
        for slot in values
        if (slot.layer, slot.stack) in wanted and (target_modules is None or slot.role in target_modules)
    ]
    chosen.sort(key=lambda slot: (wanted[slot.layer, slot.stack], roles.index(slot.role)))
    empty = set(wanted) - {(slot.layer, slot.stack) for slot in chosen}
    if empty:
        layer, stack = min(empty)
        raise InvalidScoresError(f"layer {Slot(layer, stack)} has no module of the chosen roles")
    means = dict(zip(wanted, alphas.per_layer, strict=True))
    gaps = [slot for slot in chosen if values[slot] is None]
    scores = tuple(_or_mean(values[slot], means[slot.layer, slot.stack]) for slot in chosen)
    origin = _origin(alphas)
    if gaps:
        origin["notes"] = (
            *origin["notes"],
            f"{len(gaps)} modules without a score have their layer's mean: {_some(gaps)}",
        )
    return ScoredSlots(tuple(chosen), scores, "module", **origin)


def _module_values(alphas: Any) -> dict[Slot, float | None]:
    """Return one value a module, None where none of its matrices has one."""
    own = getattr(alphas, "per_module", None)
    if own is not None:
        if not own:
            raise InvalidScoresError("level 'module' needs one score a module; these scores only know layers")
        return dict(own)
    matrices = [matrix for matrix in getattr(alphas, "matrices", ()) if matrix.layer >= 0]
    if not matrices:
        raise InvalidScoresError("level 'module' needs an analysis with its matrices, found only one score a layer")
    pairs = [(Slot(matrix.layer, matrix.stack, matrix.role), matrix.alpha) for matrix in matrices]
    means = module_means(pairs)
    return {slot: means.get(slot) for slot, _ in pairs}


def _origin(alphas: Any) -> dict[str, Any]:
    return {
        "signal": getattr(alphas, "signal", None),
        "model": alphas.model_ref,
        "analysis": alphas.analysis_ref,
        "notes": tuple(alphas.notes),
        "matrices": tuple(getattr(alphas, "matrices", ())),
    }


def _or_mean(value: float | None, mean: float) -> float:
    return mean if value is None else value


def _some(slots: Sequence[Slot]) -> str:
    names = ", ".join(str(slot) for slot in slots[:3])
    return names + (", ..." if len(slots) > 3 else "")
