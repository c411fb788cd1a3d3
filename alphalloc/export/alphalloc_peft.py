"""``alphalloc-peft``: the adapter_config.json of our MoE-LoRA, the whole schedule included."""

from __future__ import annotations

from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.documents import pretty_json
from alphalloc.errors import AdapterError
from alphalloc.export.options import Export, ExportOptions, layer_ranks, refuse_modules, tidy


def moe_lora_fields(schedule: ExpertSchedule, options: ExportOptions) -> dict[str, Any]:
    """Return the arguments of ``alphalloc.peft.MoELoraConfig``.

    Raises AdapterError for schedules with counts by module, or with ranks that differ between layers.
    """
    refuse_modules(schedule, "our MoE-LoRA")
    ranks = {
        rank for layer, rank in zip(schedule.layers, layer_ranks(schedule, options), strict=True) if layer.num_experts
    }
    if len(ranks) > 1:
        raise AdapterError(
            f"our MoE-LoRA has one rank for all experts, this schedule has {sorted(ranks)}; export it as plain LoRA "
            "with 'peft', or allocate experts instead of ranks"
        )
    if not ranks:
        raise AdapterError("no layer has experts: there is nothing to export")
    fields: dict[str, Any] = {
        "r": ranks.pop(),
        "lora_alpha": tidy(options.lora_alpha),
        "lora_dropout": options.lora_dropout,
        "num_experts": list(schedule.num_experts),
        "top_k": list(schedule.top_k),
        "schedule": schedule.document(),
    }
    targets = options.targets_for(schedule)
    return fields if targets is None else {**fields, "target_modules": targets}


def export_alphalloc_peft(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return an adapter_config.json that ``MoELoraConfig.from_pretrained`` reads once ``alphalloc.peft`` is
    imported."""
    fields = {"peft_type": "ALPHALLOC_MOLORA", "task_type": "CAUSAL_LM", **moe_lora_fields(schedule, options)}
    if schedule.model is not None and schedule.model.hub_id is not None:
        fields["base_model_name_or_path"] = schedule.model.hub_id
        fields["revision"] = schedule.model.commit
    return Export(text=pretty_json(fields), settings=fields)
