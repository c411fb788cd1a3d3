"""A deadline and a size for request headers: uvicorn waits for ever for a client that connects and says nothing, or
drips, and under httptools it keeps whatever one that hurries sends before the header is complete.

Such connections would use up the limit of concurrent ones, or the memory. Bodies have a deadline and a size of their
own (security, bodies); a complete header that is too large is answered there.
"""

from __future__ import annotations

import asyncio
from typing import Any

HEADER_SECONDS = 10.0  # chosen here: a header is one packet; nobody needs longer
MARGIN_BYTES = 1024  # the method, the version and what lies between header fields: not counted by the security's limit


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


class _HeaderSize:
    """Mixed into httptools' protocol: bounds what the parser holds of a header, a trailer or a chunk's first line.

    h11 has a bound of its own.
    """

    transport: asyncio.Transport
    max_header_bytes: int
    _unfinished = 0  # bytes since the parser last finished a header or passed on a part of a body

    def data_received(self, data: bytes) -> None:
        """Take bytes; too many that finish nothing end the connection."""
        self._unfinished += len(data)
        super().data_received(data)  # type: ignore[misc]
        if self._unfinished > self.max_header_bytes + MARGIN_BYTES and not self.transport.is_closing():
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """Count from zero."""
        self._unfinished = 0
        super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        """Count from zero."""
        self._unfinished = 0
        super().on_body(body)  # type: ignore[misc]


def protocol(max_header_bytes: int) -> type[asyncio.Protocol]:
    """Return the HTTP protocol for ``uvicorn.Config(http=...)``: httptools where it is installed, else h11, for which
    ``uvicorn.Config(h11_max_incomplete_event_size=...)`` is to be set too.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return type("Protocol", (_HeaderDeadline, H11Protocol), {})
    return type("Protocol", (_HeaderDeadline, _HeaderSize, HttpToolsProtocol), {"max_header_bytes": max_header_bytes})
