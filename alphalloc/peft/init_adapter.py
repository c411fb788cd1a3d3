"""An untouched adapter as a folder: the way into trainers that take an adapter's path and no ``peft_config``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from alphalloc.errors import AdapterError
from alphalloc.peft.config import MoELoraConfig
from alphalloc.peft.tuner import named_adapters


def init_adapter(model: str | nn.Module, config: MoELoraConfig, folder: str | Path, *, seed: int = 0) -> PeftModel:
    """Save an adapter that changes nothing yet (B = 0) to ``folder`` and return the model that carries it.

    Args:
        model: the base model, or its path or hub id: then only its config.json is read and no weight allocated.
        config: the adapter; ``task_type`` None is taken as ``CAUSAL_LM`` when a path or id was given.
        folder: where the adapter goes.
        seed: of A and of the routers.

    Raises:
        AdapterError: the model's configuration cannot be read, or the adapter does not fit the model.
    """
    if isinstance(model, str):
        if config.modules_to_save:
            raise AdapterError(
                f"modules_to_save={config.modules_to_save} needs the model's weights; load the model and pass it"
            )
        config.task_type = config.task_type or "CAUSAL_LM"
        config.base_model_name_or_path = model
        model = _without_weights(model)
    peft_model: Any = get_peft_model(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, adapter in named_adapters(peft_model, "default"):
            if adapter.experts_a.weight.is_meta:
                adapter.to_empty(device="cpu")
            adapter.reset_parameters()
    peft_model.save_pretrained(str(folder))
    return peft_model  # type: ignore[no-any-return]


def _without_weights(name: str) -> nn.Module:
    """The model's modules with parameters of the right shapes and no storage."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        model_config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as exc:
        raise AdapterError(f"expected a model folder or hub id with a config.json, got {name!r}: {exc}") from exc
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(model_config)  # type: ignore[no-untyped-call]
    return model
