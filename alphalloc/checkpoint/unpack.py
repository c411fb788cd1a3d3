"""Finds the packed weights of a checkpoint, each with the tensors that belong to it, and makes them matrices.

What a weight is packed with follows from the names and dtypes of its companions; config.json only settles what those
leave open. What is not understood here stays as it is, and is refused by name afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alphalloc.checkpoint.matrices import Array, SkippedTensor, StoredTensor
from alphalloc.checkpoint.packed import Awq, FourBit, Gptq, Mxfp4, Nested, PackedRows, RowInt8, Scaled
from alphalloc.checkpoint.quantization import quantization_settings
from alphalloc.errors import CorruptCheckpointError

Named = Mapping[str, StoredTensor]
Found = tuple[StoredTensor, list[StoredTensor]]  # the matrix, and the stored tensors it is made of
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_ACTIVATIONS = ("input_scale", "activation_scale", "input_activation_scale", "output_scale", "k_scale", "v_scale")
_BLOCK = (128, 128)  # of fp8 weights, where config.json does not say otherwise


def unpack(
    tensors: Sequence[StoredTensor], config: Mapping[str, Any]
) -> tuple[list[StoredTensor], list[SkippedTensor]]:
    """Return ``tensors`` with every packed weight that is understood as one quantised tensor, and its companions."""
    named = {tensor.name: tensor for tensor in tensors}
    settings = quantization_settings(config)
    made: dict[str, StoredTensor] = {}
    owners: dict[str, str] = {}
    for tensor in tensors:
        found = _find(tensor, named, settings)
        if found is not None:
            matrix, pieces = found
            made[tensor.name] = matrix
            owners |= {piece.name: matrix.name for piece in pieces if piece.name != tensor.name}
            base = matrix.name.removesuffix("weight")
            owners |= {base + end: matrix.name for end in _ACTIVATIONS if base + end in named}
    skipped = [
        SkippedTensor(tensor.name, tensor.shape, f"belongs to the packed weight {owners[tensor.name]}")
        for tensor in tensors
        if tensor.name in owners
    ]
    return [made.get(t.name, t) for t in tensors if t.name not in owners], skipped


def needs_values(name: str) -> bool:
    """Whether the values of the tensor ``name`` are read when a checkpoint is opened: they say what a weight is."""
    return ".quant_state.bitsandbytes__" in name or name.endswith((".weight_shape", ".weight_format"))


def _find(tensor: StoredTensor, named: Named, settings: Mapping[str, Any]) -> Found | None:
    name = tensor.name
    if name.endswith(".qweight"):
        return _gptq(tensor, named, settings) or _awq(tensor, named, settings)
    if name.endswith(".weight_packed"):
        return _packed_rows(tensor, named)
    if name.endswith("_blocks"):
        return _mxfp4(tensor, named)
    if not name.endswith("weight") or len(tensor.shape) != 2:
        return None
    if f"{name}.absmax" in named:
        return _four_bit(tensor, named)
    if tensor.dtype == "I8" and name.removesuffix("weight") + "SCB" in named:
        return _row_int8(tensor, named)
    return _scaled(tensor, named, settings)


def _four_bit(tensor: StoredTensor, named: Named) -> Found | None:
    states = [f"{tensor.name}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
    state = next((named[name] for name in states if name in named), None)
    absmax, table = named[f"{tensor.name}.absmax"], named.get(f"{tensor.name}.quant_map")
    if state is None or state.raw is None or table is None or state.nbytes > 2**16:
        return None
    facts = _facts(state)
    pieces = [tensor, absmax, table, state]
    nested = None
    if "nested_blocksize" in facts:
        codes, scales = named.get(f"{tensor.name}.nested_quant_map"), named.get(f"{tensor.name}.nested_absmax")
        if codes is None or scales is None:
            return None
        pieces += [codes, scales]
        nested = Nested(_raw(codes), _raw(scales), int(facts["nested_blocksize"]), float(facts["nested_offset"]))
    shape = tuple(int(side) for side in facts["shape"])
    load = FourBit(
        tensor.name, _raw(tensor), _raw(table), _raw(absmax), nested, int(facts["blocksize"]), (shape[0], shape[-1])
    )
    return _made(tensor, tensor.name, shape, str(facts["quant_type"]).upper(), load, pieces)


def _facts(state: StoredTensor) -> dict[str, Any]:
    try:
        facts = json.loads(bytes(np.array(_raw(state)(), dtype=np.uint8)).decode("utf-8"))
        shape = facts["shape"]
        sizes = [facts["blocksize"], facts.get("nested_blocksize", 2), *shape]
        if len(shape) != 2 or not all(type(size) is int and 0 < size < 2**31 for size in sizes) or sizes[0] % 2:
            raise ValueError(f"shape {shape} in blocks of {sizes[0]}")
        return dict(facts)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise CorruptCheckpointError(f"{state.source}: {state.name!r} is no quantisation state: {exc}") from exc


def _row_int8(tensor: StoredTensor, named: Named) -> Found | None:
    base = tensor.name.removesuffix("weight")
    absmax = named[base + "SCB"]
    pieces = [tensor, absmax]
    order = named.get(base + "weight_format")
    if order is not None:
        if order.raw is None or np.any(np.array(order.raw()) != 0):
            return None  # columns reordered for old GPUs
        pieces.append(order)
    shape = (tensor.shape[0], tensor.shape[1])
    load = RowInt8(tensor.name, _raw(tensor), _raw(absmax), shape)
    return _made(tensor, tensor.name, shape, "INT8", load, pieces)


def _gptq(tensor: StoredTensor, named: Named, settings: Mapping[str, Any]) -> Found | None:
    base = tensor.name.removesuffix("qweight")
    zeros, scales, groups = (named.get(base + end) for end in ("qzeros", "scales", "g_idx"))
    method = settings.get("quant_method")
    if zeros is None or scales is None or method not in (None, "gptq") or (groups is None and method != "gptq"):
        return None
    bits = settings.get("bits")
    if bits is None and groups is not None and groups.shape and groups.shape[0]:
        bits = tensor.shape[0] * 32 // groups.shape[0]
    if bits not in (2, 3, 4, 8) or len(tensor.shape) != 2 or len(scales.shape) != 2:
        return None
    width, out = tensor.shape[0] * 32 // bits, tensor.shape[1]
    if width % 32 or settings.get("checkpoint_format", "gptq") not in ("gptq", "gptq_v2"):
        return None
    offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    pieces = [tensor, zeros, scales] + ([groups] if groups is not None else [])
    size = -(-width // max(scales.shape[0], 1))
    load = Gptq(
        base + "weight", _raw(tensor), _raw(zeros), _raw(scales), _raw(groups) if groups is not None else None, size,
        bits, offset, (out, width),
    )  # fmt: skip
    return _made(tensor, base + "weight", (out, width), f"GPTQ{bits}", load, pieces, f"offset {offset}")


def _awq(tensor: StoredTensor, named: Named, settings: Mapping[str, Any]) -> Found | None:
    base = tensor.name.removesuffix("qweight")
    zeros, scales = named.get(base + "qzeros"), named.get(base + "scales")
    known = settings.get("quant_method") == "awq" and str(settings.get("version", "gemm")).lower() == "gemm"
    if zeros is None or scales is None or not known or settings.get("bits", settings.get("w_bit", 4)) != 4:
        return None
    width, out = tensor.shape[0], tensor.shape[1] * 8
    if len(scales.shape) != 2 or scales.shape[1] != out:
        return None
    load = Awq(base + "weight", _raw(tensor), _raw(zeros), _raw(scales), (out, width))
    return _made(tensor, base + "weight", (out, width), "AWQ4", load, [tensor, zeros, scales])


def _scaled(tensor: StoredTensor, named: Named, settings: Mapping[str, Any]) -> Found | None:
    """float8 with scales of any shape; int8 where config.json says that compressed-tensors wrote it."""
    base = tensor.name.removesuffix("weight")
    scales = named.get(base + "weight_scale_inv") or named.get(base + "weight_scale")
    signed = tensor.dtype == "I8" and settings.get("quant_method") == "compressed-tensors"
    if scales is None or not (tensor.dtype in _FLOAT8 or signed) or base + "weight_global_scale" in named:
        return None
    if tensor.raw is None or scales.raw is None or base + "weight_scale_2" in named:
        return None
    zeros = named.get(base + "weight_zero_point")
    shape = (tensor.shape[0], tensor.shape[1])
    load = Scaled(
        tensor.name, tensor.raw, scales.raw, _raw(zeros) if zeros is not None else None, _block(settings), shape
    )
    pieces = [tensor, scales] + ([zeros] if zeros is not None else [])
    return _made(tensor, tensor.name, shape, "INT8" if signed else tensor.dtype, load, pieces, f"block {load.block}")


def _packed_rows(tensor: StoredTensor, named: Named) -> Found | None:
    base = tensor.name.removesuffix("weight_packed")
    ends = ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
    scales, shape, zeros, groups = (named.get(base + end) for end in ends)
    if scales is None or shape is None or shape.raw is None or tensor.dtype != "I32" or len(tensor.shape) != 2:
        return None
    if shape.shape != (2,) or base + "weight_global_scale" in named:
        return None
    rows, cols = (int(side) for side in np.array(shape.raw()))
    bits = next((b for b in (2, 4, 8) if cols > 0 and -(-cols * b // 32) == tensor.shape[1]), None)
    if bits is None or rows != tensor.shape[0]:
        return None
    load = PackedRows(
        base + "weight", _raw(tensor), _raw(scales), _raw(zeros) if zeros is not None else None,
        _raw(groups) if groups is not None else None, bits, (rows, cols),
    )  # fmt: skip
    pieces = [piece for piece in (tensor, scales, shape, zeros, groups) if piece is not None]
    return _made(tensor, base + "weight", (rows, cols), f"INT{bits}", load, pieces)


def _mxfp4(tensor: StoredTensor, named: Named) -> Found | None:
    name = tensor.name.removesuffix("_blocks")
    scales = named.get(f"{name}_scales")
    if scales is None or tensor.shape[-1:] != (16,) or tensor.shape[:-1] != scales.shape or len(scales.shape) < 2:
        return None
    if not (tensor.dtype == scales.dtype == "U8"):
        return None
    shape = (*tensor.shape[:-2], tensor.shape[-2] * 32)
    return _made(tensor, name, shape, "MXFP4", Mxfp4(_raw(tensor), _raw(scales), shape), [tensor, scales])


def _made(
    tensor: StoredTensor, name: str, shape: tuple[int, ...], dtype: str, load: Callable[[], Array],
    pieces: Sequence[StoredTensor], recipe: str = "",
) -> Found:  # fmt: skip
    files = tuple(dict.fromkeys(piece.source for piece in pieces))
    source = tensor.source if len(files) == 1 else os.fspath(Path(tensor.source).parent)
    matrix = StoredTensor(
        name=name, shape=shape, dtype=dtype, nbytes=sum(piece.nbytes for piece in pieces), source=source, load=load,
        quantized=True, parts_of=files if len(files) > 1 else (), recipe=f"{dtype} {recipe}".strip(),
    )  # fmt: skip
    return matrix, list(pieces)


def _raw(tensor: StoredTensor) -> Callable[[], Array]:
    if tensor.raw is None:
        raise CorruptCheckpointError(f"{tensor.source}: {tensor.name!r} of a packed weight is {tensor.dtype}; not read")
    return tensor.raw


def _block(settings: Mapping[str, Any]) -> tuple[int, int]:
    """The block of scales that the config names, compressed-tensors' included."""
    sizes = [settings.get("weight_block_size")]
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        sizes.append(weights.get("block_structure") if isinstance(weights, Mapping) else None)
    for size in sizes:
        if isinstance(size, list | tuple) and len(size) == 2 and all(type(s) is int and s > 0 for s in size):
            return (size[0], size[1])
    return _BLOCK
