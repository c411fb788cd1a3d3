"""A schedule as plain LoRA: one low-rank pair a module, of rank experts x r, at the scale that every expert has.

PEFT looks a module's rank up by patterns: the first key for which ``(.*\\.)?(key)`` matches the whole path. Keys
here name the list of blocks and the index with escaped dots, ``layers\\.3\\..*``, so that layer 3 is not also layer
13 or 30.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from alphalloc.allocation import ExpertSchedule, LayerAllocation, ModuleAllocation, Slot
from alphalloc.errors import AdapterError
from alphalloc.export.options import ExportOptions, tidy

BLOCK_LISTS = ("layers", "h", "layer", "block", "blocks")  # Llama/OPT/NeoX, GPT-2/Falcon, BERT, T5, vision models


@dataclass(frozen=True)
class LoraPlan:
    """Plain LoRA by pattern: ``rank`` and ``lora_alpha`` where no key matches, ``frozen`` slots without any adapter.

    ``target_modules`` None means all linears.
    """

    rank: int
    lora_alpha: int | float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int | float]
    target_modules: list[str] | None
    frozen: tuple[Slot, ...]
    exclude_modules: str | None


def lora_plan(schedule: ExpertSchedule, options: ExportOptions) -> LoraPlan:
    """Return ``schedule`` as plain LoRA.

    Raises AdapterError when nothing is left to adapt, or when ``options.module_paths`` are given and a key matches no
    module or modules of more than one list of blocks.
    """
    default = options.rank_for(schedule)
    entries = list(zip(schedule.slots, schedule.slot_entries, strict=True))
    ranks = {slot: _rank(entry, default) for slot, entry in entries}
    adapted = {slot: rank for slot, rank in ranks.items() if rank}
    if not adapted:
        raise AdapterError("no layer has experts: there is nothing to export")
    block_list = _block_list(schedule, options)
    keys = {slot: slot_key(slot, block_list) for slot in ranks}
    if options.module_paths:
        check_keys(keys, options.module_paths)
    rank = _commonest(adapted.values())
    scale = options.lora_alpha / default
    frozen = tuple(slot for slot, own in ranks.items() if not own)
    return LoraPlan(
        rank=rank,
        lora_alpha=tidy(scale * rank),
        rank_pattern={keys[slot]: own for slot, own in adapted.items() if own != rank},
        alpha_pattern={keys[slot]: tidy(scale * own) for slot, own in adapted.items() if own != rank},
        target_modules=options.targets_for(schedule),
        frozen=frozen,
        exclude_modules=rf"(.*\.)?({'|'.join(keys[slot] for slot in frozen)})" if frozen else None,
    )


def slot_key(slot: Slot, block_list: str) -> str:
    """Return the pattern that matches all modules of a slot and nothing else.

    ``layers\\.3\\..*`` for a layer, ``encoder\\.layers\\.3\\..*`` in a named stack, ``layers\\.3\\.(.*\\.)?q_proj``
    for a module; a role with dots is the whole path inside the block.
    """
    parts = [part for part in (slot.stack, block_list, str(slot.layer)) if part]
    block = r"\.".join(re.escape(part) for part in parts)
    if slot.role is None:
        return rf"{block}\..*"
    return rf"{block}\.{re.escape(slot.role)}" if "." in slot.role else rf"{block}\.(.*\.)?{re.escape(slot.role)}"


def check_keys(keys: dict[Slot, str], module_paths: Sequence[str]) -> None:
    """Raise AdapterError unless each key matches modules, and those of one list of blocks only."""
    for slot, key in keys.items():
        pattern = re.compile(rf"(.*\.)?({key})$")
        found = [match for path in module_paths if (match := pattern.match(path))]
        if not found:
            raise AdapterError(
                f"no module of the model matches {key!r}, the key of {slot}; the schedule is for a model of another "
                f"depth or with other names, such as {module_paths[0]!r}"
            )
        lists = sorted({match[1] or "" for match in found})
        if len(lists) > 1:
            raise AdapterError(
                f"{key!r}, the key of {slot}, matches modules under {lists[0]!r} and under {lists[1]!r}: the schedule "
                "does not name its stack; analyse the part of the model that is adapted, or give block_list in full"
            )


def _rank(entry: LayerAllocation | ModuleAllocation, default: int) -> int:
    return entry.num_experts * (default if entry.rank is None else entry.rank)


def _commonest(ranks: Iterable[int]) -> int:
    """Return the most frequent rank, the smallest of equals: it needs no pattern."""
    counted = Counter(ranks)
    return min(counted, key=lambda rank: (-counted[rank], rank))


def _block_list(schedule: ExpertSchedule, options: ExportOptions) -> str:
    if options.block_list is not None:
        return options.block_list
    layers = {str(slot.layer) for slot in schedule.slots}
    found = []
    for path in options.module_paths:
        parts = path.split(".")
        found += [a for a, b in pairwise(parts) if b in layers and a in BLOCK_LISTS][:1]
    return Counter(found).most_common(1)[0][0] if found else BLOCK_LISTS[0]
