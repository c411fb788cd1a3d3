"""Fused projections taken apart: every part equals the rows the model itself would use, read from file and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from alphalloc.checkpoint import open_checkpoint
from alphalloc.checkpoint.fused import Layout, layout_of
from alphalloc.spectra import esd

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
PHI3 = SMALL | {"num_key_value_heads": 2, "pad_token_id": 0}
FALCON = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
BIGCODE = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24}


def stacked(*sizes: int) -> Callable[[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    return lambda whole: np.split(whole, np.cumsum(sizes)[:-1])


def by_head(heads: int, *sizes: int) -> Callable[[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Rows of one head after the other, each with its own q, k and v: gathered by a plain loop."""

    def split(whole: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        found: list[list[np.ndarray[Any, Any]]] = [[] for _ in sizes]
        at = 0
        for _ in range(heads):
            for part, size in enumerate(sizes):
                found[part].append(whole[at : at + size])
                at += size
        return [np.concatenate(rows) for rows in found]

    return split


# family -> (model, fused name in the last block, roles and how the loop of the model splits the out x in matrix)
FAMILIES: dict[str, tuple[Callable[[], Any], str, dict[str, Callable[..., Any]]]] = {
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)),
        "transformer.h.1.attn.c_attn.weight", {"qkv": stacked(16, 16, 16)},
    ),
    "gpt-neox": (
        lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SMALL)),
        "gpt_neox.layers.1.attention.query_key_value.weight", {"qkv": by_head(4, 4, 4, 4)},
    ),
    "bloom": (
        lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=4)),
        "transformer.h.1.self_attention.query_key_value.weight", {"qkv": by_head(4, 4, 4, 4)},
    ),
    "falcon, one key head": (
        lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON, multi_query=True)),
        "transformer.h.1.self_attention.query_key_value.weight", {"qkv": stacked(16, 4, 4)},
    ),
    "falcon, grouped": (
        lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)),
        "transformer.h.1.self_attention.query_key_value.weight", {"qkv": by_head(2, 8, 4, 4)},
    ),
    "phi3": (
        lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**PHI3)),
        "model.layers.1.self_attn.qkv_proj.weight", {"qkv": stacked(16, 8, 8)},
    ),
    "starcoder, one key head": (
        lambda: tf.GPTBigCodeForCausalLM(tf.GPTBigCodeConfig(**BIGCODE, multi_query=True)),
        "transformer.h.1.attn.c_attn.weight", {"qkv": stacked(16, 4, 4)},
    ),
    "starcoder, a key head each": (
        lambda: tf.GPTBigCodeForCausalLM(tf.GPTBigCodeConfig(**BIGCODE, multi_query=False)),
        "transformer.h.1.attn.c_attn.weight", {"qkv": by_head(4, 4, 4, 4)},
    ),
    "modernbert": (
        lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(**SMALL, pad_token_id=0)),
        "model.layers.1.attn.Wqkv.weight", {"qkv": stacked(16, 16, 16)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_rows_the_model_uses(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    make, name, splits = FAMILIES[family]
    model = make()
    whole = model.state_dict()[name].numpy()
    whole = whole.T if family == "gpt2" else whole
    model.save_pretrained(tmp_path)
    for source in (tmp_path, model):
        found = {m.name: m for m in open_checkpoint(source).matrices}
        assert name not in found
        for role, expected in zip(("q_proj", "k_proj", "v_proj"), splits["qkv"](whole), strict=True):
            part = found[f"{name}[{role}]"]
            assert (part.layer, part.role, part.module) == (1, role, name.removesuffix(".weight"))
            assert part.shape == expected.shape
            np.testing.assert_array_equal(part.load(), expected)
        kept = {m.name: m for m in open_checkpoint(source, split_fused=False).matrices}
        np.testing.assert_array_equal(kept[name].load(), whole)


def test_gate_and_up_are_halves(tmp_path: Path) -> None:
    model = FAMILIES["phi3"][0]()
    model.save_pretrained(tmp_path)
    whole = model.state_dict()["model.layers.0.mlp.gate_up_proj.weight"].numpy()
    checkpoint = open_checkpoint(tmp_path, include=["gate_proj", "up_proj"])
    parts = {m.role: m for m in checkpoint.matrices if m.layer == 0}
    np.testing.assert_array_equal(parts["gate_proj"].load(), whole[:24])
    np.testing.assert_array_equal(parts["up_proj"].load(), whole[24:])
    assert parts["up_proj"].offset == (parts["gate_proj"].offset or 0) + whole.nbytes // 2
    assert parts["up_proj"].nbytes == whole.nbytes // 2


def test_spectra_of_fused_and_separate_checkpoints_agree() -> None:
    rng = np.random.default_rng(0)
    separate = {
        f"model.layers.{i}.self_attn.{p}_proj.weight": rng.standard_normal((rows, 32)).astype(np.float32)
        for i in range(2) for p, rows in (("q", 32), ("k", 32), ("v", 32), ("o", 32))
    }  # fmt: skip
    fused = {name: values for name, values in separate.items() if ".o_proj" in name}
    for i in range(2):
        names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for p in "qkv"]
        fused[f"model.layers.{i}.self_attn.qkv_proj.weight"] = np.concatenate([separate[name] for name in names])
    apart = {(m.layer, m.role): esd(m.load()) for m in open_checkpoint(fused).matrices}
    for matrix in open_checkpoint(separate).matrices:
        expected, found = esd(matrix.load()), apart[matrix.layer, matrix.role]
        np.testing.assert_array_equal(found.eigs, expected.eigs)


def test_globs_match_the_tensor_s_own_name_too() -> None:
    state = {f"model.layers.{i}.self_attn.qkv_proj.weight": np.ones((12, 4), np.float32) for i in range(2)}
    state |= {f"model.layers.{i}.self_attn.o_proj.weight": np.ones((4, 4), np.float32) for i in range(2)}
    found = open_checkpoint(state, include=["*.qkv_proj.weight"])
    assert {m.role for m in found.matrices} == {"q_proj", "k_proj", "v_proj"}
    assert all("[" not in s.name for s in found.skipped)


def test_what_is_not_known_stays_whole_with_a_note() -> None:
    state = {f"h.{i}.attn.{p}.weight": np.ones((12, 4), np.float32) for i in range(2) for p in ("query_key_value", "o")}
    checkpoint = open_checkpoint(state)
    assert {m.role for m in checkpoint.matrices} == {"query_key_value", "o"}
    assert "kept fused" in checkpoint.notes[0]
    assert "query_key_value" in checkpoint.notes[0]


# (name, shape, config, layout): the published sizes of real models
LAYOUTS: list[tuple[str, tuple[int, int], dict[str, Any], Layout | None]] = [
    ("query_key_value", (9216, 8192), {"model_type": "falcon", "num_attention_heads": 128, "num_kv_heads": 8,
     "hidden_size": 8192, "new_decoder_architecture": True}, Layout(("q_proj", "k_proj", "v_proj"), (1024, 64, 64), 8)),
    ("query_key_value", (4608, 4096), {"model_type": "chatglm", "num_attention_heads": 32, "hidden_size": 4096,
     "multi_query_group_num": 2, "kv_channels": 128}, Layout(("q_proj", "k_proj", "v_proj"), (4096, 256, 256))),
    ("wqkv", (6144, 4096), {"model_type": "internlm2", "num_attention_heads": 32, "num_key_value_heads": 8,
     "hidden_size": 4096}, Layout(("q_proj", "k_proj", "v_proj"), (512, 128, 128), 8)),
    ("Wqkv", (8192, 6144), {"model_type": "dbrx", "n_heads": 48, "d_model": 6144, "attn_config": {"kv_n_heads": 8}},
     Layout(("q_proj", "k_proj", "v_proj"), (6144, 1024, 1024))),
    ("qkv_proj", (12288, 4096), {"model_type": "codegen", "n_head": 16, "n_embd": 4096}, None),
    ("W_pack", (12288, 4096), {}, Layout(("q_proj", "k_proj", "v_proj"), (4096, 4096, 4096))),
    ("qkv", (3840, 1280), {"text_config": {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}},
     Layout(("q_proj", "k_proj", "v_proj"), (1280, 1280, 1280))),
    ("dense_h_to_4h", (16384, 4096), {"model_type": "gpt_neox"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "config", "layout"), LAYOUTS)
def test_layouts_of_published_models(
    name: str, shape: tuple[int, int], config: dict[str, Any], layout: Layout | None
) -> None:
    assert layout_of(name, shape, config) == layout
