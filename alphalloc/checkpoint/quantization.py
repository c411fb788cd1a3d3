"""Recognises stored codes that were not unpacked, by tensor names, dtypes and config, and refuses them by name.

An int8 or packed 4-bit tensor read as if its codes were weights gives a plausible and wrong spectrum, so every sign of
quantisation that was not understood refuses the whole checkpoint. GGUF is exempt: its reader knows every type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphalloc.checkpoint.matrices import StoredTensor
from alphalloc.errors import UnsupportedCheckpointError

_COMPANIONS = (  # (ending of a tensor name, what writes such tensors), most telling first
    (".weight_packed", "compressed-tensors"),
    (".weight.absmax", "4-bit (bitsandbytes)"),
    (".weight.quant_map", "4-bit (bitsandbytes)"),
    (".weight.quant_state.bitsandbytes__nf4", "4-bit (bitsandbytes nf4)"),
    (".weight.quant_state.bitsandbytes__fp4", "4-bit (bitsandbytes fp4)"),
    (".SCB", "int8 (bitsandbytes)"),
    (".weight_format", "int8 (bitsandbytes)"),
    (".qweight", "4-bit (GPTQ or AWQ)"),
    (".qzeros", "4-bit (GPTQ or AWQ)"),
    (".W_q", "HQQ"),
    (".weight_scale_inv", "fp8"),
    (".weight_scale", "scaled low-bit weights"),
    (".weight_scale_2", "scaled low-bit weights"),
    (".weight_zero_point", "scaled low-bit weights"),
)
_INTEGERS = {"I8": "int8", "U8": "packed 4-bit or uint8", "I32": "packed int32"}  # dtype of a weight -> what it is
_METHODS = {
    "gptq": "4-bit (GPTQ)",
    "awq": "4-bit (AWQ)",
    "bitsandbytes": "bitsandbytes",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
    "mxfp4": "MXFP4",
}


def refuse_quantized(where: str, tensors: Sequence[StoredTensor], config: Mapping[str, Any]) -> None:
    """Return when what was not unpacked is plain; else raise UnsupportedCheckpointError naming format and tensor.

    A config that names a method while nothing of it was found is refused too: the codes may be hidden anywhere.
    """
    method = quantization_method(config)
    name, found = _first_sign([tensor for tensor in tensors if not tensor.quantized])
    if not name and (not method or any(tensor.quantized for tensor in tensors)):
        return
    label = _label(found, method, {tensor.name for tensor in tensors})
    evidence = f"tensor {name!r}" if name else "config.json (quantization_config), though no packed tensor was found"
    raise UnsupportedCheckpointError(
        f"{where}: expected plain weights, found {label} by {evidence}; these are codes, not numbers, and are not read "
        "yet: use the unquantised checkpoint"
    )


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``quantization_config`` of the model or its text model (compressed-tensors' older key included), or {}."""
    for holder in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            settings = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(settings, Mapping):
                return settings
    return {}


def quantization_method(config: Mapping[str, Any]) -> str:
    """Return the method that ``quantization_config`` names (the model's own or its text model's), "" without one."""
    for holder in (config, config.get("text_config")):
        settings = holder.get("quantization_config") if isinstance(holder, Mapping) else None
        if isinstance(settings, Mapping):
            bits = [key for key in ("load_in_8bit", "load_in_4bit") if settings.get(key)]
            return str(settings.get("quant_method") or "unnamed") + (f" ({bits[0]})" if bits else "")
        if settings:
            return str(settings)
    return ""


def _first_sign(tensors: Sequence[StoredTensor]) -> tuple[str, str]:
    names = {tensor.name for tensor in tensors}
    for ending, label in _COMPANIONS:
        for tensor in tensors:
            if tensor.name.endswith(ending):
                return tensor.name, label
    for tensor in tensors:
        if tensor.name.endswith("_blocks") and tensor.name.removesuffix("_blocks") + "_scales" in names:
            return tensor.name, "MXFP4"
        if tensor.dtype.startswith(("F8_", "F4", "F6_")) or "float8" in tensor.dtype or "float4" in tensor.dtype:
            return tensor.name, "fp8" if "8" in tensor.dtype else f"{tensor.dtype} (MXFP4 or NVFP4)"
        if tensor.name.endswith("weight") and len(tensor.shape) >= 2 and tensor.dtype in _INTEGERS:
            return tensor.name, _INTEGERS[tensor.dtype]
    return "", ""


def _label(found: str, method: str, names: set[str]) -> str:
    """The tensors' own evidence, made precise by the config where that names the method."""
    if found == "4-bit (GPTQ or AWQ)":
        if any(name.endswith(".g_idx") for name in names):
            found = "4-bit (GPTQ)"
        elif method in ("gptq", "awq"):
            found = _METHODS[method]
    known = _METHODS.get(method.split(" ")[0], method)
    if not found:
        return known if known == method else f"{known}, quant_method {method!r}"
    return found if not method or method in found.lower() else f"{found}, quant_method {method!r}"
