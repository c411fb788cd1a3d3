"""Matrices that are never written out: a low-rank product and a difference, with the slices of a plain array.

Whoever needs numbers takes slices, as of an array; ``np.asarray`` writes the whole out. A low-rank product also shows
its two factors, from which its spectrum follows without the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alphalloc.checkpoint.buffers import narrowed, scratch
from alphalloc.checkpoint.matrices import Array, frozen

Key = slice | tuple[slice, slice]


@dataclass(frozen=True)
class LowRank:
    """``left @ right``, rows x r times r x cols, both float64."""

    left: Array
    right: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the product."""
        return self.left.shape[0], self.right.shape[1]

    def __getitem__(self, key: Key) -> Array:
        rows, cols = key if isinstance(key, tuple) else (key, slice(None))
        return np.asarray(self.left[rows] @ self.right[:, cols])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.left @ self.right, dtype=dtype)


@dataclass(frozen=True)
class Difference:
    """``first - second``, each as stored; a slice is their difference in float64, where both are exact."""

    first: Any
    second: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of both."""
        return self.first.shape[0], self.first.shape[1]

    def __getitem__(self, key: Key) -> Array:
        first: Array = np.asarray(self.first[key], dtype=np.float64)
        return first - np.asarray(self.second[key], dtype=np.float64)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:, :], dtype=dtype)


@dataclass(frozen=True)
class LowRankLoad:
    """Loads ``scale`` · B A as a LowRank: ``b`` is stored out x r, ``a`` r x in."""

    b: Callable[[], Array]
    a: Callable[[], Array]
    shape: tuple[int, int]
    scale: float

    def narrow(self, start: int, stop: int, shape: tuple[int, int]) -> LowRankLoad:
        """The rows from ``start`` to ``stop``."""
        rank = int(self.a().shape[0])
        b = narrowed(self.b, start, stop, (stop - start, rank), self.shape[0])
        return replace(self, b=b, shape=shape)

    def __call__(self) -> Array:
        left = np.array(self.b(), dtype=np.float64) * self.scale  # copied: the next read may reuse the buffer
        product: Any = LowRank(frozen(left), frozen(np.array(self.a(), dtype=np.float64)))
        return product  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DifferenceLoad:
    """Loads the Difference of two matrices; the first is copied to a buffer of the thread, as both would share one."""

    first: Callable[[], Array]
    second: Callable[[], Array]

    def __call__(self) -> Array:
        first = self.first()
        kept = scratch(first.nbytes, slot="minuend").view(first.dtype).reshape(first.shape)
        np.copyto(kept, first)
        difference: Any = Difference(frozen(kept), self.second())
        return difference  # type: ignore[no-any-return]
