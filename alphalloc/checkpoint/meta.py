"""The layout of Meta's own releases: ``consolidated.NN.pth`` beside ``params.json``, one file a tensor-parallel rank.

Each rank holds a part of every matrix: of the layers that split their outputs (wq, wk, wv, w1, w3, output) some rows,
of those that split their inputs (wo, w2) some columns. Embeddings were split by columns up to Llama 2 and by rows since
Llama 3; the width of the norms tells which. The parts are put together one matrix at a time, when it is loaded.

Mistral's ``consolidated.safetensors`` has the same names in one file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphalloc.checkpoint.buffers import FileSlice, Joined
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, StoredTensor
from alphalloc.checkpoint.naming import module_path
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError

PARAMS_NAME = "params.json"
RANK = re.compile(r"consolidated\.([0-9]{2,3})\.pth")
_BLOCK = re.compile(r"layers\.([0-9]{1,6})\.(.+)")
_INSIDE = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj", "feed_forward.gate": "mlp.gate",
}  # fmt: skip
_OUTSIDE = {"tok_embeddings": "model.embed_tokens", "output": "lm_head"}
_BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_BY_COLUMNS = ("wo", "w2")


def meta_path(name: str) -> str:
    """Return the module path of one of Meta's tensor names in Hugging Face's spelling, as far as it is known."""
    path = module_path(name)
    match = _BLOCK.fullmatch(path)
    if match is None:
        return _OUTSIDE.get(path, path)
    inner = re.sub(r"^feed_forward\.experts\.([0-9]+)\.w([123])$", _expert, match[2])
    return f"model.layers.{match[1]}.{_INSIDE.get(inner, inner)}"


def is_meta(tensors: Sequence[StoredTensor]) -> bool:
    """Whether the names are those of Meta's layout."""
    return any(_BLOCK.match(tensor.name) and ".attention.w" in tensor.name for tensor in tensors)


def join_ranks(folder: Path, ranks: Sequence[Sequence[StoredTensor]], params: Mapping[str, Any]) -> list[StoredTensor]:
    """Return the whole model's tensors from those of every rank, in the order of the files.

    Raises CorruptCheckpointError when a rank lacks a tensor or its shape does not go with the others or with
    ``params.json``, UnsupportedCheckpointError for a matrix of which it is not known how it was split.
    """
    if len(ranks) == 1:
        return list(ranks[0])
    named = [{tensor.name: tensor for tensor in rank} for rank in ranks]
    for at, rank in enumerate(named):
        missing = sorted(set(named[0]) ^ set(rank))
        if missing:
            raise CorruptCheckpointError(
                f"{folder}: expected the same tensors in every rank, {missing[0][:200]!r} is not in both rank 0 and "
                f"rank {at}; copy the files again"
            )
    width = _width(named[0], params)
    return [_join(folder, [rank[name] for rank in named], width, params) for name in named[0]]


def _expert(match: re.Match[str]) -> str:
    role = {"1": "gate_proj", "2": "down_proj", "3": "up_proj"}[match[2]]
    return f"mlp.experts.{match[1]}.{role}"


def _width(tensors: Mapping[str, StoredTensor], params: Mapping[str, Any]) -> int | None:
    """The width of the model: params.json says it, or else the norm, which every rank holds whole."""
    dim = params.get("dim")
    if isinstance(dim, int):
        return dim
    norm = tensors.get("norm.weight")
    return norm.shape[0] if norm is not None and len(norm.shape) == 1 else None


def _join(folder: Path, pieces: list[StoredTensor], width: int | None, params: Mapping[str, Any]) -> StoredTensor:
    first = pieces[0]
    if len(first.shape) < 2 or first.dtype not in FLOAT_DTYPES:
        return first  # norms and buffers: every rank holds them whole
    axis = _axis(folder, first, width)
    loads = tuple(piece.load for piece in pieces)
    fits = all(
        piece.dtype == first.dtype and len(piece.shape) == 2 and piece.shape[1 - axis] == first.shape[1 - axis]
        for piece in pieces
    )
    slices = tuple(load for load in loads if isinstance(load, FileSlice))
    if not fits or len(slices) != len(pieces):
        shapes = ", ".join(f"{list(piece.shape)} of {piece.dtype}" for piece in pieces)
        raise CorruptCheckpointError(f"{folder}: the ranks' parts of {first.name!r} do not go together: {shapes}")
    total = sum(piece.shape[axis] for piece in pieces)
    shape = (total, first.shape[1]) if axis == 0 else (first.shape[0], total)
    _check_width(folder, first.name, shape, width, params)
    return StoredTensor(
        name=first.name,
        shape=shape,
        dtype=first.dtype,
        nbytes=sum(piece.nbytes for piece in pieces),
        source=str(folder),
        load=Joined(slices, axis),
        parts_of=tuple(piece.source for piece in pieces),
    )


def _axis(folder: Path, tensor: StoredTensor, width: int | None) -> int:
    last = module_path(tensor.name).rpartition(".")[2]
    if last in _BY_ROWS and len(tensor.shape) == 2:
        return 0
    if last in _BY_COLUMNS and len(tensor.shape) == 2:
        return 1
    if last == "tok_embeddings" and len(tensor.shape) == 2:
        return 0 if tensor.shape[1] == width else 1
    raise UnsupportedCheckpointError(
        f"{folder}: it is not known how {tensor.name!r} {list(tensor.shape)} was split over the ranks; use the same "
        "model in Hugging Face's layout (for Llama the repository whose name ends in -hf)"
    )


def _check_width(folder: Path, name: str, shape: tuple[int, int], width: int | None, params: Mapping[str, Any]) -> None:
    """What is put together must have the model's width on its outer side, and as many rows as there are heads."""
    last = module_path(name).rpartition(".")[2]
    expected: list[tuple[int, int | None]] = [(0 if last in _BY_COLUMNS else 1, width)]
    heads, groups = params.get("n_heads"), params.get("n_kv_heads") or params.get("n_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads > 0 and width is not None:
        size = params.get("head_dim") if isinstance(params.get("head_dim"), int) else width // heads
        rows = {"wq": heads, "wk": groups, "wv": groups}.get(last)
        expected += [(0, rows * int(size or 0))] if rows else []
    for axis, side in expected:
        if side is not None and shape[axis] != side:
            raise CorruptCheckpointError(
                f"{folder}: {name!r} put together is {shape[0]} x {shape[1]}, {PARAMS_NAME} and the norms ask for "
                f"{side} {'rows' if axis == 0 else 'columns'}; a rank is missing, or the heads are repeated in several "
                "ranks: use the same model in Hugging Face's layout"
            )


def rank_files(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the ranks' files in order; CorruptCheckpointError when one is missing between them."""
    found = sorted((int(match[1]), name) for name in names if (match := RANK.fullmatch(name)))
    missing = sorted(set(range(len(found))) - {rank for rank, _ in found})
    if missing:
        raise CorruptCheckpointError(
            f"{where}: expected consolidated.00.pth and so on without a gap, rank {missing[0]} is missing"
        )
    return tuple(name for _, name in found)


def lone_rank(path: Path) -> str:
    """Return the name of another rank beside the file ``path``, "" when it is the whole model."""
    if not RANK.fullmatch(path.name):
        return ""
    others = sorted(entry.name for entry in os.scandir(path.parent) if RANK.fullmatch(entry.name))
    return next((name for name in others if name != path.name), "")
