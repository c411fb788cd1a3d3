"""Request bodies: strict JSON of limited size, refused before anything is made of them.

Refused with 415: any Content-Type but ``application/json`` in UTF-8. With 413: more bytes than the limit, counted while
they arrive. With 400: text that is not JSON in the sense of RFC 8259 and 7493, which bars NaN, Infinity, numbers beyond
float64, a byte order mark and, on purpose, an object with the same key twice: of two budgets neither is the right one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from .problems import ProblemError

MAX_KEYS = 10_000  # of one object; chosen here: each unknown one is looked at, and 60,000 of them took a second


class StrictJsonRequest(Request):
    """A request whose body is read once, within the application's limit, and parsed strictly."""

    async def body(self) -> bytes:
        """Return the bytes of the body. Raises ProblemError 413 at the first byte beyond the limit, 400 when empty."""
        if not hasattr(self, "_body"):
            self._body = await self._read(self.app.state.settings.max_body_bytes)
        return self._body

    async def json(self) -> Any:
        """Return the value in the body. Raises ProblemError 400."""
        return parse_strictly(await self.body())

    async def _read(self, limit: int) -> bytes:
        too_large = ProblemError(413, "body-too-large", f"the body is larger than {limit} bytes")
        declared = self.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
            raise too_large
        chunks, size = [], 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
        if size == 0:
            raise ProblemError(400, "malformed", "the body is empty; expected a JSON object")
        return b"".join(chunks)


class StrictJsonRoute(APIRoute):
    """A route whose body is a StrictJsonRequest's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the framework's handler behind the checks of this module."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None:
                require_json(request.headers.get("content-type"))
            return await handle(StrictJsonRequest(request.scope, request.receive))

        return checked


def require_json(content_type: str | None) -> None:
    """Raise ProblemError 415 unless ``content_type`` is ``application/json``, in UTF-8 if it names a charset."""
    if content_type == "application/json":  # nearly always
        return
    message = Message()
    message["content-type"] = content_type or ""
    charset = message.get_content_charset("utf-8")
    if content_type and message.get_content_type() == "application/json" and charset in ("utf-8", "utf8"):
        return
    found = repr(content_type[:100]) if content_type else "none"
    raise ProblemError(415, "unsupported-media-type", f"expected Content-Type application/json, found {found}")


def parse_strictly(body: bytes) -> Any:
    """Return the JSON value in ``body``. Raises ProblemError 400 with what is wrong."""
    try:
        text = body.decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants, parse_float=_finite)
    except UnicodeDecodeError as exc:
        raise ProblemError(400, "malformed", f"the body is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    except json.JSONDecodeError as exc:
        detail = f"the body is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}"
        raise ProblemError(400, "malformed", detail) from exc
    except RecursionError as exc:
        raise ProblemError(400, "malformed", "the body is nested too deeply") from exc
    except ValueError as exc:
        raise ProblemError(400, "malformed", f"the body is not JSON: {str(exc)[:200]}") from exc


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object has more than {MAX_KEYS} keys")
    result: dict[str, Any] = {}
    for key, value in pairs:  # one pass: a body may hold thousands of keys
        if key in result:
            raise ValueError(f"an object has the key {key[:100]!r} twice")
        result[key] = value
    return result


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:50]} is beyond the range of float64")
    return value
