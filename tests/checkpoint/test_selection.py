"""What is analysed and what is left out: filters, reasons, ties, limits and order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import NothingToAnalyzeError, UnknownArchitectureError

State = Callable[..., dict[str, Any]]


def roles(model: Any, **options: Any) -> set[str]:
    return {matrix.role for matrix in open_checkpoint(model, **options).matrices}


def test_every_tensor_is_analysed_or_listed_with_a_reason(llama_state: State) -> None:
    state = llama_state() | {
        "model.layers.0.scale": np.array(3.0, dtype=np.float32),
        "model.layers.0.conv.weight": np.ones((2, 2, 3), dtype=np.float32),
        "model.layers.0.mask": np.ones((4, 4), dtype=bool),
        "model.layers.0.nothing.weight": np.ones((0, 4), dtype=np.float32),
        "model.layers.0.wide.weight": np.broadcast_to(np.float32(1.0), (1, 262_145)),
    }
    checkpoint = open_checkpoint(state)
    reasons = {s.name: s.reason for s in checkpoint.skipped}
    assert len(checkpoint.matrices) + len(reasons) == len(state)
    assert reasons["model.norm.weight"] == "1-D (bias or norm)"
    assert reasons["model.layers.0.scale"] == "scalar"
    assert reasons["model.layers.0.conv.weight"].startswith("3-D")
    assert reasons["model.layers.0.mask"].startswith("BOOL")
    assert reasons["model.layers.0.nothing.weight"] == "empty"
    assert reasons["model.layers.0.wide.weight"].startswith("larger than 262144")
    assert reasons["lm_head.weight"].startswith("outside the repeated blocks")


def test_a_model_without_any_matrix_is_refused_with_the_reasons() -> None:
    wide = np.broadcast_to(np.float32(1.0), (1, 262_145))
    state = {"model.layers.0.wide.weight": wide, "model.norm.weight": np.ones(4, dtype=np.float32)}
    with pytest.raises(UnknownArchitectureError, match=r"none among 2 tensors .*wide\.weight: larger than .*norm.*1-D"):
        open_checkpoint(state)


def test_a_row_vector_in_a_block_is_a_matrix(llama_state: State) -> None:
    state = llama_state() | {f"model.layers.{i}.mlp.gate.weight": np.ones((1, 8), dtype=np.float32) for i in range(2)}
    assert {m.shape for m in open_checkpoint(state).matrices if m.role == "gate"} == {(1, 8)}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["q_proj", "v_proj"], [], {"q_proj", "v_proj"}),
        (["*.mlp.*"], [], {"gate_proj", "up_proj", "down_proj"}),
        (["model.layers.1.self_attn.?_proj"], ["*.o_proj.weight"], {"q_proj", "k_proj", "v_proj"}),
        ([], ["*_proj.weight", "q_proj"], None),
        ([], ["[qkvo]_proj"], {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_globs_match_names_modules_and_roles(
    llama_state: State, include: list[str], exclude: list[str], expected: set[str] | None
) -> None:
    if expected is None:
        with pytest.raises(NothingToAnalyzeError, match=r"all \d+ tensors are left out"):
            open_checkpoint(llama_state(), include=include, exclude=exclude)
        return
    checkpoint = open_checkpoint(llama_state(), include=include, exclude=exclude)
    assert {m.role for m in checkpoint.matrices} == expected
    left_out = [s for s in checkpoint.skipped if s.reason.startswith(("not included by", "excluded by"))]
    assert len(left_out) + len(checkpoint.matrices) == 14


def test_one_glob_may_be_given_without_a_list(llama_state: State) -> None:
    assert roles(llama_state(), include="q_proj") == {"q_proj"}


def test_a_glob_that_matches_nothing_names_near_matches(llama_state: State) -> None:
    with pytest.raises(NothingToAnalyzeError, match=r"include 'q_prj' matches no matrix .*near ones: q_proj"):
        open_checkpoint(llama_state(), include=["q_prj"])
    with pytest.raises(NothingToAnalyzeError, match=r"exclude 'gate' matches no matrix .*gate_proj"):
        open_checkpoint(llama_state(), exclude=["gate"])


def test_a_glob_that_matches_only_what_is_left_out_says_so(llama_state: State) -> None:
    with pytest.raises(NothingToAnalyzeError, match=r"matches only what is left out: lm_head\.weight \(outside"):
        open_checkpoint(llama_state(), include=["lm_head"])
    assert roles(llama_state(), include=["lm_head"], embeddings=True) == {"lm_head"}


def test_a_head_tied_by_the_config_counts_once(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.{p}.weight" for i in range(2) for p in "qk"]
    tensors = {name: torch.ones(4, 4) for name in names}
    tensors |= {"model.embed_tokens.weight": torch.ones(9, 4), "lm_head.weight": torch.ones(9, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert {"embed_tokens", "lm_head"} <= roles(tmp_path, embeddings=True)
    for config in ('{"tie_word_embeddings": true}', '{"text_config": {"tie_word_embeddings": true}}'):
        (tmp_path / "config.json").write_text(config)
        checkpoint = open_checkpoint(tmp_path, embeddings=True)
        reasons = {s.name: s.reason for s in checkpoint.skipped}
        assert "lm_head" not in {m.role for m in checkpoint.matrices}
        assert reasons["lm_head.weight"].startswith("tied to model.embed_tokens.weight (config.json")


def test_matrices_of_one_storage_count_once(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    state = {"layers.0.q.weight": shared, "layers.0.k.weight": torch.randn(4, 4), "layers.1.q.weight": shared,
             "layers.1.k.weight": torch.randn(4, 4)}  # fmt: skip
    torch.save(state, tmp_path / "pytorch_model.bin")
    for model in (state, tmp_path):
        checkpoint = open_checkpoint(model)
        assert [m.name for m in checkpoint.matrices] == ["layers.0.k.weight", "layers.0.q.weight", "layers.1.k.weight"]
        assert [s.reason for s in checkpoint.skipped] == ["tied to layers.0.q.weight, counted once"]


def test_the_order_is_encoder_decoder_layer_name_whatever_the_file_says(llama_state: State) -> None:
    rng = np.random.default_rng(0)
    names = [f"{side}.block.{i}.{r}.weight" for side in ("decoder", "encoder") for i in range(12) for r in ("q", "k")]
    state = {name: np.ones((2, 2), dtype=np.float32) for name in rng.permutation(names)}
    expected = [
        f"{side}.block.{i}.{r}.weight" for side in ("encoder", "decoder") for i in range(12) for r in ("k", "q")
    ]
    assert [m.name for m in open_checkpoint(state).matrices] == expected


def test_conv1d_needs_the_shape_of_c_attn() -> None:
    linear = {f"h.{i}.attn.c_attn.weight": torch.ones(12, 4) for i in range(2)} | {
        f"h.{i}.mlp.c_fc.weight": torch.arange(64.0).reshape(16, 4) for i in range(2)
    }
    whole = open_checkpoint(linear, split_fused=False).matrices
    assert {m.role: m.shape for m in whole} == {"c_attn": (12, 4), "c_fc": (16, 4)}
    conv1d = {name: tensor.T.contiguous() for name, tensor in linear.items()}
    turned = open_checkpoint(conv1d, split_fused=False).matrices
    assert {m.role: m.shape for m in turned} == {"c_attn": (12, 4), "c_fc": (16, 4)}
    for matrix in turned:
        np.testing.assert_array_equal(matrix.load(), linear[matrix.name].numpy())
        assert not matrix.load().flags.owndata


def test_unknown_names_are_an_error_that_lists_them() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"alpha\.weight, beta\.weight"):
        open_checkpoint({"alpha.weight": torch.ones(4, 4), "beta.weight": torch.ones(4, 4)})


def test_a_layer_pattern_opens_them() -> None:
    state = {f"part{i}x.{r}.weight": torch.ones(4, 4) for i in range(3) for r in ("q", "k")}
    with pytest.raises(UnknownArchitectureError):
        open_checkpoint(state)
    assert [m.layer for m in open_checkpoint(state, layer_pattern="part{}x.").matrices] == [0, 0, 1, 1, 2, 2]
