"""Packs small matrices with every format's own tool and keeps what the tool itself makes of them again.

Needs, beside this project's development environment: bitsandbytes, compressed-tensors 0.20.0, auto-gptq 0.7.1 and
autoawq 0.2.9 (installed without their dependencies into one folder, given as the first argument, is enough: only their
packing code runs, on the CPU). Writes tests/golden/packed/<case>.safetensors and <case>.json:

    python tests/golden/make_packed.py FOLDER
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "packed"
LAYER = "model.layers.0.self_attn.q_proj"
SEED = 7


def weight(rows: int = 32, cols: int = 128) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(SEED)) * 0.05


def keep(case: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any], again: torch.Tensor) -> None:
    """One file: the packed tensors under their names, and what the tool dequantises them to as "reference"."""
    HERE.mkdir(exist_ok=True)
    named = {f"{LAYER}.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named | {"reference": again.float().contiguous()}, HERE / f"{case}.safetensors")
    (HERE / f"{case}.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")


def bitsandbytes() -> None:
    from bitsandbytes import functional as bnb

    # rows of whole blocks: bitsandbytes 0.50.2 on the CPU begins a new block with every row, which its GPU does not
    for case, kind, nested, shape in (
        ("bnb_nf4", "nf4", False, (32, 128)), ("bnb_nf4_nested", "nf4", True, (96, 192)),
        ("bnb_fp4", "fp4", False, (32, 128)),
    ):  # fmt: skip
        packed, state = bnb.quantize_4bit(weight(*shape), quant_type=kind, compress_statistics=nested, blocksize=64)
        again = bnb.dequantize_4bit(packed, state)
        named = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
        keep(case, named, {"quant_method": "bitsandbytes", "load_in_4bit": True}, again)
    codes, scales, _ = bnb.int8_vectorwise_quant(weight().half())
    named = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    keep("bnb_int8", named, settings, bnb.int8_vectorwise_dequant(codes, scales))


def without_init(folder: Path, *names: str) -> None:
    """Let modules below these packages be imported without the packages' own __init__, which need much more."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module


def gptq(folder: Path) -> None:
    without_init(folder, "auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    for case, bits, ordered in (("gptq2", 2, False), ("gptq3", 3, False), ("gptq4", 4, False), ("gptq8", 8, False),
                                ("gptq4_act_order", 4, True)):  # fmt: skip
        name = "qlinear_cuda" if ordered else "qlinear_cuda_old"
        module = importlib.import_module(f"auto_gptq.nn_modules.qlinear.{name}")
        layer = module.QuantLinear(bits, 32, 128, 32, False, **({} if ordered else {"use_cuda_fp16": False}))
        linear = torch.nn.Linear(128, 32, bias=False)
        linear.weight.data = weight()
        groups = torch.arange(128) // 32
        if ordered:
            groups = groups[torch.randperm(128, generator=torch.Generator().manual_seed(SEED))]
        parts = [linear.weight.data[:, groups == group] for group in range(4)]
        top = 2**bits - 1
        low = torch.stack([part.amin(1) for part in parts], 1).clamp(max=-1e-3)
        high = torch.stack([part.amax(1) for part in parts], 1).clamp(min=1e-3)
        scales = (high - low) / top
        zeros = torch.round(-low / scales).clamp(1, top)
        layer.pack(linear, scales.clone(), zeros.clone(), groups.int())
        tensors = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
        tensors["g_idx"] = groups.int()
        with torch.no_grad():
            again = layer(torch.eye(128)).T
        settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": ordered}
        keep(case, tensors, settings, again)


def awq(folder: Path) -> None:
    without_init(folder, "awq", "awq.utils", "awq.modules", "awq.modules.linear")
    gemm = importlib.import_module("awq.modules.linear.gemm")
    packing = importlib.import_module("awq.utils.packing_utils")
    gemm.get_best_device = lambda: "cpu"
    linear = torch.nn.Linear(128, 32, bias=False)
    linear.weight.data = weight()
    parts = linear.weight.data.reshape(32, 4, 32)
    low, high = parts.amin(2).T, parts.amax(2).T  # [groups, out]
    scales = (high - low) / 15
    zeros = torch.round(-low / scales).clamp(0, 15)
    layer = gemm.WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales, zeros=zeros)
    again = packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, 32).T
    tensors = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales")}
    keep("awq4", tensors, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, again)


def compressed() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    cases: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
        "ct_int4": ("pack-quantized", (32, 128), {"num_bits": 4, "strategy": "group", "group_size": 32}),
        "ct_int4_asymmetric": (
            "pack-quantized", (32, 128), {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        "ct_int8": ("pack-quantized", (32, 128), {"num_bits": 8, "strategy": "channel"}),
        "ct_int_quantized": ("int-quantized", (32, 128), {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        "ct_naive": ("naive-quantized", (32, 128), {"num_bits": 8, "strategy": "tensor"}),
        "ct_float": ("float-quantized", (32, 128), {"num_bits": 8, "strategy": "channel", "type": "float"}),
        "ct_float_tensor": ("float-quantized", (32, 128), {"num_bits": 8, "strategy": "tensor", "type": "float"}),
        "ct_float_block": (
            "float-quantized", (64, 96),
            {"num_bits": 8, "strategy": "block", "type": "float", "block_structure": [32, 32]},
        ),
    }  # fmt: skip
    for case, (form, shape, settings) in cases.items():
        values = weight(*shape)
        args = QuantizationArgs(**({"symmetric": True, "dynamic": False} | settings))
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
        blocks = {
            "group": values.reshape(shape[0], -1, 32) if shape[1] % 32 == 0 else values,
            "channel": values[:, None], "tensor": values.reshape(1, 1, -1),
            "block": values.reshape(shape[0] // 32, 32, shape[1] // 32, 32).transpose(1, 2).flatten(2),
        }[settings["strategy"]]  # fmt: skip
        scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
        if settings["strategy"] == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        state = {"weight": values.clone(), "weight_scale": scale, "weight_zero_point": zero}
        tool = BaseCompressor.get_value_from_registry(form)
        packed = tool.compress(state, scheme)
        again = tool.decompress(dict(packed), scheme)["weight"]
        groups = {"group_0": {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}}
        keep(case, packed, {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}, again)


def mxfp4() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(SEED)
    blocks = torch.randint(0, 256, (2, 16, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 128, (2, 16, 2), dtype=torch.uint8, generator=generator)
    again = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    keep("mxfp4", {"blocks": blocks, "scales": scales}, {"quant_method": "mxfp4"}, again)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    bitsandbytes()
    gptq(Path(sys.argv[1]))
    awq(Path(sys.argv[1]))
    compressed()
    mxfp4()
