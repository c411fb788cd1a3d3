"""``mixlora`` and ``moe-peft``: JSON of trainers that have one number of experts for all layers."""

from __future__ import annotations

import json
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import AdapterError
from alphalloc.export.options import Export, ExportOptions, layer_ranks, refuse_modules, tidy

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def export_mixlora(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return MixLoRA's adapter_config.json (arXiv 2404.15159)."""
    common, notes = _common(schedule, options, "MixLoRA")
    fields = {
        "peft_type": "MIXLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if schedule.model is None else schedule.model.hub_id,
        "bias": "none",
        "routing_strategy": "mixtral",
        "target_modules": list(options.targets_for(schedule) or _LLAMA),
        **common,
    }
    return Export(text=json.dumps(fields, indent=2) + "\n", settings=fields, notes=notes)


def export_moe_peft(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return one entry of the ``lora`` list in a MoE-PEFT configuration, with routing strategy "mola"."""
    common, notes = _common(schedule, options, "MoE-PEFT")
    targets = options.targets_for(schedule) or _LLAMA
    fields = {"name": "alphalloc", "routing_strategy": "mola", "target_modules": dict.fromkeys(targets, True), **common}
    return Export(text=json.dumps(fields, indent=2) + "\n", settings=fields, notes=notes)


def _common(schedule: ExpertSchedule, options: ExportOptions, target: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the shared fields; AdapterError for a schedule that is not uniform, unless it may be averaged."""
    refuse_modules(schedule, target)
    experts, notes_experts = _one(schedule.num_experts, "experts", options, target)
    top_k, notes_top_k = _one(schedule.top_k, "top_k", options, target)
    rank, notes_rank = _one(tuple(layer_ranks(schedule, options)), "ranks", options, target)
    fields = {
        "r": rank,
        "lora_alpha": tidy(options.lora_alpha),
        "lora_dropout": float(options.lora_dropout),
        "num_experts": experts,
        "top_k": min(top_k, experts),
    }
    return fields, notes_experts + notes_top_k + notes_rank


def _one(values: tuple[int, ...], what: str, options: ExportOptions, target: str) -> tuple[int, tuple[str, ...]]:
    if len(set(values)) == 1:
        return max(1, values[0]), ()
    if not options.average:
        raise AdapterError(
            f"{target} has one number of {what} for all layers, this schedule has {min(values)} to {max(values)}; use "
            "rule 'uniform', another target, or average=True (--average) to write the rounded mean"
        )
    mean = sum(values) / len(values)
    one = max(1, round(mean))
    return one, (
        f"{target}: {what} differ by layer ({min(values)} to {max(values)}); wrote the mean, {one}, everywhere",
    )
