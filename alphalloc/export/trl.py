"""``trl``: the ``peft_config`` that TRL's trainers take, as Python."""

from __future__ import annotations

from alphalloc.allocation import ExpertSchedule
from alphalloc.export.alphalloc_peft import moe_lora_fields
from alphalloc.export.lora import lora_plan
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.peft import lora_config_fields
from alphalloc.export.python_text import keywords


def export_trl(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return a snippet that defines ``peft_config``; its use is in the last line."""
    if options.method == "moe":
        fields = moe_lora_fields(schedule, options)
        del fields["schedule"]  # a page of numbers; its id is enough to tell where they come from
        fields["schedule"] = schedule.id
        head, name = "from alphalloc.peft import MoELoraConfig\n", "MoELoraConfig"
    else:
        fields = lora_config_fields(lora_plan(schedule, options), options)
        head, name = "from peft import LoraConfig\n", "LoraConfig"
    body = keywords({"task_type": "CAUSAL_LM", **fields})
    use = "# trainer = SFTTrainer(model=..., args=..., train_dataset=..., peft_config=peft_config)\n"
    return Export(text=f"{head}\npeft_config = {name}(\n{body})\n\n{use}")
