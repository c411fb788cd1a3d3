"""``axolotl``: its keys for plain LoRA with a rank a layer."""

from __future__ import annotations

from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import AdapterError
from alphalloc.export.lora import lora_plan
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.yaml_text import plain_yaml

_KEYS = (
    "lora_target_linear",
    "lora_target_modules",
    "lora_rank_pattern",
    "lora_alpha_pattern",
    "peft_layers_to_transform",
    "lora_model_dir",  # its patterns would win
)


def export_axolotl(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return ``adapter: lora`` with ``lora_rank_pattern`` and ``lora_alpha_pattern``, as axolotl 0.19 reads them.

    Axolotl takes whole factors only. Raises AdapterError when the scale gives others, for method "moe", and for frozen
    modules or frozen layers of one stack among several, which its keys cannot express.
    """
    if options.method == "moe":
        raise AdapterError(
            "axolotl cannot load our MoE-LoRA by configuration alone; use 'trl', 'ms-swift' or 'llamafactory', or "
            "method 'lora'"
        )
    plan = lora_plan(schedule, options)
    factors = [plan.lora_alpha, *plan.alpha_pattern.values()]
    if any(not isinstance(factor, int) for factor in factors):
        raise AdapterError(
            f"axolotl takes whole numbers for alpha, and lora_alpha {options.lora_alpha} over rank "
            f"{options.rank_for(schedule)} gives {next(f for f in factors if not isinstance(f, int))}; choose a "
            "lora_alpha that is a multiple of the rank"
        )
    settings: dict[str, Any] = {
        "adapter": "lora",
        "lora_r": plan.rank,
        "lora_alpha": plan.lora_alpha,
        "lora_dropout": options.lora_dropout,
    }
    if plan.target_modules is None:
        settings["lora_target_linear"] = True
    else:
        settings["lora_target_modules"] = plan.target_modules
    if plan.rank_pattern:
        settings.update(lora_rank_pattern=plan.rank_pattern, lora_alpha_pattern=plan.alpha_pattern)
    if plan.frozen:
        settings["peft_layers_to_transform"] = _adapted_layers(schedule)
    return Export(
        text=plain_yaml(settings),
        settings=settings,
        stale=tuple(key for key in _KEYS if key not in settings),
        keep={"adapter": ("qlora",)},
    )


def _adapted_layers(schedule: ExpertSchedule) -> list[int]:
    if schedule.level == "module" or len({layer.stack for layer in schedule.layers}) > 1:
        raise AdapterError("axolotl can leave out whole layers of a single stack only; export to 'peft' instead")
    return [layer.layer for layer in schedule.layers if layer.num_experts]
