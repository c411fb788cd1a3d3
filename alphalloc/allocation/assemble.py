"""From counts to the schedule document: the last step of every allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphalloc.allocation.budget import Adapter
from alphalloc.allocation.parameters import count_parameters
from alphalloc.allocation.parts import AdapterRef, LayerAllocation, ModuleAllocation
from alphalloc.allocation.rules import Rule, rule_settings
from alphalloc.allocation.schedule import ExpertSchedule, build_schedule
from alphalloc.allocation.scored import ScoredSlots
from alphalloc.allocation.settings import DEFAULT_BETA
from alphalloc.allocation.shapes import ModuleShape, ModuleShapes
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError


def settings_of(rule: Rule, beta: float, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rule's settings; a ``beta`` other than the default is never ignored in silence."""
    if "beta" in rule.parameters or beta != DEFAULT_BETA:
        return rule_settings(rule, {"beta": beta, **given})
    return rule_settings(rule, given)


def modules_of_slots(slots: Sequence[Slot], shapes: ModuleShapes) -> tuple[tuple[ModuleShape, ...], ...]:
    """Return the modules behind each slot.

    Raises InvalidParameterError when a slot has none or a module belongs to no slot: the shapes are of another model.
    """
    found: dict[Slot, list[ModuleShape]] = {slot: [] for slot in slots}
    for shape in shapes.modules:
        slot = Slot(shape.layer, shape.stack)
        own = slot if slot in found else Slot(shape.layer, shape.stack, shape.role)
        if own not in found:
            raise InvalidParameterError(
                f"the adapter has a module {own}, for which there is no score; its shapes are of another model, or its "
                "target modules are not those analysed"
            )
        found[own].append(shape)
    empty = [slot for slot, modules in found.items() if not modules]
    if empty:
        raise InvalidParameterError(f"the adapter has no module for {empty[0]}, which has a score; check the shapes")
    return tuple(tuple(modules) for modules in found.values())


def assemble(
    scored: ScoredSlots,
    counts: Sequence[int],
    *,
    top_k: int,
    adapter: Adapter | None,
    ranks: Sequence[int] | None = None,
    **fields: Any,
) -> ExpertSchedule:
    """Return the stamped schedule of these counts (and ranks); with an adapter its parameters are counted."""
    entries = [
        {
            "alpha": score if scored.signal is None else None,
            "score": None if scored.signal is None else score,
            "num_experts": count,
            "top_k": min(top_k, count),
            "rank": None if ranks is None else ranks[i],
        }
        for i, (score, count) in enumerate(zip(scored.scores, counts, strict=True))
    ]
    schedule = build_schedule(
        _layers(scored, entries),
        max_top_k=top_k,
        model=scored.model,
        analysis=scored.analysis,
        level=scored.level,
        signal=scored.signal,
        **fields,
    )
    if adapter is None:
        return schedule
    modules_of_slots(scored.slots, adapter.shapes)
    count = count_parameters(schedule, adapter.shapes, r=adapter.r)
    return schedule.revised(
        adapter=AdapterRef(
            r=adapter.r,
            target_modules=adapter.shapes.roles,
            num_parameters=count.parameters,
            mola_parameters=count.mola_parameters,
        )
    )


def _layers(scored: ScoredSlots, entries: Sequence[dict[str, Any]]) -> list[LayerAllocation]:
    if scored.level == "layer":
        return [
            LayerAllocation(layer=slot.layer, stack=slot.stack, **entry)
            for slot, entry in zip(scored.slots, entries, strict=True)
        ]
    grouped: dict[Slot, list[ModuleAllocation]] = {}
    for slot, entry in zip(scored.slots, entries, strict=True):
        grouped.setdefault(Slot(slot.layer, slot.stack), []).append(ModuleAllocation(role=slot.role or "", **entry))
    return [
        LayerAllocation(
            layer=slot.layer,
            stack=slot.stack,
            num_experts=sum(entry.num_experts for entry in modules),
            top_k=max(entry.top_k for entry in modules),
            modules=tuple(modules),
        )
        for slot, modules in grouped.items()
    ]
