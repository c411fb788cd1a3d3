"""The store as the routes see it: awaited, schedules in groups, and what never changes from memory."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from alphalloc import ModelAlphas
from alphalloc.errors import StorageError

from .conventions import strong_etag
from .problems import ProblemError
from .store import AllocationRow, AllocationWriter, Store

P = ParamSpec("P")
T = TypeVar("T")

CACHE_BYTES = 32 * 2**20  # chosen here: about 6,000 schedules of 32 layers
CACHED_ALPHAS = 8  # parsed analyses; one of 80 layers with histograms takes some 20 MB
THREADS = 16  # that wait for the database; chosen here
COMPUTING = 2  # threads that compute, so that the database's are never all taken by them; chosen here
MAX_COMPUTING = 32  # computations under way and waiting, a minute's work of the longest; chosen here
TRUST_SECONDS = 60.0  # for which a remembered schedule counts as stored: it may have been pruned meanwhile; chosen here


@dataclass(frozen=True)
class Document:
    """Bytes that never change, and their entity tag."""

    body: bytes
    etag: str
    seen: float

    @classmethod
    def of(cls, body: bytes) -> Document:
        """Return ``body`` with its tag, seen in the database now."""
        return cls(body, strong_etag(body), time.monotonic())


class Remembered(Generic[T]):
    """What was used last, up to a weight in all."""

    def __init__(self, limit: int, weight: Callable[[T], int]) -> None:
        self._limit, self._weight, self._held = limit, weight, 0
        self._items: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str) -> T | None:
        """Return the value and mark it as used."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: str, value: T) -> None:
        """Remember ``value`` and forget the least used beyond the limit."""
        if key in self._items:
            self._held -= self._weight(self._items.pop(key))
        self._items[key] = value
        self._held += self._weight(value)
        while self._held > self._limit and len(self._items) > 1:
            self._held -= self._weight(self._items.popitem(last=False)[1])

    def drop(self, key: str) -> None:
        """Forget ``key``."""
        if key in self._items:
            self._held -= self._weight(self._items.pop(key))


def _pass_on(waiting: asyncio.Future[bool], written: asyncio.Future[bool]) -> None:
    """Give ``waiting`` the outcome of ``written``, unless nobody waits any more."""
    if waiting.done():
        written.cancelled() or written.exception()  # looked at, so that nothing complains of it
    elif written.cancelled():
        waiting.cancel()
    elif (error := written.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(written.result())


class AsyncStore:
    """The store for coroutines. Every method raises StorageError when the database cannot be reached."""

    def __init__(self, store: Store) -> None:
        self.sync = store
        self._writer = AllocationWriter(store)
        self._threads = anyio.CapacityLimiter(THREADS)
        self._computing = anyio.CapacityLimiter(COMPUTING)
        self._documents: Remembered[Document] = Remembered(CACHE_BYTES, lambda document: len(document.body) + 500)
        self._alphas: Remembered[ModelAlphas] = Remembered(CACHED_ALPHAS, lambda _: 1)
        self._waiting: list[tuple[AllocationRow, asyncio.Future[bool]]] = []

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(*args, **kwargs)``, called in a thread; meant for the methods of ``sync``."""
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._threads)

    async def compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(*args, **kwargs)``, called in one of the few threads that compute.

        Raises ProblemError 503 too-busy when many wait for them already.
        """
        state = self._computing.statistics()
        if state.borrowed_tokens + state.tasks_waiting >= MAX_COMPUTING:
            raise ProblemError(503, "too-busy", "too many long answers are under way; try again", {"Retry-After": "5"})
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._computing)

    def known_document(self, id: str) -> Document | None:
        """Return the schedule when it is in memory."""
        return self._documents.get(id)

    async def document(self, id: str) -> Document | None:
        """Return the schedule, or None when there is none of that id."""
        known = self._documents.get(id)
        if known is not None:
            return known
        body = await self._stored(id)
        return None if body is None else self._remember(id, body)

    async def _stored(self, id: str) -> bytes | None:
        row = await self.run(self.sync.allocation, id)
        return None if row is None else row.document

    async def keep(self, id: str, make: Callable[[], AllocationRow]) -> tuple[Document, bool]:
        """Return the schedule as it is stored from now on, and whether it is new. What was stored first stays.

        What was seen in the database within TRUST_SECONDS is neither made nor written again.
        """
        known = self._documents.get(id)
        if known is not None and time.monotonic() < known.seen + TRUST_SECONDS:
            return known, False
        row = make()
        new = await self._written(row)
        stored = None if new else await self._stored(id)
        return self._remember(id, stored or row.document), new

    async def alphas(self, analysis_id: str) -> ModelAlphas | None:
        """Return the alphas of a succeeded analysis."""
        known = self._alphas.get(analysis_id)
        if known is not None:
            return known
        alphas = await self.run(self._read_alphas, analysis_id)
        if alphas is not None:
            self._alphas.put(analysis_id, alphas)
        return alphas

    def forget_alphas(self, analysis_id: str) -> None:
        """Drop a deleted analysis from memory."""
        self._alphas.drop(analysis_id)

    def close(self) -> None:
        """Write what waits, then close the store."""
        self._writer.close()
        self.sync.close()

    async def _written(self, row: AllocationRow) -> bool:
        """Return whether ``row`` is new, once it is committed.

        Rows of one turn of the event loop are handed over together: the writer's thread would otherwise wake for the
        first and commit it alone.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._hand_over)
        self._waiting.append((row, future))
        return await future

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        for row, future in waiting:
            try:
                written = asyncio.wrap_future(self._writer.put(row))
            except StorageError as exc:
                if not future.done():
                    future.set_exception(exc)
            else:
                written.add_done_callback(partial(_pass_on, future))

    def _read_alphas(self, analysis_id: str) -> ModelAlphas | None:
        content = self.sync.result(analysis_id)
        return None if content is None else ModelAlphas.from_json(content.decode())

    def _remember(self, id: str, body: bytes) -> Document:
        document = Document.of(body)
        self._documents.put(id, document)
        return document
