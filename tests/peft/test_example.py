"""The four lines a newcomer reads: from alphas to a model with experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch

import alphalloc


def test_from_weights_to_a_peft_model(base_folder: str, base: Any, tiny: Any, tmp_path: Path) -> None:
    alphas = alphalloc.analyze(base_folder, cache=False)
    schedule = alphalloc.allocate(alphas, budget=9)
    schedule.save(tmp_path / "schedule.json")

    from alphalloc.peft import MoELoraConfig, named_adapters

    plain = tiny.logits(base)
    model = peft.get_peft_model(base, MoELoraConfig.from_schedule(schedule, r=8, lora_alpha=16))

    assert torch.equal(tiny.logits(model), plain)
    experts = {path.split(".")[2]: adapter.num_experts for path, adapter in named_adapters(model, "default")}
    assert tuple(experts.values()) == schedule.num_experts
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert loaded.schedule["id"] == schedule.id  # type: ignore[attr-defined]
