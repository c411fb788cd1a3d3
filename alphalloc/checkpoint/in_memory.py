"""Weights that already lie in memory: an ``nn.Module`` or a state dict of torch tensors or numpy arrays.

torch is not imported here: a torch object can only come from a program that has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alphalloc.checkpoint.buffers import NUMPY_DTYPES, STORED_DTYPES
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, Array, StoredTensor, frozen
from alphalloc.checkpoint.torch_file import TORCH_DTYPES
from alphalloc.errors import UnsupportedCheckpointError

_NUMPY_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()} | {np.dtype(np.bool_): "BOOL"}

_TOLD = (
    "hidden_size", "n_embd", "num_attention_heads", "n_head", "num_key_value_heads", "num_kv_heads", "head_dim",
    "multi_query", "new_decoder_architecture",
)  # fmt: skip


def is_module(value: object) -> bool:
    """Whether ``value`` is a ``torch.nn.Module``."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def module_tensors(module: Any) -> list[StoredTensor]:
    """Return parameters and buffers of an ``nn.Module`` under the names of its state dict.

    The module's own classes say which weights are embeddings and which are Conv1D (stored in x out). Raises
    UnsupportedCheckpointError for tensors without values (meta device) and for quantised ones.
    """
    kinds: dict[str, str] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        kind = _kind(child)
        if kind:
            kinds[f"{path}.weight".lstrip(".")] = kind
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return [_torch_tensor(name, tensor, kinds.get(name, "")) for name, tensor in named.items()]


def state_dict_tensors(state: Mapping[str, Any]) -> list[StoredTensor]:
    """Return the tensors of a state dict (torch tensors or numpy arrays); other entries are passed over."""
    tensors = []
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            tensors.append(_numpy_tensor(str(name), value))
        elif hasattr(value, "untyped_storage"):
            tensors.append(_torch_tensor(str(name), value, ""))
    if not tensors:
        raise UnsupportedCheckpointError(
            "expected a state dict of torch tensors or numpy arrays, found no tensor in it; pass model.state_dict()"
        )
    return tensors


def module_config(module: Any) -> dict[str, Any]:
    """Return what a transformers model says about itself in the words of ``config.json``; {} for other modules."""
    config = getattr(module, "config", None)
    found: dict[str, Any] = {"architectures": [type(module).__name__]}
    text = getattr(config, "text_config", None)
    for key in _TOLD:
        value = getattr(config, key, None)
        value = getattr(text, key, None) if value is None and text is not None else value
        if isinstance(value, bool | int):
            found[key] = value
    for key in ("model_type", "quantization_config"):
        value = getattr(config, key, None)
        if value is not None:
            found[key] = value if isinstance(value, str | dict) else getattr(value, "__dict__", str(value))
    return found


def _kind(child: Any) -> str:
    names = {base.__name__ for base in type(child).__mro__}
    if "Embedding" in names:
        return "embedding"
    # transformers.pytorch_utils.Conv1D is a linear layer whose weight is stored in x out
    return "conv1d" if "Conv1D" in names else ""


def _torch_tensor(name: str, tensor: Any, kind: str) -> StoredTensor:
    tensor = tensor.detach()
    dtype = TORCH_DTYPES.get(str(tensor.dtype), str(tensor.dtype))
    if tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
        raise UnsupportedCheckpointError(f"{name}: has a shape but no values (device {tensor.device}); load the model")
    if tensor.is_quantized or str(tensor.layout) != "torch.strided":
        raise UnsupportedCheckpointError(f"{name}: quantised or sparse tensor ({dtype}); pass the plain weights")
    shape = tuple(int(side) for side in tensor.shape)
    storage = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), shape) if tensor.numel() else None
    nbytes = tensor.numel() * tensor.element_size()
    raw = _FromTorch(tensor, raw=True) if dtype in STORED_DTYPES else None
    return StoredTensor(name, shape, dtype, nbytes, "memory", _FromTorch(tensor), storage=storage, kind=kind, raw=raw)


def _numpy_tensor(name: str, array: Array) -> StoredTensor:
    dtype = _NUMPY_NAMES.get(array.dtype, str(array.dtype))
    address = array.__array_interface__["data"][0]
    storage = (address, array.strides, array.shape) if array.size else None
    load = _FromNumpy(array)
    raw = load if dtype in STORED_DTYPES else None
    return StoredTensor(name, array.shape, dtype, array.nbytes, "memory", load, storage=storage, raw=raw)


@dataclass(frozen=True)
class _FromTorch:
    """Views a CPU tensor as numpy, or copies a device tensor to the host; bfloat16 goes through its bits."""

    tensor: Any
    raw: bool = False

    def narrow(self, start: int, stop: int, shape: tuple[int, ...]) -> _FromTorch:
        """The part from ``start`` to ``stop`` of the first axis, as ``shape``: a device tensor's alone is copied."""
        return replace(self, tensor=self.tensor[start:stop].reshape(shape))

    def __call__(self) -> Array:
        torch = sys.modules["torch"]
        host = self.tensor.cpu()
        stored = TORCH_DTYPES.get(str(host.dtype), "")
        if self.raw and stored.startswith("F8_"):
            return frozen(host.contiguous().view(torch.uint8).numpy().view(STORED_DTYPES[stored]))
        if self.raw and stored != "BF16":
            return frozen(host.numpy())
        if host.dtype == torch.bfloat16:
            return frozen(host.contiguous().view(torch.int16).numpy().view(NUMPY_DTYPES["BF16"]))
        if TORCH_DTYPES.get(str(host.dtype)) not in FLOAT_DTYPES:
            raise TypeError(f"a tensor of {host.dtype} holds no weights")
        return frozen(host.numpy())


@dataclass(frozen=True)
class _FromNumpy:
    array: Array

    def narrow(self, start: int, stop: int, shape: tuple[int, ...]) -> _FromNumpy:
        """The part from ``start`` to ``stop`` of the first axis, as ``shape``."""
        return _FromNumpy(self.array[start:stop].reshape(shape))

    def __call__(self) -> Array:
        return frozen(self.array)
