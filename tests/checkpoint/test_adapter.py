"""LoRA adapters that PEFT saved: the factors give PEFT's own update; what cannot be read so is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf

from alphalloc.analysis import analyze
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError
from alphalloc.spectra import esd

SMALL = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip


def adapted(folder: Path, **settings: Any) -> Any:
    """A small Llama with a trained-looking adapter, saved; the PEFT model is returned."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        **({"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 8} | settings)
    )
    model = peft.get_peft_model(tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
        {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}, "use_rslora": True},
    ],
)  # fmt: skip
def test_the_product_is_peft_s_own_update(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = adapted(tmp_path, **settings)
    checkpoint = open_checkpoint(tmp_path)
    assert {(m.layer, m.role) for m in checkpoint.matrices} == {
        (i, role) for i in range(2) for role in ("q_proj", "v_proj", "down_proj")
    }  # fmt: skip
    for matrix in checkpoint.matrices:
        layer = model.base_model.model.get_submodule(matrix.module)
        expected = layer.get_delta_weight("default").detach().double().numpy()
        assert matrix.shape == expected.shape
        product = matrix.load()
        assert product.shape == expected.shape
        np.testing.assert_allclose(np.asarray(product), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(product[3:9], np.asarray(product)[3:9])
        dense = np.linalg.svd(np.asarray(product), compute_uv=False)[::-1] ** 2
        found = esd(product)
        bound = min(matrix.shape) * 2.2e-16 * dense[-1]
        assert np.abs(found.eigs - dense[found.num_zero :]).max() <= bound


def test_an_adapter_can_be_analysed_and_given_by_its_file(tmp_path: Path) -> None:
    adapted(tmp_path, r=24, lora_alpha=16)
    found = analyze(tmp_path, cache=False)
    assert len(found.layers) == 2
    assert all(matrix.num_zero >= 8 - 24 + 16 for matrix in found.matrices)
    assert {m.name for m in open_checkpoint(tmp_path / "adapter_model.safetensors").matrices} == {
        m.name for m in found.matrices
    }


def test_a_base_beside_an_adapter_is_refused(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match="a difference from its base already"):
        open_checkpoint(tmp_path, base=model.base_model.model, include=["q_proj"])


def change(**settings: Any) -> Any:
    def make(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return make


def drop(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, folder / "adapter_model.safetensors")


BROKEN: dict[str, tuple[Any, type[Exception], str]] = {
    "DoRA": (change(use_dora=True), UnsupportedCheckpointError, "DoRA.*merge it into its base"),
    "another method": (change(peft_type="IA3"), UnsupportedCheckpointError, "of type IA3"),
    "a pattern that repeats": (
        change(alpha_pattern={"(a+)+b": 3}), UnsupportedCheckpointError, "expected the end of a module path",
    ),
    "no lora_alpha": (change(lora_alpha=None), CorruptCheckpointError, "expected a number lora_alpha"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), CorruptCheckpointError, "lora_alpha"),
    "half a pair": (drop, CorruptCheckpointError, "has a lora_B without its partner"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_an_adapter_that_cannot_be_read_is_refused(tmp_path: Path, case: str) -> None:
    make, error, message = BROKEN[case]
    adapted(tmp_path)
    make(tmp_path)
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path)
