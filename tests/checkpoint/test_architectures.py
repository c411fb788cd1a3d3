"""Random models of every supported family, made from configs, saved, and read: places, shapes and exact values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from alphalloc.checkpoint import Checkpoint, open_checkpoint

LLAMA = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 4}  # fmt: skip
LLAMA_ROLES = {
    "q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16),
    "gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24),
}  # fmt: skip
BERT_ROLES = {
    "query": (16, 16), "key": (16, 16), "value": (16, 16), "attention.output.dense": (16, 16),
    "intermediate.dense": (24, 16), "output.dense": (16, 24),
}  # fmt: skip
SEQ2SEQ = {"vocab_size": 32, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
SEQ2SEQ_ENCODER = {f"{p}_proj": (16, 16) for p in ("q", "k", "v", "out")} | {"fc1": (24, 16), "fc2": (16, 24)}
SEQ2SEQ_DECODER = {"fc1": (24, 16), "fc2": (16, 24)} | {
    f"{side}_attn.{p}_proj": (16, 16) for side in ("self", "encoder") for p in ("q", "k", "v", "out")
}  # fmt: skip
T5_ENCODER = {"q": (16, 16), "k": (16, 16), "v": (16, 16), "o": (16, 16), "wi": (24, 16), "wo": (16, 24)}
T5_DECODER = {
    f"layer.{at}.{kind}.{p}": (16, 16) for at, kind in ((0, "SelfAttention"), (1, "EncDecAttention")) for p in "qkvo"
} | {"wi": (24, 16), "wo": (16, 24)}

Roles = dict[str, tuple[int, int]]
# family -> (model class, config, stack -> (number of layers, role -> (out, in)))
FAMILIES: dict[str, tuple[Any, Callable[[], Any], dict[str, tuple[int, Roles]]]] = {
    "llama": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**LLAMA), {"": (3, LLAMA_ROLES)}),
    "llama base": (tf.LlamaModel, lambda: tf.LlamaConfig(**LLAMA), {"": (3, LLAMA_ROLES)}),
    "llama of one layer": (
        tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**(LLAMA | {"num_hidden_layers": 1})), {"": (1, LLAMA_ROLES)},
    ),
    "mistral": (tf.MistralForCausalLM, lambda: tf.MistralConfig(**LLAMA), {"": (3, LLAMA_ROLES)}),
    "gemma": (tf.GemmaForCausalLM, lambda: tf.GemmaConfig(**LLAMA), {"": (3, LLAMA_ROLES)}),
    "qwen2": (tf.Qwen2ForCausalLM, lambda: tf.Qwen2Config(**LLAMA), {"": (3, LLAMA_ROLES)}),
    "gpt2": (
        tf.GPT2LMHeadModel, lambda: tf.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=3, n_head=2),
        {"": (3, {"c_attn": (48, 16), "attn.c_proj": (16, 16), "c_fc": (64, 16), "mlp.c_proj": (16, 64)})},
    ),
    "gpt2 base": (
        tf.GPT2Model, lambda: tf.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2),
        {"": (2, {"c_attn": (48, 16), "attn.c_proj": (16, 16), "c_fc": (64, 16), "mlp.c_proj": (16, 64)})},
    ),
    "starcoder, c_attn without Conv1D": (
        tf.GPTBigCodeForCausalLM,
        lambda: tf.GPTBigCodeConfig(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=4, n_inner=24),
        {"": (2, {"c_attn": (24, 16), "attn.c_proj": (16, 16), "c_fc": (24, 16), "mlp.c_proj": (16, 24)})},
    ),
    "gpt-neox": (
        tf.GPTNeoXForCausalLM,
        lambda: tf.GPTNeoXConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                 intermediate_size=24, max_position_embeddings=16),
        {"": (2, {"query_key_value": (48, 16), "dense": (16, 16), "dense_h_to_4h": (24, 16),
                  "dense_4h_to_h": (16, 24)})},
    ),
    "opt": (
        tf.OPTForCausalLM,
        lambda: tf.OPTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, ffn_dim=24, num_attention_heads=2,
                             max_position_embeddings=16, word_embed_proj_dim=16),
        {"": (2, SEQ2SEQ_ENCODER)},
    ),
    "bert": (
        tf.BertForMaskedLM,
        lambda: tf.BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=24, max_position_embeddings=16),
        {"": (2, BERT_ROLES)},
    ),
    "bert base": (
        tf.BertModel,
        lambda: tf.BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=24, max_position_embeddings=16),
        {"": (2, BERT_ROLES)},
    ),
    "t5": (
        tf.T5ForConditionalGeneration,
        lambda: tf.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2,
                            num_heads=2),
        {"encoder": (2, T5_ENCODER), "decoder": (2, T5_DECODER)},
    ),
    "bart": (
        tf.BartForConditionalGeneration, lambda: tf.BartConfig(max_position_embeddings=16, **SEQ2SEQ),
        {"encoder": (2, SEQ2SEQ_ENCODER), "decoder": (3, SEQ2SEQ_DECODER)},
    ),
    "whisper": (
        tf.WhisperForConditionalGeneration,
        lambda: tf.WhisperConfig(num_mel_bins=8, max_source_positions=8, max_target_positions=8, **SEQ2SEQ),
        {"encoder": (2, SEQ2SEQ_ENCODER), "decoder": (3, SEQ2SEQ_DECODER)},
    ),
}  # fmt: skip


def build(family: str) -> Any:
    torch.manual_seed(0)
    cls, config, _ = FAMILIES[family]
    return cls(config()).eval()


def check(checkpoint: Checkpoint, family: str, state: dict[str, torch.Tensor], transposed: bool) -> None:
    stacks = FAMILIES[family][2]
    expected = {
        (stack, layer, role): shape
        for stack, (layers, roles) in stacks.items()
        for layer in range(layers)
        for role, shape in roles.items()
    }
    assert {(m.stack, m.layer, m.role): m.shape for m in checkpoint.matrices} == expected
    assert len(checkpoint.matrices) == len(expected)
    assert [(m.stack, m.layer) for m in checkpoint.matrices] == [
        (stack, layer) for stack, (layers, roles) in stacks.items() for layer in range(layers) for _ in roles
    ]
    for matrix in checkpoint.matrices:
        values = state[matrix.name].numpy()
        np.testing.assert_array_equal(matrix.load(), values.T if transposed else values)
    listed = {s.name for s in checkpoint.skipped} | {m.name for m in checkpoint.matrices}
    listed = {
        name.replace("embed_out", "lm_head") for name in listed
    }  # transformers saves GPT-NeoX's head by that name
    # nothing is lost: what is not listed was not saved either, being tied to something that is
    assert {state[name].data_ptr() for name in listed & set(state)} == {tensor.data_ptr() for tensor in state.values()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_read_exactly(tmp_path: Path, family: str) -> None:
    model = build(family)
    state = model.state_dict()
    transposed = family.startswith("gpt2")
    model.save_pretrained(tmp_path / "st")
    torch.save(state, tmp_path / "pytorch_model.bin")
    saved = open_checkpoint(tmp_path / "st", split_fused=False)
    assert saved.format == "safetensors"
    assert saved.architecture == type(model).__name__
    check(saved, family, state, transposed)
    for source in (tmp_path / "pytorch_model.bin", model, state):
        check(open_checkpoint(source, split_fused=False), family, state, transposed)


@pytest.mark.parametrize("family", ["llama", "t5", "whisper", "gpt2"])
def test_a_sharded_model_is_the_same_model(tmp_path: Path, family: str) -> None:
    model = build(family)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    checkpoint = open_checkpoint(tmp_path, split_fused=False)
    assert len(checkpoint.files) > 1
    check(checkpoint, family, model.state_dict(), family == "gpt2")


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model.", "module.", "_orig_mod."])
def test_a_prefix_changes_nothing_but_the_module_path(prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in build("llama").state_dict().items()}
    matrices = open_checkpoint(state).matrices
    plain = open_checkpoint(build("llama")).matrices
    assert [(m.layer, m.stack, m.role, prefix + m.module) for m in plain] == [
        (m.layer, m.stack, m.role, m.module) for m in matrices
    ]


def test_minilm_has_six_layers_of_six_linears(minilm: Path) -> None:
    checkpoint = open_checkpoint(minilm)
    assert checkpoint.architecture == "BertModel"
    assert [m.layer for m in checkpoint.matrices] == [layer for layer in range(6) for _ in range(6)]
    assert {m.role for m in checkpoint.matrices} == set(BERT_ROLES)
    reasons = {s.name: s.reason for s in checkpoint.skipped}
    for name in ("pooler.dense.weight", "embeddings.word_embeddings.weight"):
        assert reasons[name].startswith("outside the repeated blocks")
    assert reasons["embeddings.position_ids"].startswith("I64")
    from safetensors import safe_open

    with safe_open(minilm, "np") as reference:
        for matrix in checkpoint.matrices:
            np.testing.assert_array_equal(matrix.load(), reference.get_tensor(matrix.name))


def test_embeddings_heads_and_poolers_come_with_embeddings(minilm: Path) -> None:
    outside = [m for m in open_checkpoint(minilm, embeddings=True).matrices if m.layer == -1]
    assert {m.role: m.shape for m in outside} == {
        "word_embeddings": (30522, 384), "position_embeddings": (512, 384), "token_type_embeddings": (2, 384),
        "dense": (384, 384),
    }  # fmt: skip


def test_tied_weights_count_once() -> None:
    model = tf.BartForConditionalGeneration(FAMILIES["bart"][1]())
    checkpoint = open_checkpoint(model, embeddings=True)
    shared = [m.name for m in checkpoint.matrices if m.shape == (32, 16) and m.layer == -1]
    tied = [s for s in checkpoint.skipped if s.reason.startswith("tied to ")]
    assert shared == ["model.shared.weight"]
    assert {s.name for s in tied} == {
        "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight",
    }  # fmt: skip
    assert all("model.shared.weight" in s.reason for s in tied)


def test_a_layer_shared_by_all_blocks_counts_once() -> None:
    block = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = torch.nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    model.layers[1] = model.layers[0]
    checkpoint = open_checkpoint(model)
    assert {m.layer for m in checkpoint.matrices} == {0}
    assert {m.role for m in checkpoint.matrices} == {"q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2"}
    assert sum("tied to" in s.reason for s in checkpoint.skipped) == 6


def test_experts_share_a_role() -> None:
    single = {f"model.layers.{i}.block_sparse_moe.experts.{e}.w{w}.weight": torch.ones(4, 4)
              for i in range(2) for e in range(3) for w in (1, 2, 3)}  # fmt: skip
    assert {(m.layer, m.role) for m in open_checkpoint(single).matrices} == {
        (i, f"w{w}") for i in range(2) for w in (1, 2, 3)
    }


def test_an_adapter_around_a_model_is_left_out() -> None:
    import peft

    plain = open_checkpoint(build("llama")).matrices
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"], r=2))
    wrapped = open_checkpoint(model)
    assert [(m.layer, m.role, m.shape) for m in wrapped.matrices] == [(m.layer, m.role, m.shape) for m in plain]
    assert any("adapter" in s.reason for s in wrapped.skipped)
