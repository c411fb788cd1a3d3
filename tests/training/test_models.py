"""Base models: transformers folders, and GGUF files turned into such folders once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alphalloc.errors import CheckpointNotFoundError, OutputError, TrainingError, UnsupportedCheckpointError
from alphalloc.training.models import find_model, load_model, load_tokenizer
from alphalloc.training.recipe import ScheduleSettings
from alphalloc.training.schedules import schedule_for

TOKENS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "ab", "cd", *(f"<{i}>" for i in range(34))]


def interleaved(weight: Any, heads: int) -> np.ndarray:
    """q and k as llama.cpp stores them: the halves of each head's rotary pairs side by side."""
    array = weight.detach().numpy()
    rows, columns = array.shape
    return np.ascontiguousarray(array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1))


def write_gguf(model: Any, path: Path) -> Path:
    """The tiny Llama as a GGUF file in float32, with a byte-level tokenizer of single letters."""
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        inner = name.removeprefix("model.").removesuffix(".weight")
        if inner.startswith("layers."):
            _, layer, part = inner.split(".", 2)
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
            array = weight.numpy() if heads is None else interleaved(weight, heads)
            writer.add_tensor(f"blk.{layer}.{parts[part]}.weight", array)
        else:
            writer.add_tensor(f"{names.get(inner, 'output')}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny.llama(), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_folder_is_known_before_it_is_loaded(model_folder: str, tiny: Any) -> None:
    base = find_model(model_folder)
    assert [ref.layer for ref in base.layers] == [0, 1, 2]
    assert base.reference.num_layers == 3
    assert str(base.reference.fingerprint).startswith("sha256:")
    assert torch.equal(tiny.logits(load_model(base)), tiny.logits(tiny.llama()))
    assert load_model(base, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(base).pad_token_id == 0


def test_a_gguf_file_becomes_a_folder_once(gguf_file: Path, tiny: Any, tmp_path: Path) -> None:
    base = find_model(str(gguf_file), cache=tmp_path)
    assert Path(base.loads_from).parent == tmp_path / "models"
    assert torch.allclose(tiny.logits(load_model(base)), tiny.logits(tiny.llama()), atol=1e-5)
    tokenizer = load_tokenizer(base)
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize("abz")) == [28, 27]  # the merged "ab", then "z"
    assert tokenizer.eos_token_id == 1
    marker = Path(base.loads_from) / "config.json"
    before = marker.stat().st_mtime_ns
    assert find_model(str(gguf_file), cache=tmp_path) == base
    assert marker.stat().st_mtime_ns == before
    # Its schedules carry the fingerprint of the file that was analysed, not of the folder made from it.
    schedule, warnings = schedule_for(ScheduleSettings(rule="uniform", experts=6), base)
    assert schedule.model is not None
    assert schedule.model.fingerprint == base.reference.fingerprint
    assert schedule.num_experts == (2, 2, 2)
    assert schedule.alphas == (None, None, None)
    assert warnings == ()
    analysed, _ = schedule_for(ScheduleSettings(experts=6), base)
    assert analysed.model is not None
    assert analysed.model.fingerprint == base.reference.fingerprint
    assert None not in analysed.alphas


def test_a_cache_that_cannot_be_written_is_named(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(OutputError, match="models: the cache cannot be written"):
        find_model(str(gguf_file), cache=tmp_path)


def test_what_is_no_model_is_named(model_folder: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such path"):
        find_model(str(tmp_path / "nothing"))
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    for path in bare.glob("token*"):
        path.unlink()
    with pytest.raises(TrainingError, match="expected a tokenizer beside the model"):
        load_tokenizer(find_model(str(bare)))
    (bare / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(UnsupportedCheckpointError, match="expected a causal language model that transformers can load"):
        load_model(find_model(str(bare)))


@pytest.mark.long
def test_smollm2_predicts_as_published(smollm2_file: Path, tmp_path: Path) -> None:
    base = find_model(str(smollm2_file), cache=tmp_path)
    model, tokenizer = load_model(base), load_tokenizer(base)
    ids = tokenizer("The capital of France is Paris, and the capital of Italy is Rome.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).loss.exp()) == pytest.approx(5.4, abs=0.1)
