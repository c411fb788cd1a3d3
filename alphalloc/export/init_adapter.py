"""An untouched adapter as a folder: the way into trainers that only take an adapter's path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import AdapterError, MissingExtraError
from alphalloc.export.alphalloc_peft import moe_lora_fields
from alphalloc.export.lora import lora_plan
from alphalloc.export.options import ExportOptions
from alphalloc.export.peft import lora_config_fields

if TYPE_CHECKING:
    from torch import nn


def write_init_adapter(
    schedule: ExpertSchedule, options: ExportOptions, model: str | nn.Module, folder: str | Path, *, seed: int = 0
) -> Path:
    """Write an adapter that changes nothing yet (B = 0) into ``folder`` and return the folder.

    ``model`` is the base model, or its folder or hub id: then only its config.json is read. ``options.method`` "lora"
    makes a stock PEFT LoRA with a rank a layer, "moe" our MoE-LoRA. ``seed`` is that of A and of the routers.

    Raises AdapterError when the model cannot be read or the schedule does not fit it, MissingExtraError without PEFT.
    """
    try:
        import peft
    except ImportError as exc:
        raise MissingExtraError("an untouched adapter needs PEFT: pip install 'alphalloc[peft]'") from exc
    if options.method == "moe":
        from alphalloc.peft import MoELoraConfig
        from alphalloc.peft.init_adapter import init_adapter

        init_adapter(model, MoELoraConfig(**moe_lora_fields(schedule, options)), folder, seed=seed)
        return Path(folder)
    name = model if isinstance(model, str) else None
    base: Any = _without_weights(model) if isinstance(model, str) else model
    fields = lora_config_fields(lora_plan(schedule, options), options)
    config = peft.LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=name, **fields)
    try:
        adapter = peft.get_peft_model(base, config)
    except ValueError as exc:
        raise AdapterError(f"the schedule does not fit the model: {exc}") from exc
    _fill(adapter, seed)
    adapter.save_pretrained(str(folder))
    return Path(folder)


def _fill(adapter: Any, seed: int) -> None:
    """Give every pair its values: A uniform (Kaiming, a = sqrt 5), B zero, as PEFT does. Meta tensors get memory."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in adapter.modules():
            if not hasattr(module, "lora_A"):
                continue
            for pair in (module.lora_A, module.lora_B):
                for linear in pair.values():
                    if linear.weight.is_meta:
                        linear.to_empty(device="cpu")
            module.reset_lora_parameters("default", True)


def _without_weights(name: str) -> nn.Module:
    """Return the model's modules with parameters of the right shapes and no storage."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        model_config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as exc:
        raise AdapterError(f"expected a model folder or hub id with a config.json, got {name!r}: {exc}") from exc
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(model_config)  # type: ignore[no-untyped-call]
    return model
