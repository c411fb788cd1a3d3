"""``peft``: the keys of peft.LoraConfig, with a rank and a factor a layer."""

from __future__ import annotations

import json
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.export.lora import LoraPlan, lora_plan
from alphalloc.export.options import Export, ExportOptions


def lora_config_fields(plan: LoraPlan, options: ExportOptions) -> dict[str, Any]:
    """Return the arguments of ``peft.LoraConfig``; layers without experts are excluded."""
    fields: dict[str, Any] = {
        "r": plan.rank,
        "lora_alpha": plan.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": "all-linear" if plan.target_modules is None else plan.target_modules,
        "rank_pattern": plan.rank_pattern,
        "alpha_pattern": plan.alpha_pattern,
    }
    if plan.exclude_modules is not None:
        fields["exclude_modules"] = plan.exclude_modules
    return fields


def export_peft(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return ``LoraConfig(**json)`` as JSON: plain LoRA of rank experts x r in each layer, at one scale."""
    fields = lora_config_fields(lora_plan(schedule, options), options)
    return Export(text=json.dumps(fields, indent=2) + "\n", settings=fields)
