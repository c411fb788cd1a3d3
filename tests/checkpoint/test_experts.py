"""Experts stored as one tensor: each is its own matrix, equal to that of a checkpoint with a module an expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.numpy import save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.spectra import esd

WIDTH, INNER, COUNT = 8, 12, 3
Arrays = dict[str, np.ndarray[Any, Any]]


def single(width: int = WIDTH, inner: int = INNER) -> Arrays:
    """A module an expert, as Qwen-MoE stores them."""
    rng = np.random.default_rng(0)
    shapes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    return {
        f"model.layers.{i}.mlp.experts.{e}.{role}.weight": rng.standard_normal(shape).astype(np.float32)
        for i in range(2) for e in range(COUNT) for role, shape in shapes.items()
    }  # fmt: skip


def fused(layout: str, experts: Arrays) -> Arrays:
    """The same experts in one of the fused layouts."""
    state: Arrays = {}
    for i in range(2):
        of = {r: [experts[f"model.layers.{i}.mlp.experts.{e}.{r}_proj.weight"] for e in range(COUNT)]
              for r in ("gate", "up", "down")}  # fmt: skip
        pairs = list(zip(of["gate"], of["up"], strict=True))
        block = f"model.layers.{i}.mlp"
        if layout == "granite":
            state[f"{block}.input_linear.weight"] = np.stack([np.concatenate(pair) for pair in pairs])
            state[f"{block}.output_linear.weight"] = np.stack(of["down"])
        elif layout == "out x in":
            state[f"{block}.experts.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in pairs])
            state[f"{block}.experts.down_proj"] = np.stack(of["down"])
        elif layout == "in x out":
            state[f"{block}.experts.gate_up_proj"] = np.stack([np.concatenate(pair).T for pair in pairs])
            state[f"{block}.experts.down_proj"] = np.stack([down.T for down in of["down"]])
        elif layout == "by turns":
            turns = [np.stack(pair, axis=1).reshape(-1, pair[0].shape[1]) for pair in pairs]
            state[f"{block}.experts.gate_up_proj"] = np.stack([turn.T for turn in turns])
            state[f"{block}.experts.gate_up_proj_bias"] = np.zeros((COUNT, len(turns[0])), dtype=np.float32)
            state[f"{block}.experts.down_proj"] = np.stack([down.T for down in of["down"]])
    return {name: np.ascontiguousarray(values) for name, values in state.items()}


@pytest.mark.parametrize("sides", [(WIDTH, INNER), (8, 4), (6, 6), (4, 8)])
@pytest.mark.parametrize("layout", ["granite", "out x in", "in x out", "by turns"])
def test_every_layout_gives_the_single_experts(tmp_path: Path, layout: str, sides: tuple[int, int]) -> None:
    experts = single(*sides)
    state = fused(layout, experts)
    save_file(state, tmp_path / "model.safetensors")
    expected = {(m.layer, m.role, m.shape, esd(m.load()).eigs.tobytes()) for m in open_checkpoint(experts).matrices}
    assert len(expected) == 2 * COUNT * 3
    for model in (tmp_path, state, {name: torch.from_numpy(values) for name, values in state.items()}):
        found = open_checkpoint(model).matrices
        near = {(m.layer, m.role, m.shape) for m in found}
        assert near == {item[:3] for item in expected}
        values = sorted(m.load().tobytes() for m in found)
        assert values == sorted(m.load().tobytes() for m in open_checkpoint(experts).matrices)


def test_names_modules_and_offsets(tmp_path: Path) -> None:
    state = fused("out x in", single())
    save_file(state, tmp_path / "model.safetensors")
    found = {m.name: m for m in open_checkpoint(tmp_path).matrices}
    gate = found["model.layers.1.mlp.experts.gate_up_proj[2.gate_proj]"]
    down = found["model.layers.1.mlp.experts.down_proj[2]"]
    assert (gate.module, gate.layer, gate.role) == ("model.layers.1.mlp.experts", 1, "gate_proj")
    assert (down.role, down.nbytes) == ("down_proj", 4 * WIDTH * INNER)
    assert gate.offset is not None  # read alone, not with the other experts
    kept = {m.name for m in open_checkpoint(tmp_path, split_fused=False).matrices}
    assert "model.layers.1.mlp.experts.gate_up_proj[2]" in kept
    assert len(kept) == 2 * COUNT * 2


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "llama4", "gpt_oss"])
def test_models_of_transformers(tmp_path: Path, family: str) -> None:
    """The parts must be those that the model's own forward pass multiplies with."""
    torch.manual_seed(0)
    common = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}  # fmt: skip
    cls, config = {
        "mixtral": (tf.MixtralForCausalLM, tf.MixtralConfig(**common, num_local_experts=COUNT)),
        "qwen3_moe": (tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig(**common, num_experts=COUNT, moe_intermediate_size=24)),
        "llama4": (tf.Llama4ForCausalLM, tf.Llama4TextConfig(**common, num_local_experts=COUNT)),
        "gpt_oss": (tf.GptOssForCausalLM, tf.GptOssConfig(**common, num_local_experts=COUNT)),
    }[family]
    model = cls(config)
    model.save_pretrained(tmp_path)
    (name,) = [n for n in model.state_dict() if n.startswith("model.layers.1.") and n.endswith("experts.gate_up_proj")]
    tensor = model.state_dict()[name].detach()
    if family == "gpt_oss":
        halves = tensor[..., ::2].mT, tensor[..., 1::2].mT
    else:
        halves = (tensor.mT if family == "llama4" else tensor).chunk(2, dim=1)
    in_memory = {m.name: m for m in open_checkpoint(model).matrices}
    for role, half in zip(("gate_proj", "up_proj"), halves, strict=True):
        for expert in range(COUNT):
            np.testing.assert_array_equal(in_memory[f"{name}[{expert}.{role}]"].load(), half[expert].numpy())
    for source in (model, tmp_path):
        matrices = open_checkpoint(source).matrices
        experts = [m for m in matrices if ".experts" in m.module or ".experts" in m.name]
        assert len(experts) == 2 * COUNT * 3
        assert not [s for s in open_checkpoint(source).skipped if not s.by_design]


