"""Reading tensor bytes by offset into one reused buffer a thread, so that memory stays flat in the model's size."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from alphalloc.checkpoint.files import open_regular, read_into
from alphalloc.checkpoint.matrices import Array, frozen
from alphalloc.errors import CorruptCheckpointError

NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}

STORED_DTYPES: dict[str, np.dtype[np.generic]] = NUMPY_DTYPES | {
    "U8": np.dtype(np.uint8), "I8": np.dtype(np.int8), "I16": np.dtype(np.int16), "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip
"""The dtypes whose raw values can be read; those beside NUMPY_DTYPES are codes of packed weights."""

SLAB_BYTES = 4 * 2**20  # read at a time where pieces are put together; chosen here: small beside any matrix

_local = threading.local()


def scratch(nbytes: int, slot: str = "bytes") -> Array:
    """Return ``nbytes`` writable bytes (uint8) of the calling thread's buffer ``slot``, grown when it is too small.

    The next call with the same slot in the same thread hands out the same memory again.
    """
    held: Array | None = getattr(_local, slot, None)
    if held is None or held.size < nbytes:
        setattr(_local, slot, None)  # free the old one before the larger one is taken
        held = np.empty(nbytes, dtype=np.uint8)
        setattr(_local, slot, held)
    return held[:nbytes]


def release_buffers() -> None:
    """Give the calling thread's buffers back; arrays loaded before stay valid, as they hold the memory themselves."""
    _local.__dict__.clear()


def read_raw(path: str, offset: int, nbytes: int, size: int) -> Array:
    """Return ``nbytes`` bytes of ``path`` from ``offset`` in the thread's buffer.

    Raises CorruptCheckpointError when the file is no longer the ``size`` bytes whose header was read.
    """
    raw = scratch(nbytes)
    with open_regular(Path(path)) as descriptor:
        found = os.fstat(descriptor).st_size
        if found != size:
            raise CorruptCheckpointError(
                f"{path}: had {size} bytes when its header was read and has {found} now; open the checkpoint again"
            )
        read_into(descriptor, raw.data, offset, path)
    return raw


@dataclass(frozen=True)
class FileSlice:
    """Loads one plain tensor: ``shape`` numbers of ``dtype`` (little-endian) at ``offset`` of ``path``.

    A value rather than a closure, so that it can be sent to another process.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    file_bytes: int

    def __call__(self) -> Array:
        dtype = STORED_DTYPES[self.dtype]
        raw = read_raw(self.path, self.offset, prod(self.shape) * dtype.itemsize, self.file_bytes)
        return frozen(raw.view(dtype).reshape(self.shape))

    def narrow(self, start: int, stop: int, shape: tuple[int, ...]) -> FileSlice:
        """The part from ``start`` to ``stop`` of the first axis, as ``shape``: less is read, not more thrown away."""
        step = prod(self.shape[1:]) * STORED_DTYPES[self.dtype].itemsize
        return replace(self, offset=self.offset + start * step, shape=shape)


@dataclass(frozen=True)
class NotNumbers:
    """Stands for the values of a tensor that holds no plain numbers (integers, booleans, packed weights)."""

    name: str
    dtype: str

    def __call__(self) -> Array:
        raise TypeError(f"{self.name} holds {self.dtype}, which is never loaded")


@dataclass(frozen=True)
class Transposed:
    """Loads the transpose of what ``load`` returns, as a view: GPT-2's Conv1D stores in x out."""

    load: Callable[[], Array]

    def __call__(self) -> Array:
        return self.load().T


@dataclass(frozen=True)
class View:
    """Loads what ``load`` returns, gives it the shape ``whole`` and shows the part ``rows``, ``cols`` of it."""

    load: Callable[[], Array]
    whole: tuple[int, int]
    rows: slice = field(default_factory=lambda: slice(None))
    cols: slice = field(default_factory=lambda: slice(None))

    def __call__(self) -> Array:
        return self.load().reshape(self.whole)[self.rows, self.cols]


@dataclass(frozen=True)
class Groups:
    """Loads rows ``start`` to ``stop`` of each of ``count`` equal groups of rows: heads that hold q, k, v by turns."""

    load: Callable[[], Array]
    shape: tuple[int, int]
    count: int
    start: int
    stop: int

    def __call__(self) -> Array:
        rows, cols = self.shape
        groups = self.load().reshape(self.count, rows // self.count, cols)
        return frozen(groups[:, self.start : self.stop].reshape(-1, cols))


@dataclass(frozen=True)
class Joined:
    """Loads matrices of one dtype that lie in several files as one, along ``axis`` (0: rows, 1: columns).

    Read piece by piece, in slabs of rows, so that the whole is in memory once.
    """

    pieces: tuple[FileSlice, ...]
    axis: int

    def __call__(self) -> Array:
        dtype = NUMPY_DTYPES[self.pieces[0].dtype]
        sides = [piece.shape[self.axis] for piece in self.pieces]
        fixed = self.pieces[0].shape[1 - self.axis]
        shape = (sum(sides), fixed) if self.axis == 0 else (fixed, sum(sides))
        whole = scratch(prod(shape) * dtype.itemsize, slot="values").view(dtype).reshape(shape)
        at = 0
        for piece, side in zip(self.pieces, sides, strict=True):
            target = whole[at : at + side] if self.axis == 0 else whole[:, at : at + side]
            rows, cols = piece.shape
            step = max(1, SLAB_BYTES // max(cols * dtype.itemsize, 1))
            for top in range(0, rows, step):
                bottom = min(top + step, rows)
                target[top:bottom] = piece.narrow(top, bottom, (bottom - top, cols))()
            at += side
        return frozen(whole)


def narrowed(
    load: Callable[[], Array], start: int, stop: int, shape: tuple[int, int], whole: int
) -> Callable[[], Array]:
    """Return a loader of the part from ``start`` to ``stop`` of the first axis (of length ``whole``) as ``shape``.

    Loaders that can ``narrow`` read that part alone; from others it is a view.
    """
    narrow = getattr(load, "narrow", None)
    if narrow is not None:
        smaller: Callable[[], Array] = narrow(start, stop, shape)
        return smaller
    per_row = shape[0] // (stop - start)
    return View(load, (whole * per_row, shape[1]), slice(start * per_row, stop * per_row))
