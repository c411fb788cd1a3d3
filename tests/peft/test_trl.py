"""TRL's stock trainers with ``peft_config=``: nothing of ours is passed but the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from alphalloc.peft import MoELoraCallback, MoELoraConfig
from alphalloc.peft.routing import contexts

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

LOSSES = {"balance": "switch", "balance_coef": 0.1, "contrastive": "moelora", "contrastive_start_step": 1}


def options(folder: Path, **extra: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "gradient_checkpointing": True,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **extra,
    }


def assert_trained(trainer: Any, tiny: Any, folder: Path) -> None:
    model = trainer.model
    before = {name: p.detach().clone() for name, p in tiny.adapter_parameters(model).items()}
    assert len(before) == 56  # 7 linears x 3 layers x (A, B, router), less the routers of the layer with one expert
    assert any(isinstance(callback, MoELoraCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    after = tiny.adapter_parameters(model)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert contexts(model)["default"].step == 2
    trainer.save_model(str(folder))
    loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(folder))
    assert isinstance(loaded.peft_config["default"], MoELoraConfig)
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}], ids=["new", "reentrant"])
def test_sft(checkpointing: dict[str, bool], tiny: Any, base_folder: str, tmp_path: Path) -> None:
    trainer = trl.SFTTrainer(
        model=base_folder,
        args=trl.SFTConfig(**options(tmp_path, max_length=16, gradient_checkpointing_kwargs=checkpointing)),
        train_dataset=datasets.Dataset.from_dict({"text": tiny.sentences(12)}),
        peft_config=tiny.moe_config(**LOSSES),
    )
    assert_trained(trainer, tiny, tmp_path / "adapter")


def test_dpo(tiny: Any, base_folder: str, tmp_path: Path) -> None:
    pairs = {"prompt": tiny.sentences(8), "chosen": tiny.sentences(8, 1), "rejected": tiny.sentences(8, 2)}
    trainer = trl.DPOTrainer(
        model=base_folder,
        args=trl.DPOConfig(**options(tmp_path, max_length=32)),
        train_dataset=datasets.Dataset.from_dict(pairs),
        processing_class=tiny.tokenizer(),
        peft_config=tiny.moe_config(**LOSSES),
    )
    assert_trained(trainer, tiny, tmp_path / "adapter")
