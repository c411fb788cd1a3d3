"""How the server's process keeps its memory: small pauses, and no more of it than it uses."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_M_ARENA_MAX = -8  # glibc's malloc.h


def settle() -> None:
    """Take what is loaded by now out of the collector's sight, and have all threads share one heap.

    Left to the collector, each of its full rounds would look at all that was ever imported: a pause of some 70 ms under
    load. Left to glibc, each thread that reads from the database keeps a heap of its own, whose holes the others cannot
    use: a busy server grew by a quarter in half an hour. One heap costs nothing here, as threads take turns anyway.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
