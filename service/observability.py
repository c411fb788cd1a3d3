"""What an operator sees: a line for what changed, failed or was slow, metrics of everything, traces if asked for.

FastAPI exports traces itself when the environment says FASTAPI_OTEL_AUTO_CONFIGURE=true and
OTEL_EXPORTER_OTLP_ENDPOINT (and its OTLP exporter is installed). Here it is kept from telling more than the log does:
its log records hold the text of every exception, so traces alone leave, with secrets struck out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import logs, metrics
from .security import require
from .settings import Settings

logger = logging.getLogger("alphalloc_service")

SLOW_SECONDS = 1.0  # until the answer began; chosen here
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = frozenset({200, 304})


def install(app: FastAPI, settings: Settings, store: Any) -> None:
    """Count and log the requests of ``app`` and answer /metrics. Call it after the security's install, so that its
    refusals are seen too, and before the middleware of request ids. Traces are seen to here as well.
    """
    _struck_traces_alone()
    app.add_middleware(ObservabilityMiddleware, counted=settings.metrics)
    if settings.metrics:

        @app.get(
            "/metrics",
            tags=["operation"],
            summary="Counters for Prometheus",
            response_class=Response,
            dependencies=[Depends(require("read"))],
            responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
        )
        async def exposition() -> Response:
            """Return all metrics in Prometheus' text format. Where there are keys it needs one with ``read``."""
            text = await asyncio.to_thread(metrics.exposition, store)
            return Response(text, media_type="text/plain; version=0.0.4", headers={"Cache-Control": "no-store"})


def start(settings: Settings, **values: Any) -> None:
    """Set up logging in a process of the service; ``values`` (such as ``job_id``) go into each of its lines."""
    logs.configure(settings.log_format)
    if settings.metrics:
        metrics.share()
    logs.bind(**values)


def announce(settings: Settings, text: str) -> None:
    """Say ``text`` on stderr: a line of the log where that is JSON, else the bare text for the person who reads it."""
    if logs.is_json(settings.log_format, sys.stderr):
        logger.info("%s", text)
    else:
        print(text, file=sys.stderr, flush=True)


def _struck_traces_alone() -> None:
    """If the environment asks FastAPI to export, let it export traces alone, and no secrets in them.

    FastAPI adds its exporter to a provider of traces that is there already, so here is one whose spans are struck as
    they start. That its other two signals stay here is said by OpenTelemetry's variables, which FastAPI reads later.
    """
    if os.environ.get("FASTAPI_OTEL_AUTO_CONFIGURE", "").lower() != "true":
        return
    os.environ["OTEL_METRICS_EXPORTER"] = os.environ["OTEL_LOGS_EXPORTER"] = "none"
    try:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
    except ImportError:  # FastAPI says what is missing
        return

    class Striking(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            """Strike what the client sent: the query as a whole, and secrets in everything else."""
            for name, value in dict(span.attributes or {}).items():
                if name == "url.query":
                    span.set_attribute(name, logs.STRUCK)
                elif isinstance(value, str):
                    span.set_attribute(name, logs.strike_secrets(value))

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider(shutdown_on_exit=False)  # its exporter is FastAPI's, which ends it
        trace.set_tracer_provider(provider)
    provider.add_span_processor(Striking())


class ObservabilityMiddleware:
    """Times every request until its answer begins; routes are named by their template, never by their path."""

    def __init__(self, app: ASGIApp, counted: bool = True) -> None:
        self.app = app
        self._counted = counted
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        answered = False
        request_id = scope.get("state", {}).get("request_id", "")
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_seen(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._seen(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            await self.app(scope, receive, send_seen)
        except Exception:
            if not answered:  # the outermost handler answers 500, out of this middleware's sight
                self._seen(scope, 500, time.perf_counter() - began)
            raise

    def _seen(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        if self._counted:
            count, histogram = self._instruments(method, route, status)
            count.inc()
            histogram.observe(seconds)
        if status in QUIET and method in ("GET", "HEAD") and seconds < SLOW_SECONDS:
            return
        level = logging.ERROR if status >= 500 else logging.INFO
        caller = scope.get("state", {}).get("caller")
        told = {
            "method": method,
            "route": route,
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 6),
            "key": caller.name if caller is not None and caller.keyed else None,
            "client": (scope.get("client") or (None,))[0],
        }
        logger.log(level, "request", extra=told)

    def _instruments(self, method: str, route: str, status: int) -> tuple[Any, Any]:
        """Return the counter and histogram of these labels; looking them up each time would cost more than counting."""
        labels = (method, route, status)
        if labels not in self._children:
            all_of_them = metrics.instruments()
            counter = all_of_them.http_requests.labels(method, route, str(status))
            self._children[labels] = (counter, all_of_them.http_seconds.labels(method, route))
        return self._children[labels]
