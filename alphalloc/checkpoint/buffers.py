"""Reading tensor bytes by offset into one reused buffer a thread, so that memory stays flat in the model's size."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
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
        dtype = NUMPY_DTYPES[self.dtype]
        nbytes = int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
        raw = read_raw(self.path, self.offset, nbytes, self.file_bytes)
        return frozen(raw.view(dtype).reshape(self.shape))


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
