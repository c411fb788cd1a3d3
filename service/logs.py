"""Log lines: JSON unless a person reads them on a terminal, each with its request's or job's id, never with a secret.

    {"event": "request", "method": "POST", "route": "/v1/analyses", "status": 202, "request_id": "...", ...}

Everything that uses Python's logging comes out the same way. Secrets are struck out of the finished line, so that no
traceback or library can bring one back in.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

import structlog

# A value ends where its text does, in JSON too: at a quote, a space or a comma, some of which have a backslash there.
_VALUE = r"""(?:\\[^"nrt]|[^\s"'&,;}\\])++"""
_QUOTE = r"""\\?["']"""
_NAMES = ("password", "passwd", "secret", "token", "signature", "credential", "api_key", "api-key", "apikey", "sig")
# Of each pattern the first group is kept and the rest struck. It is tried on lines that hold one of its words (in small
# letters) alone, as it is slow. What could be tried again over a long line is possessive or ends at the next beginning,
# so that the time grows with the length and not faster.
SECRETS = (
    # API keys and hub tokens, by how they begin.
    (
        ("alph_", "hf_", "api_org_"),
        re.compile(r"()(?:alph_[A-Za-z0-9_-]{8,}|(?:hf|api_org)_[A-Za-z0-9]{8,}|hf_(?:jwt|oauth)_[\w.-]+)"),
    ),
    # What follows the name of a scheme: Authorization: Bearer ..., Basic ...
    (
        ("bearer", "basic"),
        re.compile(rf"(\b(?:bearer|basic)(?:\s|\\[nrt]|%20|\+)++){_VALUE}", re.IGNORECASE),
    ),
    # The password of a URL: up to the last @ of the word, as it may hold @ and / itself.
    (("://",), re.compile(r"""(://[^\s/:@"']*+:)(?:(?!://)[^\s"'])+(?=@)""")),
    # What has the name of a secret: ?password=..., PGPASSWORD=..., X-Amz-Signature=..., "token": "..."
    (
        _NAMES,
        re.compile(
            rf"((?:{'|'.join(_NAMES[:-1])}|(?<![a-z])sig)(?:(?:=|%3D)(?:{_QUOTE})?|{_QUOTE}\s*+:\s*+{_QUOTE})){_VALUE}",
            re.IGNORECASE,
        ),
    ),
)
STRUCK = "***"
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def strike_secrets(text: str) -> str:
    """Return ``text`` with everything that looks like a key, token, password or signature struck out."""
    lowered = text.lower()
    for words, pattern in SECRETS:
        if any(word in lowered for word in words):
            text = pattern.sub(rf"\1{STRUCK}", text)
    return text


def is_json(log_format: str, stream: TextIO) -> bool:
    """Return whether lines of this format are JSON on ``stream``: with ``auto`` unless it is a terminal."""
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


def configure(log_format: str = "auto", stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send all logging to ``stream`` (stderr): ``json``, ``text``, or ``auto``, which is text on a terminal."""
    target = sys.stderr if stream is None else stream
    if is_json(log_format, target):
        rendering: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        rendering = [structlog.dev.ConsoleRenderer(colors=target.isatty())]
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        _StrikingFormatter(foreign_pre_chain=_SHARED, processors=[remove, *rendering], use_get_message=True)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in ("httpx", "httpx2", "httpcore", "filelock", "urllib3", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every step they take
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,  # a second call, as in tests, has to count
    )


def bind(**values: Any) -> None:
    """Put ``values`` (such as ``job_id``) into every later line of this task or process."""
    structlog.contextvars.bind_contextvars(**values)


class _StrikingFormatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return strike_secrets(super().format(record))
