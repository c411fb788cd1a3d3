"""``mola``: the three comma strings of MoLA's and AlphaLoRA's training scripts."""

from __future__ import annotations

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import AdapterError
from alphalloc.export.options import Export, ExportOptions, layer_ranks, refuse_modules


def export_mola(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return ``--number_experts``, ``--top_k`` and ``--lora_r`` as arguments for a shell, one number a layer.

    Raises AdapterError for what these scripts cannot do: layers without experts, several stacks, counts by module.
    """
    refuse_modules(schedule, "MoLA")
    empty = [slot for slot, count in zip(schedule.slots, schedule.num_experts, strict=True) if not count]
    if empty:
        raise AdapterError(f"MoLA fails on layers without experts, and layer {empty[0]} has none; use min_experts=1")
    if len({layer.stack for layer in schedule.layers}) > 1:
        raise AdapterError("MoLA knows models with one stack of layers only; this schedule has several")
    values = {
        "number_experts": schedule.num_experts,
        "top_k": schedule.top_k,
        "lora_r": layer_ranks(schedule, options),
    }
    settings = {name: ",".join(map(str, numbers)) for name, numbers in values.items()}
    return Export(text=" \\\n".join(f'--{name} "{text}"' for name, text in settings.items()) + "\n", settings=settings)
