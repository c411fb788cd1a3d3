"""What must hold between the parts of a schedule; each function raises ValueError with the first thing that does
not."""

from __future__ import annotations

from collections.abc import Sequence

from alphalloc.allocation.constraints import Constraints, slot_bounds
from alphalloc.allocation.parts import Bounds, LayerAllocation, Level, ModuleAllocation, RankBounds
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError

Entries = Sequence[LayerAllocation | ModuleAllocation]


def check_modules(level: Level, layers: Sequence[LayerAllocation]) -> None:
    """With level "module" every layer is the sum of its modules; else there are none. No layer is listed twice."""
    seen = set()
    for layer in layers:
        if (layer.stack, layer.layer) in seen:
            raise ValueError(f"layer {layer.layer} of stack {layer.stack!r} is listed twice")
        seen.add((layer.stack, layer.layer))
        if level == "layer" and not layer.modules:
            continue
        name = f"layer {Slot(layer.layer, layer.stack)}"
        if level == "layer":
            raise ValueError(f"{name} has modules, but the level of the schedule is 'layer'")
        roles = [module.role for module in layer.modules]
        if len(set(roles)) != len(roles) or not roles:
            raise ValueError(f"{name}: expected one entry for each of its modules, found {roles}")
        if layer.num_experts != sum(module.num_experts for module in layer.modules):
            raise ValueError(f"{name} has {layer.num_experts} experts, but its modules add up to another number")
        if layer.top_k != max(module.top_k for module in layer.modules):
            raise ValueError(f"{name}: top_k {layer.top_k} is not the largest of its modules")


def check_bounds(
    slots: Sequence[Slot], entries: Entries, bounds: Bounds, constraints: Constraints | None, max_top_k: int
) -> None:
    """Counts lie within the bounds and constraints, groups share theirs, and ``1 <= top_k <= experts`` where any
    are."""
    try:
        limits = slot_bounds(slots, bounds.min_experts, bounds.max_experts, constraints)
    except InvalidParameterError as exc:
        raise ValueError(f"constraints: {exc}") from exc
    for slot, entry, low, high in zip(slots, entries, limits.low, limits.high, strict=True):
        if not low <= entry.num_experts <= (entry.num_experts if high is None else high):
            raise ValueError(
                f"{_name(slot)} has {entry.num_experts} experts, outside its bounds, min {low} and max {high}"
            )
        if not min(1, entry.num_experts) <= entry.top_k <= min(max_top_k, entry.num_experts):
            raise ValueError(
                f"{_name(slot)}: top_k {entry.top_k} does not fit {entry.num_experts} experts and max_top_k {max_top_k}"
            )
    for members in limits.groups:
        if len({entries[i].num_experts for i in members}) > 1:
            raise ValueError(f"the group of {', '.join(str(slots[i]) for i in members)} does not share a count")


def check_ranks(slots: Sequence[Slot], entries: Entries, bounds: RankBounds | None) -> None:
    """Ranks are positive where there are experts, and within the rank bounds where there are any."""
    for slot, entry in zip(slots, entries, strict=True):
        rank = entry.rank
        if rank is None:
            if bounds is not None:
                raise ValueError(f"{_name(slot)} has no rank, but the schedule is one of ranks")
            continue
        if rank == 0 and entry.num_experts:
            raise ValueError(f"{_name(slot)} has rank 0 and {entry.num_experts} experts; a frozen one has 0 experts")
        if bounds is None or rank == 0:
            continue
        most = rank if bounds.max_rank is None else bounds.max_rank
        if rank % bounds.multiple_of or not bounds.min_rank <= rank <= most:
            raise ValueError(f"{_name(slot)} has rank {rank}, outside {bounds}")


def _name(slot: Slot) -> str:
    return f"{'layer' if slot.role is None else 'module'} {slot}"
