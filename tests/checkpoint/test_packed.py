"""Packed weights against what the tools that packed them make of them again; the golden files hold both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.checkpoint.packed import unpack_bits
from alphalloc.checkpoint.unpack import needs_values
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError
from alphalloc.spectra import esd

GOLDEN = Path(__file__).parents[1] / "golden" / "packed"
LAYER = "model.layers.0.self_attn.q_proj"
# case -> (dtype reported, largest difference to the tool's own result, relative to the largest value)
CASES = {
    "bnb_nf4": ("NF4", 0), "bnb_nf4_nested": ("NF4", 0), "bnb_fp4": ("FP4", 0), "bnb_int8": ("INT8", 1e-3),
    "gptq2": ("GPTQ2", 1e-6), "gptq3": ("GPTQ3", 1e-6), "gptq4": ("GPTQ4", 1e-6), "gptq8": ("GPTQ8", 1e-6),
    "gptq4_act_order": ("GPTQ4", 1e-6), "awq4": ("AWQ4", 1e-3),
    "ct_int4": ("INT4", 0), "ct_int4_asymmetric": ("INT4", 0), "ct_int8": ("INT8", 0), "ct_int_quantized": ("INT8", 0),
    "ct_naive": ("INT8", 0), "ct_float": ("F8_E4M3", 0), "ct_float_tensor": ("F8_E4M3", 0),
    "ct_float_block": ("F8_E4M3", 0),
}  # fmt: skip


def place(folder: Path, case: str) -> np.ndarray[Any, Any]:
    """The golden checkpoint as a model folder, without the reference; returns that."""
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    reference = tensors.pop("reference").numpy()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    settings = json.loads((GOLDEN / f"{case}.json").read_text())
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return reference


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_tool_itself(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, tolerance = CASES[case]
    reference = place(tmp_path, case)
    checkpoint = open_checkpoint(tmp_path)
    (matrix,) = checkpoint.matrices
    assert checkpoint.quantized
    assert (matrix.name, matrix.dtype, matrix.quantized) == (f"{LAYER}.weight", dtype, True)
    assert matrix.shape == reference.shape
    values = matrix.load()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, reference, rtol=0, atol=tolerance * np.abs(reference).max())
    whole = values.copy()
    monkeypatch.setattr("alphalloc.checkpoint.packed._SLAB_VALUES", 300)  # many slabs, a short last one
    np.testing.assert_array_equal(matrix.load(), whole)
    assert {s.by_design for s in checkpoint.skipped} == {True}
    assert all(f"belongs to the packed weight {LAYER}.weight" in s.reason for s in checkpoint.skipped)


@pytest.mark.parametrize("case", CASES)
def test_the_spectrum_is_that_of_the_dequantised_matrix(tmp_path: Path, case: str) -> None:
    place(tmp_path, case)
    (matrix,) = open_checkpoint(tmp_path).matrices
    values = matrix.load().astype(np.float64)
    expected = np.linalg.svd(values, compute_uv=False)[::-1] ** 2
    found = esd(matrix.load())
    assert np.abs(found.eigs - expected[found.num_zero :]).max() <= max(min(values.shape), 8) * 2.2e-16 * expected[-1]


@pytest.mark.parametrize("case", ["bnb_nf4_nested", "gptq4", "ct_int4", "ct_float_block", "bnb_int8"])
def test_pytorch_files_and_state_dicts_give_the_same(tmp_path: Path, case: str) -> None:
    place(tmp_path, case)
    values = open_checkpoint(tmp_path).matrices[0].load().copy()
    tensors = load_file(tmp_path / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    torch.save(tensors, other / "pytorch_model.bin")
    shutil.copy(tmp_path / "config.json", other)
    np.testing.assert_array_equal(open_checkpoint(other).matrices[0].load(), values)
    np.testing.assert_array_equal(open_checkpoint(tensors | {}).matrices[0].load(), values)


def test_pieces_in_several_shards(tmp_path: Path) -> None:
    reference = place(tmp_path, "ct_float_block")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for at, (name, tensor) in enumerate(sorted(tensors.items())):
        save_file({name: tensor}, tmp_path / f"model-{at + 1:05}-of-{len(tensors):05}.safetensors")
    (matrix,) = open_checkpoint(tmp_path).matrices
    np.testing.assert_array_equal(matrix.load(), reference)
    assert matrix.source == str(tmp_path)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "mxfp4.safetensors")
    reference = tensors.pop("reference").numpy()  # [experts, in, out], gate and up by turns in the last axis
    blocks, scales = (tensors[f"{LAYER}.{name}"] for name in ("blocks", "scales"))
    state = {}
    for i in range(2):
        base = f"model.layers.{i}.mlp.experts"
        state |= {f"{base}.gate_up_proj_blocks": blocks.clone(), f"{base}.gate_up_proj_scales": scales.clone()}
        state |= {f"{base}.gate_up_proj_bias": torch.zeros(2, 16)}
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": "gpt_oss", "hidden_size": 64, "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert {m.role for m in checkpoint.matrices} == {"gate_proj", "up_proj"}
    for matrix in checkpoint.matrices:
        expert = int(matrix.name.partition("[")[2].partition(".")[0])
        expected = reference[expert].T[matrix.role == "up_proj" :: 2]
        assert matrix.dtype == "MXFP4"
        np.testing.assert_array_equal(matrix.load(), expected)


@pytest.mark.parametrize("suffix", ["weight_scale_inv", "weight_scale"])
def test_fp8_with_blocks_of_128(tmp_path: Path, suffix: str) -> None:
    """DeepSeek-V3's layout: one scale a block of 128 x 128, the last blocks cut short; a loop is the reference."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 300)).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.uniform(0.5, 2, (2, 3)).astype(np.float32)
    tensors = {
        f"{LAYER}.weight": torch.from_numpy(values.view(np.uint8)).view(torch.float8_e4m3fn),
        f"{LAYER}.{suffix}": torch.from_numpy(scales),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    expected = values.astype(np.float32)
    for row in range(200):
        for col in range(300):
            expected[row, col] *= scales[row // 128, col // 128]
    np.testing.assert_array_equal(open_checkpoint(tmp_path).matrices[0].load(), expected)


@pytest.mark.parametrize(("case", "needed"), [("bnb_nf4", True), ("ct_int4", True), ("gptq4", False), ("awq4", False)])
def test_which_tensors_are_read_at_once(tmp_path: Path, case: str, needed: bool) -> None:
    """Zeros in place of the values, as where only headers were fetched: enough unless a tensor says what others are."""
    place(tmp_path, case)
    names = list(load_file(tmp_path / "model.safetensors"))
    assert any(needs_values(name) for name in names) == needed
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:header] + bytes(len(whole) - header))
    if not needed:
        assert len(open_checkpoint(tmp_path).matrices) == 1


