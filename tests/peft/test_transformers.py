"""Adapters without a PeftModel: transformers' own loading, and the AutoPeft classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from alphalloc.peft import named_adapters, record_routing


@pytest.fixture
def expected(base: Any, tiny: Any, adapter_folder: str) -> torch.Tensor:
    logits: torch.Tensor = tiny.logits(peft.PeftModel.from_pretrained(base, adapter_folder))
    return logits


def test_auto_peft_model(expected: torch.Tensor, tiny: Any, adapter_folder: str) -> None:
    model = peft.AutoPeftModelForCausalLM.from_pretrained(adapter_folder)
    assert torch.equal(tiny.logits(model), expected)


def test_auto_peft_model_of_a_classifier(tiny: Any, tmp_path: Path) -> None:
    base = tiny.bert()
    base.save_pretrained(tmp_path / "base")
    classifier = type(base).from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(classifier, tiny.moe_config(task_type="SEQ_CLS"))
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"), num_labels=3)
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))


def test_auto_peft_model_without_a_task_uses_the_mapping_in_the_file(tiny: Any, base: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(base, tiny.moe_config(task_type=None))
    model.save_pretrained(str(tmp_path))
    loaded = peft.AutoPeftModel.from_pretrained(str(tmp_path))
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))


def test_load_adapter_and_delete_adapter(expected: torch.Tensor, tiny: Any, adapter_folder: str) -> None:
    model = tiny.llama()
    plain = tiny.logits(model)
    info = model.load_adapter(adapter_folder)
    assert not info.missing_keys
    assert torch.equal(tiny.logits(model), expected)
    model.disable_adapters()
    assert torch.equal(tiny.logits(model), plain)
    model.enable_adapters()
    assert torch.equal(tiny.logits(model), expected)
    model.delete_adapter("default")
    assert torch.equal(tiny.logits(model), plain)


def test_a_model_class_loads_base_and_adapter_from_the_adapter_folder(
    expected: torch.Tensor, tiny: Any, adapter_folder: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(adapter_folder)
    assert len(list(named_adapters(model, "default"))) == 21
    assert torch.equal(tiny.logits(model), expected)


def test_add_adapter_trains_saves_and_loads(tiny: Any, tmp_path: Path) -> None:
    model = tiny.llama()
    model.add_adapter(tiny.moe_config(), adapter_name="mine")
    assert {p.requires_grad for p in tiny.adapter_parameters(model, "mine").values()} == {True}
    model.train()(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    model.save_pretrained(tmp_path)
    again = tiny.llama()
    again.load_adapter(str(tmp_path), adapter_name="other")
    assert torch.equal(tiny.logits(again), tiny.logits(model))


def test_two_native_adapters_switch(expected: torch.Tensor, tiny: Any, adapter_folder: str) -> None:
    model = tiny.llama()
    model.load_adapter(adapter_folder, adapter_name="first")
    model.add_adapter(tiny.moe_config(num_experts=2, top_k=1), adapter_name="second")
    model.set_adapter("second")
    assert not torch.equal(tiny.logits(model), expected)
    model.set_adapter("first")
    assert torch.equal(tiny.logits(model), expected)


def test_routing_is_recorded_without_padding(tiny: Any) -> None:
    model = tiny.llama()
    model.add_adapter(tiny.moe_config(target_modules=["q_proj"]))
    statistics = record_routing(model)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        model.eval()(input_ids=tiny.tokens(), attention_mask=mask)
    layers = statistics.summary()
    assert [(layer.num_experts, layer.tokens) for layer in layers] == [(2, 14), (4, 14)]
    assert all(abs(sum(layer.load) - 1) < 1e-6 for layer in layers)
