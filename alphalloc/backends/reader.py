"""Reading ahead of a device: matrices in order, a few at a time, into staging memory it can copy from."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Staged:
    """One matrix read: ``weight`` rows x cols as stored, in ``buffer`` (None when it needed no staging).

    ``weight`` is None for a matrix that shows two factors instead of numbers.
    """

    weight: Tensor | None
    buffer: Tensor | None


class Reader:
    """Loads ``matrices`` in the given ``order``, ``ahead`` of who takes them, with ``threads`` threads.

    A staging buffer (page-locked with ``pin``, so that copies to a card run beside its work) is used again once it was
    given back. What takes part is anything with a ``load()`` that returns an array, valid until the thread's next one.
    """

    def __init__(self, matrices: Sequence[Any], order: Sequence[int], *, pin: bool, threads: int, ahead: int) -> None:
        self._matrices, self._order, self._pin, self._ahead = matrices, deque(order), pin, ahead
        self._executor = ThreadPoolExecutor(threads, "alphalloc-read")
        self._pending: dict[int, Future[Staged]] = {}
        self._free: list[Tensor] = []
        self._lock = Lock()

    def take(self, position: int) -> Staged:
        """Return the matrix at ``position``; at once when it is the next in order and was read already."""
        if position not in self._pending:
            if position in self._order:
                self._order.remove(position)
            self._pending[position] = self._executor.submit(self._load, position)
        future = self._pending.pop(position)
        while self._order and len(self._pending) < self._ahead:
            following = self._order.popleft()
            self._pending[following] = self._executor.submit(self._load, following)
        return future.result()

    def give_back(self, staged: Staged) -> None:
        """Let the staging buffer be used again: nothing reads from it any more."""
        if staged.buffer is not None:
            with self._lock:
                self._free.append(staged.buffer)

    def close(self) -> None:
        """Stop reading; what is being read ends in the background."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _load(self, position: int) -> Staged:
        weight = self._matrices[position].load()
        if isinstance(weight, Tensor):
            return Staged(weight.detach(), None)
        if hasattr(weight, "left") and hasattr(weight, "right"):
            return Staged(None, None)
        array = np.asarray(weight)
        if array.dtype.name not in _TORCH_DTYPES:
            array = array.astype(np.float64, copy=False)
        buffer = self._buffer(array.nbytes)
        np.copyto(buffer.numpy()[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        dtype = _TORCH_DTYPES.get(array.dtype.name, torch.float64)
        return Staged(buffer[: array.nbytes].view(dtype).view(array.shape), buffer)

    def _buffer(self, nbytes: int) -> Tensor:
        with self._lock:
            for index, buffer in enumerate(self._free):
                if buffer.numel() >= nbytes:
                    return self._free.pop(index)
            if self._free:
                self._free.pop()  # too small, as all of them: a larger one takes its place
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pin)