@given(st.integers(2, 8), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=12))
def test_law_bits_follow_each_other(bits: int, words: list[int]) -> None:
    number = sum(word << 32 * at for at, word in enumerate(words))
    count = len(words) * 32 // bits
    expected = [number >> bits * at & ((1 << bits) - 1) for at in range(count)]
    assert unpack_bits(np.array(words, dtype=np.uint32), bits, count).tolist() == expected


def test_the_second_gptq_format_stores_zero_points_as_they_are(tmp_path: Path) -> None:
    reference = place(tmp_path, "gptq4")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{LAYER}.qzeros"] = tensors[f"{LAYER}.qzeros"] + 0x11111111
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    np.testing.assert_allclose(open_checkpoint(tmp_path).matrices[0].load(), reference, atol=1e-6)


# case -> (golden, change of its tensors, error on load)
BROKEN: dict[str, tuple[str, Any, str]] = {
    "scales of another shape": ("ct_float_block", {"weight_scale": torch.ones(5, 5)}, "do not go together"),
    "too few block scales": ("bnb_nf4", {"weight.absmax": torch.ones(3)}, "do not go together"),
    "groups out of range": ("gptq4", {"g_idx": torch.full((128,), 9, dtype=torch.int32)}, "outside its 4"),
    "zeros of another shape": ("awq4", {"qzeros": torch.zeros(4, 2, dtype=torch.int32)}, "do not go together"),
    "rows without a scale": ("bnb_int8", {"SCB": torch.ones(5)}, "do not go together"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_pieces_that_contradict_each_other_are_corrupt(tmp_path: Path, case: str) -> None:
    golden, change, message = BROKEN[case]
    place(tmp_path, golden)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {f"{LAYER}.{name}": value for name, value in change.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match=message):
        open_checkpoint(tmp_path).matrices[0].load()


@pytest.mark.parametrize(
    "state", [b"{", b"[]", b'{"shape": [-1, 4], "blocksize": 64}', b'{"shape": [4], "blocksize": 4}']
)
def test_a_quantisation_state_that_lies_is_corrupt(tmp_path: Path, state: bytes) -> None:
    place(tmp_path, "bnb_nf4")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{LAYER}.weight.quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match="no quantisation state"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("case", "settings", "name"),
    [
        ("awq4", {"quant_method": "awq", "version": "gemv"}, "AWQ"),
        ("awq4", {"quant_method": "awq", "bits": 8}, "AWQ"),
        ("gptq4", {"quant_method": "gptq", "bits": 5}, "GPTQ"),
        ("ct_naive", {"quant_method": "modelopt"}, "modelopt"),
    ],
)
def test_a_variant_that_is_not_known_stays_refused(
    tmp_path: Path, case: str, settings: dict[str, Any], name: str
) -> None:
    place(tmp_path, case)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(UnsupportedCheckpointError, match=name):
        open_checkpoint(tmp_path)
