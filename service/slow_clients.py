"""A deadline for request headers: uvicorn waits for ever for a client that connects and says nothing, or drips.

Five hundred such connections would use up the limit of concurrent ones. Bodies have a deadline of their own (security).
"""

from __future__ import annotations

import asyncio
from typing import Any

HEADER_SECONDS = 10.0  # chosen here: a header is one packet; nobody needs longer


class _HeaderDeadline:
    """Mixed into one of uvicorn's protocols; all state is that of the connection."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start waiting for the first header."""
        super().connection_made(transport)  # type: ignore[misc]
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a complete header stops the clock, a part of one starts it."""
        super().data_received(data)  # type: ignore[misc]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)  # type: ignore[misc]

    def _watch(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._late)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.abort()


def protocol() -> type[asyncio.Protocol]:
    """Return the HTTP protocol for ``uvicorn.Config(http=...)``: httptools where it is installed, else h11."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Base  # type: ignore[assignment]

    class DeadlineProtocol(_HeaderDeadline, Base):  # type: ignore[misc]
        pass

    return DeadlineProtocol
