"""4-bit and 8-bit base models, on CPU: the wrapped linear is only called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from alphalloc.errors import AdapterError

pytest.importorskip("bitsandbytes")

KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def wide_base(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A little wider than elsewhere: the 4-bit kernel on CPU packs blocks of 32 rows."""
    folder = tmp_path_factory.mktemp("wide")
    tiny.llama(hidden=64, inner=64).save_pretrained(folder)
    return str(folder)


def quantised(folder: str, kind: str) -> Any:
    config = transformers.BitsAndBytesConfig(**KINDS[kind])
    model = transformers.LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_trains_and_reloads(kind: str, wide_base: str, tiny: Any, tmp_path: Path) -> None:
    import bitsandbytes

    model = peft.get_peft_model(quantised(wide_base, kind), tiny.moe_config())
    linear = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[kind]
    assert isinstance(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer, linear)
    model.train()(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    parameters = tiny.adapter_parameters(model)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters.values())
    assert all(p.grad.abs().sum() > 0 for n, p in parameters.items() if "experts" in n and p.grad is not None)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.sub_(0.1 * parameter.grad)
    expected = tiny.logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(quantised(wide_base, kind), str(tmp_path))
    assert float((tiny.logits(loaded) - expected).abs().max()) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_merging_into_a_quantised_base_is_refused(kind: str, wide_base: str, tiny: Any) -> None:
    model = peft.get_peft_model(quantised(wide_base, kind), tiny.moe_config(num_experts=1, top_k=1))
    with pytest.raises(AdapterError, match="the base weight is quantised"):
        model.merge_and_unload()
