"""HEAD wherever there is GET: the same answer without its body."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Asks the application for GET and lets only the head of the answer through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        answered = anyio.Event()

        async def receive_until_answered() -> Message:
            await answered.wait()  # a GET has no body to wait for; once the head is out, a stream shall end
            return {"type": "http.disconnect"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"  # what lies around this sees the method that was asked for
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()

        scope["method"] = "GET"
        try:
            await self.app(scope, receive_until_answered, send_head)
        finally:
            scope["method"] = "HEAD"
