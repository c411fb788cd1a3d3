"""A schedule against a model, and a schedule against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphalloc.allocation.parts import LayerAllocation, ModuleAllocation
from alphalloc.allocation.schedule import ExpertSchedule
from alphalloc.allocation.shapes import ModuleShapes
from alphalloc.allocation.slots import Slot
from alphalloc.errors import DocumentError

# What a difference of two schedules is traced back to.
_SETTINGS = ("model", "analysis", "signal", "rule", "rounding", "budget", "bounds", "constraints", "max_top_k", "level")


@dataclass(frozen=True)
class SlotDiff:
    """One slot of two schedules; None where one of them does not have it. ``rank`` None: the trainer's own."""

    slot: Slot
    experts: tuple[int | None, int | None]
    top_k: tuple[int | None, int | None]
    rank: tuple[int | None, int | None]

    @property
    def same(self) -> bool:
        """Whether both schedules give the slot the same."""
        return all(first == second for first, second in (self.experts, self.top_k, self.rank))


@dataclass(frozen=True)
class ScheduleDiff:
    """What two schedules do differently.

    ``settings`` maps each field that differs to both values; ``moved`` is the number of experts that would have to move
    from one slot to another, or be added, to turn the first into the second.
    """

    slots: tuple[SlotDiff, ...]
    settings: dict[str, tuple[Any, Any]]
    moved: int

    @property
    def same_allocation(self) -> bool:
        """Whether every slot gets the same, whatever the settings say."""
        return all(slot.same for slot in self.slots)

    @property
    def changed(self) -> tuple[SlotDiff, ...]:
        """The slots that differ."""
        return tuple(slot for slot in self.slots if not slot.same)


def diff_schedules(first: ExpertSchedule, second: ExpertSchedule) -> ScheduleDiff:
    """Return the slots and settings in which two schedules differ, in the order of the first."""
    one, two = _entries(first), _entries(second)
    slots = tuple(_slot_diff(slot, one.get(slot), two.get(slot)) for slot in dict.fromkeys([*one, *two]))
    gained = sum(max(0, (s.experts[1] or 0) - (s.experts[0] or 0)) for s in slots)
    lost = sum(max(0, (s.experts[0] or 0) - (s.experts[1] or 0)) for s in slots)
    a, b = first.document(), second.document()
    settings = {name: (a.get(name), b.get(name)) for name in _SETTINGS if a.get(name) != b.get(name)}
    return ScheduleDiff(slots, settings, max(gained, lost))


def check_against_model(schedule: ExpertSchedule, shapes: ModuleShapes) -> None:
    """Raise DocumentError unless ``schedule`` has exactly the layers, and only modules, of the model with ``shapes``.

    The message says what was found and what to do.
    """
    own = _layers([(slot.layer, slot.stack) for slot in schedule.slots])
    model = _layers([(shape.layer, shape.stack) for shape in shapes.modules])
    if len(own) != len(model) or {stack for _, stack in own} != {stack for _, stack in model}:
        raise DocumentError(
            f"the schedule has {_described(own)}, the model {_described(model)}; "
            "allocate again from this model's alphas"
        )
    missing, extra = [x for x in model if x not in own], [x for x in own if x not in model]
    if missing or extra:
        named = Slot(*(missing or extra)[0])
        where = "only the model has" if missing else "only the schedule has"
        raise DocumentError(f"layer {named}: {where} it; allocate again from this model's alphas")
    known = {(shape.layer, shape.stack, shape.role) for shape in shapes.modules}
    for slot in schedule.slots:
        if slot.role is not None and (slot.layer, slot.stack, slot.role) not in known:
            roles = ", ".join(shapes.roles)
            raise DocumentError(f"the model has no module {slot}; its roles: {roles}")


def _slot_diff(
    slot: Slot, first: LayerAllocation | ModuleAllocation | None, second: LayerAllocation | ModuleAllocation | None
) -> SlotDiff:
    def pair(name: str) -> tuple[int | None, int | None]:
        return getattr(first, name, None), getattr(second, name, None)

    return SlotDiff(slot, pair("num_experts"), pair("top_k"), pair("rank"))


def _entries(schedule: ExpertSchedule) -> dict[Slot, LayerAllocation | ModuleAllocation]:
    return dict(zip(schedule.slots, schedule.slot_entries, strict=True))


def _layers(pairs: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    return list(dict.fromkeys(pairs))


def _described(layers: Sequence[tuple[int, str]]) -> str:
    stacks: dict[str, int] = {}
    for _, stack in layers:
        stacks[stack] = stacks.get(stack, 0) + 1
    return " and ".join(f"{count} layers{f' in {stack!r}' if stack else ''}" for stack, count in stacks.items())
