"""Every answer carries ``X-Request-Id``: the client's own when it is usable, else a new one."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

USABLE = re.compile(r"[A-Za-z0-9._-]{1,128}")  # nothing that could forge a line of a log

NOSNIFF = (b"x-content-type-options", b"nosniff")
REPLACED = (b"x-request-id", b"x-content-type-options")


class RequestIdMiddleware:
    """Puts the id into ``request.state.request_id`` and into the answer's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        request_id = given if USABLE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [pair for pair in message.get("headers", ()) if pair[0] not in REPLACED]
                message["headers"] = [*own, (b"x-request-id", request_id.encode()), NOSNIFF]
            await send(message)

        await self.app(scope, receive, send_with_id)
