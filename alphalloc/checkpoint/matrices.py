"""The nouns of reading: a weight matrix not loaded yet, a tensor left out, the checkpoint that holds both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphalloc.documents import canonical_json
from alphalloc.errors import CorruptCheckpointError, DocumentError

Array = NDArray[Any]
"""2-D values as stored: float16, float32, float64 or ml_dtypes.bfloat16, never upcast."""

FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")
"""Spellings (safetensors') of the dtypes that are plain numbers."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file header or a module declares it, before anything is known about its place in the model.

    ``shape`` is the stored one; ``dtype`` is a member of FLOAT_DTYPES, a GGUF type, or any other dtype's name.
    ``storage`` is equal for tensors that share the same bytes. ``kind`` is "embedding" or "conv1d" where an
    in-memory module says so by its class, else "".

    ``raw`` loads the stored values of any dtype it knows, codes of packed weights included. ``place`` is the module
    path that gives block and role where the name does not (a part of a fused tensor); ``module`` the module reported
    then. ``parts_of`` are the files it is put together from when there are several: ``source`` is their folder then.
    ``recipe`` says how the values are made from the stored ones, as far as config.json decides it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    source: str
    load: Callable[[], Array] = field(repr=False, compare=False)
    offset: int | None = None
    storage: tuple[Any, ...] | None = None
    quantized: bool = False
    kind: str = ""
    raw: Callable[[], Array] | None = field(default=None, repr=False, compare=False)
    place: str = ""
    module: str = ""
    parts_of: tuple[str, ...] = ()
    recipe: str = ""


@dataclass(frozen=True)
class WeightMatrix:
    """One weight matrix of a checkpoint: its metadata, and ``load`` that reads it now.

    ``shape`` is (out_features, in_features); ``layer`` the block index within ``stack`` (-1 outside the blocks);
    ``nbytes`` the bytes it takes in its file and ``offset`` where they begin (None when it lies in memory).
    ``(source, name)`` is enough to open the same matrix again from another process; ``recipe`` tells what config.json
    decided about its values (which rows are the queries, how zero points are stored), "" where it decides nothing.

    The array that ``load`` returns is read-only and may lie in a buffer of the calling thread: it is valid until
    the same thread's next ``load()`` of any matrix. Copy it to keep it.
    """

    name: str
    module: str
    layer: int
    stack: str
    role: str
    shape: tuple[int, int]
    dtype: str
    nbytes: int
    quantized: bool
    source: str
    load: Callable[[], Array] = field(repr=False, compare=False)
    offset: int | None = None
    recipe: str = ""


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor of the checkpoint that is not analysed, and why.

    ``by_design`` is False for what one would expect to be analysed and is not: experts fused in a way that is not
    understood, a matrix that is too large or empty. Biases, norms, embeddings, tied weights and what the caller left
    out are missing by design.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    by_design: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, known from headers alone.

    ``model_id`` is what the user gave; ``revision`` what was asked for and ``commit`` the 40 hex digits it was
    pinned to (hub ids only). ``format`` is "safetensors", "gguf", "torch" or "memory". ``matrices`` are sorted by
    stack (encoder before decoder), layer and name; every other tensor is in ``skipped``. ``notes`` says what was
    chosen where there was a choice.
    """

    model_id: str
    revision: str | None
    commit: str | None
    fingerprint: str
    format: str
    architecture: str | None
    quantized: bool
    matrices: tuple[WeightMatrix, ...]
    skipped: tuple[SkippedTensor, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def fingerprint(tensors: Iterable[StoredTensor], file_sizes: Iterable[int]) -> str:
    """Return "sha256:<hex>" over the sorted (name, shape, dtype, bytes) of all tensors and the sorted file sizes.

    It tells architectures and formats apart at the cost of the headers; it does not look at the values, so two
    fine-tunes of one model share it. The commit pins the values of a hub model.
    """
    headers = sorted([t.name, list(t.shape), t.dtype, t.nbytes] for t in tensors)
    try:
        text = canonical_json({"tensors": headers, "files": sorted(file_sizes)})
    except DocumentError as exc:
        raise CorruptCheckpointError(f"a tensor's name is not Unicode text: {exc}") from exc
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def frozen(array: Array) -> Array:
    """Return ``array`` (or a view of it) that cannot be written to."""
    view = array.view() if isinstance(array, np.ndarray) else np.asarray(array)
    view.flags.writeable = False
    return view
