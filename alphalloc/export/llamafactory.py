"""``llamafactory``: LLaMA-Factory knows no rank patterns, so it goes on from an untouched adapter that has them."""

from __future__ import annotations

from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.export.alphalloc_peft import moe_lora_fields
from alphalloc.export.lora import lora_plan
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.yaml_text import plain_yaml


def export_llamafactory(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return the lines of its YAML that name the adapter folder; :func:`~alphalloc.export.write_init_adapter` makes it.

    LLaMA-Factory then trains that adapter (``create_new_adapter`` stays false) and does not read its own ``lora_rank``
    and ``lora_target``. A MoE-LoRA folder loads only in a process that has imported ``alphalloc.peft``.
    """
    if options.method == "moe":
        moe_lora_fields(schedule, options)  # refuses now what could not be made
    else:
        lora_plan(schedule, options)
    settings: dict[str, Any] = {
        "finetuning_type": "lora",
        "adapter_name_or_path": options.init_adapter,
        "create_new_adapter": False,
    }
    notes: tuple[str, ...] = (f"make the folder {options.init_adapter!r} from the base model before training",)
    if options.method == "moe":
        notes += (
            'start it as: python -c "import alphalloc.peft; from llamafactory.cli import main; main()" train FILE.yaml',
        )
    return Export(text=plain_yaml(settings), settings=settings, notes=notes)
