"""Each expert as a plain LoRA of its own, to look at or to compare: ``expert_0``, ``expert_1``, ..."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from alphalloc.errors import AdapterError
from alphalloc.moe.layer import MoELora
from alphalloc.peft.config import MoELoraConfig
from alphalloc.peft.plain_lora import LoraPair, write_plain_lora
from alphalloc.peft.tuner import named_adapters


def dump_experts(model: nn.Module, folder: str | Path, *, adapter_name: str = "default") -> list[Path]:
    """Write one plain LoRA folder for every expert index and return their paths.

    ``expert_e`` holds expert e, at gate 1, of every linear that has more than e experts. Expert e of one linear has
    nothing to do with expert e of another: each linear numbers its own.

    Args:
        model: the model with the adapter, as ``get_peft_model`` or ``PeftModel.from_pretrained`` made it.
        folder: where the folders go.
        adapter_name: which adapter.

    Raises:
        AdapterError: no such adapter.
    """
    adapters = dict(named_adapters(model, adapter_name))
    if not adapters:
        raise AdapterError(f"the model has no MoE-LoRA adapter named {adapter_name!r}")
    config = cast("MoELoraConfig", model.peft_config[adapter_name])  # type: ignore[index]
    written = []
    for expert in range(max(adapter.num_experts for adapter in adapters.values())):
        pairs = {path: expert_pair(a, expert) for path, a in adapters.items() if expert < a.num_experts}
        target = Path(folder) / f"expert_{expert}"
        write_plain_lora(target, pairs, model, config, adapter_name)
        written.append(target)
    return written


def expert_pair(adapter: MoELora, expert: int) -> LoraPair:
    """Expert ``expert`` of one linear as a plain LoRA of rank ``adapter.expert_rank``."""
    rows = slice(expert * adapter.expert_rank, (expert + 1) * adapter.expert_rank)
    return LoraPair(adapter.experts_a.weight[rows], adapter.experts_b.weight[:, rows], adapter.scaling)
