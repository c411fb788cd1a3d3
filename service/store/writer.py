"""Group commit: many waiting allocations, one transaction."""

from __future__ import annotations

from concurrent.futures import Future

from .rows import AllocationRow
from .store import Store


class AllocationWriter:
    """A thread that writes whatever waits in one transaction; a future is resolved only after its commit.

    ``put(row)`` returns a Future[bool] at once: True when the row is new. It raises StorageError when more than
    ``max_pending`` rows wait or the writer is closed; the future does when the commit fails. The next rows are tried
    anew, so it recovers by itself. In a coroutine: ``await asyncio.wrap_future(writer.put(row))``.
    """

    def __init__(self, store: Store, *, max_pending: int = 4096, max_batch: int = 256) -> None:
        self._store, self._max_pending, self._max_batch = store, max_pending, max_batch

    def put(self, row: AllocationRow) -> Future[bool]:
        """Hand over ``row``; see the class. Raises StorageError."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what waits, then stop."""
        raise NotImplementedError
