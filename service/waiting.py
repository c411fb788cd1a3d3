"""Waiting for an analysis: a long poll that ends with a change, and a stream of events that ends with the analysis.

Both read one row every POLL_SECONDS, so they work whichever replica or worker writes it, and both end when the server
is told to stop. How many wait at once in a process is limited, and how many of them one caller has.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar
from weakref import WeakSet

import anyio
from fastapi import Request

from alphalloc.errors import StorageError

from .async_store import AsyncStore
from .problems import ProblemError
from .security import counted_as
from .store import Analysis, Event

logger = logging.getLogger("alphalloc_service")

POLL_SECONDS = 0.5  # chosen here: progress is written at most twice a second
CALLERS = 4  # who have places at least before all are taken; chosen here


class Waiters:
    """Counts those who wait, all and by caller, and knows when the server stops."""

    _of_this_process: ClassVar[WeakSet[Waiters]] = WeakSet()

    def __init__(self, limit: int) -> None:
        self.limit, self.stopping, self.held = limit, False, 0
        self.share = max(1, limit // CALLERS)
        self._held_by: Counter[str] = Counter()
        self._of_this_process.add(self)

    @classmethod
    def stop_all(cls) -> None:
        """Let all who wait in this process go; called when a signal comes."""
        for waiters in cls._of_this_process:
            waiters.stopping = True

    @contextmanager
    def place(self, who: str | None) -> Iterator[bool]:
        """Take a place for ``who`` as long as the block runs; False when all are taken, or all of its share. None has
        no share: there is nobody else.
        """
        if self.held >= self.limit or (who is not None and self._held_by[who] >= self.share):
            yield False
            return
        self.held += 1
        if who is not None:
            self._held_by[who] += 1
        try:
            yield True
        finally:
            self.held -= 1
            if who is not None:
                self._held_by[who] -= 1
                self._held_by += Counter()  # keeps only those who hold some


async def until(request: Request, id: str, seconds: float, enough: Callable[[Analysis], bool]) -> Analysis | None:
    """Return the analysis as soon as it is ``enough``, or as it is after ``seconds``; None when there is none.

    When all places to wait are taken, or the caller's share of them, it answers at once: a preference may be ignored.
    """
    store: AsyncStore = request.app.state.store
    waiters: Waiters = request.app.state.waiters
    deadline = time.monotonic() + seconds
    with waiters.place(counted_as(request)) as placed:
        while True:
            analysis = await store.run(store.sync.analysis, id)
            left = deadline - time.monotonic()
            if analysis is None or enough(analysis) or left <= 0 or not placed or waiters.stopping:
                return analysis
            await anyio.sleep(min(POLL_SECONDS, left))


async def stream_of(request: Request, id: str, after: int) -> AsyncIterator[Event]:
    """Yield the events behind ``after`` until the analysis has ended, is deleted or the server stops.

    A database that is away ends the stream too: the client comes back with the last id it saw.
    """
    store: AsyncStore = request.app.state.store
    waiters: Waiters = request.app.state.waiters
    try:
        while not waiters.stopping:
            analysis = await store.run(store.sync.analysis, id)  # before its events: none is missed behind the last
            for event in await store.run(store.sync.events, id, after):
                after = event.seq
                yield event
            if analysis is None or analysis.finished:
                return
            await anyio.sleep(POLL_SECONDS)
    except StorageError as exc:
        logger.warning("the events of %s end early: %s", id, exc)


async def place_for_stream(request: Request) -> AsyncIterator[None]:
    """Hold a place for one stream. Raises ProblemError 429 too-many-streams. A dependency, so before the stream."""
    waiters: Waiters = request.app.state.waiters
    with waiters.place(counted_as(request)) as placed:
        if not placed:
            detail = (
                f"{waiters.limit} requests wait for events already, or {waiters.share} of yours; try again later, or "
                "poll the analysis"
            )
            raise ProblemError(429, "too-many-streams", detail, {"Retry-After": "10"})
        yield
