"""Group commit: many waiting allocations, one transaction."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

from alphalloc.errors import StorageError

from .rows import AllocationRow
from .store import Store

Waiting = tuple[AllocationRow, "Future[bool]"]


class AllocationWriter:
    """A thread that writes whatever waits in one transaction; a future is resolved only after its commit.

    ``put(row)`` returns a Future[bool] at once: True when the row is new. It raises StorageError when more than
    ``max_pending`` rows wait or the writer is closed; the future does when the commit fails. The next rows are tried
    anew, so it recovers by itself. In a coroutine: ``await asyncio.wrap_future(writer.put(row))``.
    """

    def __init__(self, store: Store, *, max_pending: int = 4096, max_batch: int = 256) -> None:
        self._store, self._max_batch = store, max_batch
        self._pending: queue.Queue[Waiting | None] = queue.Queue(max_pending)
        self._closed = False
        self._door = threading.Lock()  # nothing comes in after the None that ends the queue
        self._thread = threading.Thread(target=self._run, name="alphalloc-allocations", daemon=True)
        self._thread.start()

    def put(self, row: AllocationRow) -> Future[bool]:
        """Hand over ``row``; see the class. Raises StorageError."""
        future: Future[bool] = Future()
        with self._door:
            if self._closed:
                raise StorageError("the service is stopping and takes no more allocations; try again later")
            try:
                self._pending.put_nowait((row, future))
            except queue.Full as exc:
                raise StorageError("too many allocations wait to be written; try again later") from exc
        return future

    def close(self) -> None:
        """Write what waits, then stop."""
        with self._door:
            if self._closed:
                return
            self._closed = True
        self._pending.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._next_batch()
            # From here on a caller cannot withdraw: what is cancelled before is not written.
            batch = [(row, future) for row, future in batch if future.set_running_or_notify_cancel()]
            try:
                new = self._store.put_allocations([row for row, _ in batch])
            except Exception as exc:  # every waiter has to hear of it, and the thread has to live on
                for _, future in batch:
                    future.set_exception(exc)
            else:
                for (_, future), created in zip(batch, new, strict=True):
                    future.set_result(created)

    def _next_batch(self) -> tuple[list[Waiting], bool]:
        """Return what waits, at least one row unless the end came, and whether more may come."""
        batch: list[Waiting] = []
        while len(batch) < self._max_batch:
            try:
                item = self._pending.get(block=not batch)
            except queue.Empty:
                break
            if item is None:
                return batch, False
            batch.append(item)
        return batch, True