def test_dbrx_stacks_the_rows_of_its_experts(tmp_path: Path) -> None:
    experts = single()
    state = {}
    for i in range(2):
        for name, role in (("w1", "gate"), ("v1", "up"), ("w2", "down")):
            of = [experts[f"model.layers.{i}.mlp.experts.{e}.{role}_proj.weight"] for e in range(COUNT)]
            rows = np.concatenate([value.T if role == "down" else value for value in of])
            state[f"transformer.blocks.{i}.ffn.experts.mlp.{name}"] = np.ascontiguousarray(rows)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3}}')
    found = sorted(m.load().tobytes() for m in open_checkpoint(tmp_path).matrices)
    assert found == sorted(values.tobytes() for values in experts.values())


def test_experts_of_a_gguf_file_are_dequantised_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "qwen3moe")
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = {}
    for i in range(2):
        for role in ("gate", "up", "down"):
            packed = gguf.quants.quantize(rng.standard_normal((COUNT, 4, 64)).astype(np.float32), kind)
            writer.add_tensor(f"blk.{i}.ffn_{role}_exps.weight", packed, raw_dtype=kind)
            expected[f"blk.{i}.ffn_{role}_exps.weight"] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {m.name: m for m in open_checkpoint(tmp_path / "m.gguf").matrices}
    assert len(found) == 2 * 3 * COUNT
    for name, values in expected.items():
        for expert in range(COUNT):
            matrix = found[f"{name}[{expert}]"]
            assert (matrix.role, matrix.quantized) == (f"{name.split('_')[1]}_proj", True)
            np.testing.assert_array_equal(matrix.load(), values[expert])


def test_experts_that_are_not_understood_are_missing_without_design() -> None:
    state = {f"model.layers.{i}.mlp.experts.gate_up_proj": np.ones((2, 8, 8), np.float32) for i in range(2)}
    state |= {f"model.layers.{i}.self_attn.q_proj.weight": np.ones((4, 4), np.float32) for i in range(2)}
    skipped = open_checkpoint(state).skipped
    assert len(skipped) == 2
    assert not any(tensor.by_design for tensor in skipped)
