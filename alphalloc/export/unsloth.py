"""``unsloth``: the keyword arguments of ``FastLanguageModel.get_peft_model``, as Python."""

from __future__ import annotations

from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import AdapterError
from alphalloc.export.lora import lora_plan
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.python_text import keywords

# What unsloth adapts when nothing is said; it has no "all-linear" for text models.
_DEFAULT_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def export_unsloth(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return the call with rank and alpha patterns, which unsloth hands on to PEFT.

    Raises AdapterError for method "moe" (its kernels know plain LoRA only) and for frozen modules.
    """
    if options.method == "moe":
        raise AdapterError("unsloth's kernels know plain LoRA only; use method 'lora'")
    plan = lora_plan(schedule, options)
    fields: dict[str, Any] = {
        "r": plan.rank,
        "lora_alpha": plan.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": plan.target_modules or _DEFAULT_TARGETS,
        "rank_pattern": plan.rank_pattern,
        "alpha_pattern": plan.alpha_pattern,
    }
    if plan.frozen:
        if schedule.level == "module":
            raise AdapterError("unsloth can leave out whole layers only; export to 'peft' instead")
        fields["layers_to_transform"] = [layer.layer for layer in schedule.layers if layer.num_experts]
    text = f"model = FastLanguageModel.get_peft_model(\n    model,\n{keywords(fields)})\n"
    return Export(text=f"from unsloth import FastLanguageModel\n\n{text}", settings=fields)
