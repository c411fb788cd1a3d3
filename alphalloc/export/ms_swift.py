"""``ms-swift``: a plugin file with a tuner of our own, since its arguments have no rank pattern."""

from __future__ import annotations

from alphalloc.allocation import ExpertSchedule
from alphalloc.export.alphalloc_peft import moe_lora_fields
from alphalloc.export.lora import lora_plan
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.peft import lora_config_fields
from alphalloc.export.python_text import keywords

_PLUGIN = '''"""Use: swift sft --external_plugins {file} --tuner_type alphalloc ..."""

{imports}
from swift.tuner_plugin import PeftTuner, tuners_map


class AlphallocTuner(PeftTuner):
    @staticmethod
    def prepare_model(args, model):
        config = {config}(
            task_type=args.task_type.upper(),
{body}        )
        return get_peft_model(model, config)


tuners_map["alphalloc"] = AlphallocTuner
'''


def export_ms_swift(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return a plugin for ``swift sft --external_plugins FILE --tuner_type alphalloc`` (ms-swift 4)."""
    if options.method == "moe":
        fields = {**moe_lora_fields(schedule, options), "schedule": schedule.id}
        imports, config = "from alphalloc.peft import MoELoraConfig\nfrom peft import get_peft_model", "MoELoraConfig"
    else:
        fields = lora_config_fields(lora_plan(schedule, options), options)
        imports, config = "from peft import LoraConfig, get_peft_model", "LoraConfig"
    body = keywords(fields, indent=12)
    text = _PLUGIN.format(file="alphalloc_plugin.py", imports=imports, config=config, body=body)
    return Export(text=text)
