"""Writes a plain LoRA folder that stock PEFT loads: one low-rank pair a linear, of ranks that differ by layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alphalloc.errors import AdapterError
from alphalloc.peft.config import MoELoraConfig
from alphalloc.peft.layer import MoELoraLayer
from alphalloc.peft.register import ADAPTERS


@dataclass(frozen=True)
class LoraPair:
    """One linear's plain LoRA: ``W x + scaling * B (A x)``; A is (r, in), B (out, r)."""

    a_RD: Tensor
    b_OR: Tensor
    scaling: float


def write_plain_lora(
    folder: Path, pairs: Mapping[str, LoraPair], model: nn.Module, config: MoELoraConfig, adapter_name: str
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of a stock LoRA into ``folder``.

    Ranks go into ``rank_pattern`` and factors into ``alpha_pattern``, under keys that match one linear exactly. Modules
    saved in full and trained biases are copied.

    Args:
        pairs: the LoRA of each linear, by its path in the base model.
        model: the PeftModel the adapter sits in, for what is saved beside it.
        config: the adapter's configuration.
        adapter_name: its name.

    Raises:
        AdapterError: no linear at all.
    """
    if not pairs:
        raise AdapterError("no linear is left to write; the adapter has no experts there")
    rank = Counter(pair.a_RD.shape[0] for pair in pairs.values()).most_common(1)[0][0]
    factor = Counter(pair.scaling * pair.a_RD.shape[0] for pair in pairs.values()).most_common(1)[0][0]
    layers = {path: layer for path, layer in _layers(model) if path in pairs}
    lora = LoraConfig(
        r=rank,
        lora_alpha=factor,  # type: ignore[arg-type]  # a float is what PEFT divides by r
        target_modules=_targets(model, list(pairs)),
        rank_pattern={_key(path): pair.a_RD.shape[0] for path, pair in pairs.items() if pair.a_RD.shape[0] != rank},
        alpha_pattern={
            _key(path): pair.scaling * pair.a_RD.shape[0]
            for path, pair in pairs.items()
            if pair.scaling * pair.a_RD.shape[0] != factor
        },
        fan_in_fan_out=any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers.values()),
        modules_to_save=config.modules_to_save,
        bias=config.bias,
        task_type=config.task_type,
        inference_mode=True,
        base_model_name_or_path=config.base_model_name_or_path,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _beside(model, adapter_name)
    for path, pair in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.a_RD
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.b_OR
    cpu = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    save_file(cpu, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lora.save_pretrained(str(folder))


def _layers(model: nn.Module) -> Iterable[tuple[str, MoELoraLayer]]:
    for path, layer in model.named_modules():
        if isinstance(layer, MoELoraLayer):
            yield path.removeprefix("base_model.model."), layer


def _key(path: str) -> str:
    """A pattern PEFT matches to the end of a path, for this path alone: an unescaped dot would match layer 10 too."""
    return re.escape(path)


def _targets(model: nn.Module, paths: list[str]) -> list[str]:
    """The last names where they mean exactly ``paths`` in this model, else the paths themselves."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    every = {
        path.removeprefix("base_model.model.").replace(".base_layer", "")
        for path, _ in model.named_modules()
        if f".{ADAPTERS}" not in path
    }
    meant = {path for path in every if path.rpartition(".")[2] in names}
    return names if meant == set(paths) else sorted(paths)


def _beside(model: nn.Module, adapter_name: str) -> dict[str, Any]:
    """What is saved with the adapter and is not part of it: modules trained in full, biases."""
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    # A bias sits one level down while the linear is adapted, in LoRA's layer as in ours.
    return {name: tensor for name, tensor in saved.items() if f".{ADAPTERS}." not in name}
