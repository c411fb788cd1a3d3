"""A weight matrix that is never in memory whole: what ``esd`` slices off it is read from the file then.

Plain numbers at a known offset of a file can be read so; packed (quantised) weights and weights in memory cannot.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from alphalloc.checkpoint.buffers import NUMPY_DTYPES, FileSlice, Transposed, scratch
from alphalloc.checkpoint.files import open_regular, read_into
from alphalloc.checkpoint.matrices import Array, WeightMatrix, frozen
from alphalloc.checkpoint.remote import NotDownloaded
from alphalloc.errors import CorruptCheckpointError


class SlabReader:
    """Stands for a rows x cols matrix in ``esd``: has its ``shape``, and reads the rows or columns of a slice.

    A slice is valid until the same thread reads the next one. Full rows are one read; a band of columns is one read a
    row, which costs 0.1 s for the bands of a 4096 x 11008 matrix together.
    """

    def __init__(self, where: FileSlice) -> None:
        self.where = where
        self.shape = (int(where.shape[0]), int(where.shape[1]))
        self._dtype = NUMPY_DTYPES[where.dtype]

    def __getitem__(self, key: slice | tuple[slice, slice]) -> Array:
        rows, cols = key if isinstance(key, tuple) else (key, slice(None))
        (top, bottom, _), (left, right, _) = rows.indices(self.shape[0]), cols.indices(self.shape[1])
        height, width = max(bottom - top, 0), max(right - left, 0)
        itemsize = self._dtype.itemsize
        raw = scratch(height * width * itemsize)
        with open_regular(Path(self.where.path)) as descriptor:
            if (found := os.fstat(descriptor).st_size) != self.where.file_bytes:
                raise CorruptCheckpointError(
                    f"{self.where.path}: had {self.where.file_bytes} bytes when its header was read and has {found} "
                    "now; open the checkpoint again"
                )
            step = width * itemsize
            begin = self.where.offset + (top * self.shape[1] + left) * itemsize
            if width == self.shape[1]:
                read_into(descriptor, raw.data, begin, self.where.path)
            else:
                for row in range(height):
                    part = raw.data[row * step : (row + 1) * step]
                    read_into(descriptor, part, begin + row * self.shape[1] * itemsize, self.where.path)
        return frozen(np.asarray(raw).view(self._dtype).reshape(height, width))


class TransposedSlabs:
    """The transpose of a SlabReader: GPT-2's Conv1D stores in x out."""

    def __init__(self, inner: SlabReader) -> None:
        self.inner = inner
        self.shape = inner.shape[::-1]

    def __getitem__(self, key: slice | tuple[slice, slice]) -> Array:
        rows, cols = key if isinstance(key, tuple) else (key, slice(None))
        return self.inner[cols, rows].T


def can_read_by_slabs(matrix: WeightMatrix) -> bool:
    """Whether the matrix is plain numbers in a file, as they stand or transposed."""
    return _file_slice(matrix) is not None


def by_slabs(matrix: WeightMatrix) -> SlabReader | TransposedSlabs:
    """Return the stand-in for ``matrix.load()`` that reads slab by slab; only where :func:`can_read_by_slabs`."""
    where = _file_slice(matrix)
    if where is None:
        raise TypeError(f"{matrix.name} cannot be read by slabs")
    reader = SlabReader(where)
    return TransposedSlabs(reader) if isinstance(matrix.load, Transposed) else reader


def _file_slice(matrix: WeightMatrix) -> FileSlice | None:
    load = matrix.load.load if isinstance(matrix.load, NotDownloaded) else matrix.load
    load = load.load if isinstance(load, Transposed) else load
    return load if isinstance(load, FileSlice) and len(load.shape) == 2 else None
