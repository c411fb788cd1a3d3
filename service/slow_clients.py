"""A deadline and a size for request headers, and a deadline for answers: uvicorn waits for ever for a client that
connects and says nothing, or drips, or takes no more of its answer, not even of one whose connection it has closed; and
under httptools it keeps whatever a client that hurries sends before the header is complete.

Such connections would use up the limit of concurrent ones, or the memory. Bodies have a deadline and a size of their
own (security, bodies); a complete header that is too large is answered there.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

HEADER_SECONDS = 10.0  # chosen here: a header is one packet; nobody needs longer
ANSWER_SECONDS = 30.0  # chosen here: without a byte taken in that time the client is gone, or wishes us no good
LOOKS = 6  # at an answer in that time
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


class _AnswerDeadline:
    """Mixed into one of uvicorn's protocols: ends a connection whose client has taken nothing of its answer for
    ANSWER_SECONDS, and at most a look more. A slow client that goes on stays, and so does one that has taken everything
    and waits for the next event.

    Looks from time to time rather than when uvicorn pauses writing: the last 64 KiB of an answer pause nothing.
    """

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _next_look: asyncio.TimerHandle | None = None
    _left = 0  # bytes that were not taken, when last looked
    _still = 0  # looks in a row since then that found no fewer

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start looking."""
        super().connection_made(transport)  # type: ignore[misc]
        self._look_later()

    def resume_writing(self) -> None:
        """Count from zero: much was taken, whatever was written since."""
        self._still = 0
        super().resume_writing()  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        super().connection_lost(exc)  # type: ignore[misc]

    def _look_later(self) -> None:
        self._next_look = self.loop.call_later(ANSWER_SECONDS / LOOKS, self._look)

    def _look(self) -> None:
        left = _not_taken(self.transport)
        self._still = self._still + 1 if 0 < self._left <= left else 0
        self._left = left
        if self._still >= LOOKS:
            self.transport.abort()
        self._look_later()


def _not_taken(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has still to take; 0 when the system has them all, and so the connection may
    end without us.

    The system's own buffer of some megabytes counts too, where it tells: it takes more from us only when a third of it
    is empty, for which an honest slow client needs longer than ANSWER_SECONDS.
    """
    left = transport.get_write_buffer_size()
    if left == 0:
        return 0
    with contextlib.suppress(ImportError, OSError):  # not a Unix, or no number for such a connection
        import fcntl
        import termios

        told = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        left += struct.unpack("i", told)[0]
    return left


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

        return type("Protocol", (_AnswerDeadline, _HeaderDeadline, H11Protocol), {})
    mixins = (_AnswerDeadline, _HeaderDeadline, _HeaderSize)
    return type("Protocol", (*mixins, HttpToolsProtocol), {"max_header_bytes": max_header_bytes})
