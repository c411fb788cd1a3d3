"""Several linear layers stored as one tensor, taken apart: q, k and v of an attention, gate and up of a feed-forward.

Where the rows of each part lie depends on the family. Most stack the parts one after the other. GPT-NeoX, BLOOM and
their kin interleave them head by head; Falcon's newer models and InternLM2 do so per group of heads that share a key.
config.json says which and how large; a tensor that does not fit what it says is left whole, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alphalloc.checkpoint.buffers import FileSlice, Groups, Joined, View, narrowed
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, Array, StoredTensor

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")
_STACKED = ("qkv_proj", "Wqkv", "W_pack", "c_attn", "qkv", "attn_qkv", "query_key_value", "in_proj", "wqkv")
_GATED = ("gate_up_proj", "Wi", "dense_h_to_4h")
_BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")  # [q, k, v] for every head
_UNNAMED = ("query_key_value", "wqkv")  # one name, several layouts: only the config tells
_UNKNOWN = ("codegen",)  # splits its heads over four devices of its training first
_CONV1D_ENDINGS = (".c_attn", ".c_fc", ".c_proj", ".q_attn")


@dataclass(frozen=True)
class Layout:
    """``count`` equal groups of output rows, each with ``sizes`` rows of the parts ``roles``, in this order."""

    roles: tuple[str, ...]
    sizes: tuple[int, ...]
    count: int = 1


@dataclass(frozen=True)
class Attention:
    """What a config says about its attention: number of query heads, of key heads, numbers a head, width."""

    heads: int
    groups: int
    size: int
    width: int | None


def split_fused(
    tensors: Sequence[StoredTensor], config: Mapping[str, Any], spell: Callable[[str], str]
) -> tuple[list[StoredTensor], tuple[str, ...]]:
    """Return ``tensors`` with every fused matrix replaced by its parts "<tensor>[q_proj]", and notes on those left.

    A part keeps the module of the whole and takes its place (block, role) from its own name.
    """
    found: list[StoredTensor] = []
    left: list[str] = []
    for tensor in tensors:
        path = spell(tensor.name)
        last = path.rpartition(".")[2]
        if not _is_fused(tensor, last):
            found.append(tensor)
            continue
        out = tensor.shape[1] if tensor.kind == "conv1d" else tensor.shape[0]
        layout = layout_of(last, (out, sum(tensor.shape) - out), config)
        if layout is None:
            left += [last] if last in _STACKED else []
            found.append(tensor)
        else:
            found += parts(tensor, layout, path)
    names = ", ".join(dict.fromkeys(left))
    return found, (f"kept fused, as config.json does not say how to split them: {names}",) if left else ()


def mark_conv1d(tensors: Sequence[StoredTensor], spell: Callable[[str], str]) -> list[StoredTensor]:
    """Return ``tensors`` with GPT-2's Conv1D weights (stored in x out) marked as such.

    Class names decide for a module in memory. For a file, c_attn does: it makes queries, keys and values of one
    input, so its outputs outnumber its inputs, and its stored shape tells which axis is which.
    """
    attention = [t for t in tensors if len(t.shape) == 2 and spell(t.name).endswith(".c_attn")]
    known = any(tensor.kind == "conv1d" for tensor in tensors)
    if known or not attention or any(tensor.shape[0] >= tensor.shape[1] for tensor in attention):
        return list(tensors)
    return [replace(t, kind="conv1d") if _is_conv1d(t, spell(t.name)) else t for t in tensors]


def layout_of(last: str, shape: tuple[int, int], config: Mapping[str, Any]) -> Layout | None:
    """Return how the ``out x in`` matrix of the module name ``last`` is put together; None when that is not known."""
    out, width = shape
    family = str(setting(config, "model_type") or "")
    if last in _GATED:
        owner = {"Wi": "modernbert", "dense_h_to_4h": "chatglm"}.get(last, family)
        if out % 2 or family != owner:
            return None
        return Layout(GATE_UP, (out // 2, out // 2))
    attention = attention_of(config)
    if family in _UNKNOWN:
        return None
    if attention is not None and attention.width in (None, width):
        layout = _qkv_layout(last, family, attention, config)
        if layout is not None and layout.count * sum(layout.sizes) == out:
            return layout
    if last not in _UNNAMED and family != "gpt_bigcode" and out == 3 * width:
        return Layout(QKV, (width, width, width))
    return None


def attention_of(config: Mapping[str, Any]) -> Attention | None:
    """Return the numbers of heads and their size that ``config`` gives under any of its usual names."""
    heads = number(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    width = number(config, "hidden_size", "n_embd", "d_model", "dim")
    size = number(config, "head_dim", "kv_channels") or (width // heads if heads and width else None)
    if heads is None or size is None:
        return None
    groups = number(config, "num_key_value_heads", "num_kv_heads", "multi_query_group_num", "kv_n_heads", "n_head_kv")
    if setting(config, "multi_query") is True and not setting(config, "new_decoder_architecture"):
        groups = 1
    return Attention(heads, groups or heads, size, width)


def parts(tensor: StoredTensor, layout: Layout, path: str) -> list[StoredTensor]:
    """Return one StoredTensor a role of ``layout``; ``path`` is the module path of the whole."""
    base, _, _ = path.rpartition(".")
    found = []
    start = 0
    for role, size in zip(layout.roles, layout.sizes, strict=True):
        rows = layout.count * size
        turned = tensor.kind == "conv1d"
        shape = (tensor.shape[0], rows) if turned else (rows, tensor.shape[1])
        load = _columns(tensor, start, size) if turned else _rows(tensor, layout, start, size)
        found.append(
            replace(
                tensor,
                name=f"{tensor.name}[{role}]",
                shape=shape,
                nbytes=tensor.nbytes * rows // max(tensor.shape[1 if turned else 0], 1),
                load=load,
                raw=None,
                offset=load.offset if isinstance(load, FileSlice) else None,
                storage=(*tensor.storage, role) if tensor.storage is not None else None,
                place=f"{base}.{role}" if base else role,
                module=path,
                recipe=f"{tensor.recipe} {layout.count} x {layout.sizes} from {start}".strip(),
            )
        )
        start += size
    return found


def _is_fused(tensor: StoredTensor, last: str) -> bool:
    if len(tensor.shape) != 2 or (tensor.dtype not in FLOAT_DTYPES and not tensor.quantized):
        return False
    if last == "in_proj":  # torch's MultiheadAttention, not the in_proj of state-space models
        return tensor.name.endswith("in_proj_weight")
    return (last in _STACKED or last in _GATED) and not tensor.name.endswith((".bias", "_bias"))


def _qkv_layout(last: str, family: str, attention: Attention, config: Mapping[str, Any]) -> Layout | None:
    heads, groups, size = attention.heads, attention.groups, attention.size
    by_head = family in _BY_HEAD or (family == "falcon" and not setting(config, "multi_query"))
    if family == "gpt_bigcode" and setting(config, "multi_query") is False:
        by_head = True
    if (family == "falcon" and setting(config, "new_decoder_architecture")) or last == "wqkv":
        return Layout(QKV, (heads // groups * size, size, size), groups) if heads % groups == 0 else None
    if by_head:
        return Layout(QKV, (size, size, size), heads)
    if last in _UNNAMED and family not in ("chatglm", "falcon", "gguf"):
        return None
    return Layout(QKV, (heads * size, groups * size, groups * size))


def _rows(tensor: StoredTensor, layout: Layout, start: int, size: int) -> Callable[[], Array]:
    rows, cols = tensor.shape
    if layout.count == 1:
        return narrowed(tensor.load, start, start + size, (size, cols), rows)
    group = rows // layout.count
    if isinstance(tensor.load, FileSlice) and tensor.dtype in FLOAT_DTYPES:
        tops = range(start, rows, group)
        return Joined(tuple(tensor.load.narrow(top, top + size, (size, cols)) for top in tops), 0)
    return Groups(tensor.load, (rows, cols), layout.count, start, start + size)


def _columns(tensor: StoredTensor, start: int, size: int) -> View:
    rows, cols = tensor.shape
    return View(tensor.load, (rows, cols), cols=slice(start, start + size))


def _is_conv1d(tensor: StoredTensor, path: str) -> bool:
    in_block = any(part.isdigit() for part in path.split("."))
    return len(tensor.shape) == 2 and in_block and path.endswith(_CONV1D_ENDINGS)


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of ``key`` in the config, its text model's or its attention's own part."""
    for holder in (config, config.get("text_config"), config.get("attn_config"), config.get("llm_config")):
        if isinstance(holder, Mapping) and holder.get(key) is not None:
            return holder[key]
    return None


def number(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first of ``keys`` that :func:`setting` knows as a positive integer."""
    for key in keys:
        value = setting(config, key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
