"""Packed weights that cannot be unpacked are refused by name, with the tensor that gave them away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import UnsupportedCheckpointError

Q = "model.layers.0.self_attn.q_proj"
PLAIN = {f"model.layers.{i}.self_attn.{p}_proj.weight": torch.ones(4, 4) for i in range(2) for p in "kv"}


def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape or (4, 4)).to(dtype)


# name -> (tensors, quantization_config, what the message names)
CASES: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any] | None, list[str]]] = {
    "int8 alone": ({f"{Q}.weight": zeros(torch.int8)}, None, ["int8", f"{Q}.weight"]),
    "bitsandbytes nf4": (
        {f"{Q}.weight": zeros(torch.uint8, 8, 1), f"{Q}.weight.absmax": zeros(torch.float32, 4),
         f"{Q}.weight.quant_state.bitsandbytes__nf4": zeros(torch.uint8, 9)},
        {"quant_method": "bitsandbytes", "load_in_4bit": True}, ["4-bit (bitsandbytes)", f"{Q}.weight.absmax"],
    ),
    "uint8 alone": ({f"{Q}.weight": zeros(torch.uint8)}, None, ["packed 4-bit", f"{Q}.weight"]),
    "GPTQ": (
        {f"{Q}.qweight": zeros(torch.int32), f"{Q}.qzeros": zeros(torch.int32), f"{Q}.scales": zeros(torch.float16),
         f"{Q}.g_idx": zeros(torch.int32, 4)},
        None, ["4-bit (GPTQ)", f"{Q}.qweight"],
    ),
    "AWQ": (
        {f"{Q}.qweight": zeros(torch.int32), f"{Q}.qzeros": zeros(torch.int32), f"{Q}.scales": zeros(torch.float16)},
        {"quant_method": "awq", "bits": 4}, ["4-bit (AWQ)", f"{Q}.qweight"],
    ),
    "GPTQ or AWQ": ({f"{Q}.qweight": zeros(torch.int32)}, None, ["4-bit (GPTQ or AWQ)", f"{Q}.qweight"]),
    "fp8": ({f"{Q}.weight": zeros(torch.float8_e4m3fn)}, None, ["fp8", f"{Q}.weight"]),
    "compressed-tensors": (
        {f"{Q}.weight_packed": zeros(torch.int32), f"{Q}.weight_scale": zeros(torch.float16)},
        {"quant_method": "compressed-tensors"}, ["compressed-tensors", f"{Q}.weight_packed"],
    ),
    "HQQ": ({f"{Q}.W_q": zeros(torch.uint8)}, {"quant_method": "hqq"}, ["HQQ", f"{Q}.W_q"]),
    "a method without tensors": ({}, {"quant_method": "quanto"}, ["quanto", "config.json"]),
    "a config without method": ({}, {"load_in_4bit": True}, ["load_in_4bit", "config.json"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_quantised_weights_are_refused_by_name(tmp_path: Path, case: str) -> None:
    tensors, settings, words = CASES[case]
    save_file(PLAIN | tensors, tmp_path / "model.safetensors")
    if settings is not None:
        import json

        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(UnsupportedCheckpointError) as caught:
        open_checkpoint(tmp_path)
    for word in [*words, "use the unquantised checkpoint"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("case", ["int8 alone", "GPTQ", "fp8", "bitsandbytes nf4"])
def test_the_same_holds_for_pytorch_files_and_state_dicts(tmp_path: Path, case: str) -> None:
    tensors, _, words = CASES[case]
    torch.save(PLAIN | tensors, tmp_path / "pytorch_model.bin")
    for model in (tmp_path, PLAIN | tensors):
        with pytest.raises(UnsupportedCheckpointError, match=words[0].split(" (")[0]):
            open_checkpoint(model)


def test_the_text_model_of_a_multimodal_config_counts(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"text_config": {"quantization_config": {"quant_method": "gptq"}}}')
    with pytest.raises(UnsupportedCheckpointError, match="GPTQ"):
        open_checkpoint(tmp_path)


def test_float8_arrays_of_numpy_are_refused(llama_state: Callable[..., dict[str, Any]]) -> None:
    state = llama_state() | {f"{Q}.weight": np.zeros((8, 8), dtype=ml_dtypes.float8_e4m3fn)}
    with pytest.raises(UnsupportedCheckpointError, match="fp8"):
        open_checkpoint(state)


def test_integer_buffers_are_no_sign_of_quantisation() -> None:
    buffers = {
        "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "model.layers.0.attn.mask": torch.ones(4, 4, dtype=torch.uint8),
        "embeddings.position_ids": torch.arange(4)[None],
    }
    checkpoint = open_checkpoint(PLAIN | buffers)
    assert len(checkpoint.matrices) == 4
    assert {s.name for s in checkpoint.skipped} == set(buffers)
