"""MoE-LoRA as a PEFT method: importing this module registers it.

>>> from alphalloc.peft import MoELoraConfig  # doctest: +SKIP
>>> model = peft.get_peft_model(model, MoELoraConfig.from_schedule(schedule, r=8, lora_alpha=16))  # doctest: +SKIP

Raises:
    MissingExtraError: PEFT is not installed.
    AdapterError: PEFT is outside the tested range, or the method's name is taken.
"""

from __future__ import annotations

from alphalloc.peft.register import installed_peft

installed_peft()  # before the modules below import names that only a tested PEFT has

from alphalloc.peft import register as _register  # noqa: E402
from alphalloc.peft.callback import MoELoraCallback, callbacks  # noqa: E402
from alphalloc.peft.config import PRESETS, MoELoraConfig  # noqa: E402
from alphalloc.peft.layer import MoELoraLayer  # noqa: E402
from alphalloc.peft.routing import begin_step, record_routing  # noqa: E402
from alphalloc.peft.targets import TARGET_MODULES  # noqa: E402
from alphalloc.peft.tuner import MoELoraModel, named_adapters  # noqa: E402

_register.register(MoELoraConfig, MoELoraModel)

__all__ = [
    "PRESETS",
    "TARGET_MODULES",
    "MoELoraCallback",
    "MoELoraConfig",
    "MoELoraLayer",
    "MoELoraModel",
    "begin_step",
    "callbacks",
    "named_adapters",
    "record_routing",
]
