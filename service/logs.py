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

# API keys, hub tokens, what follows "Bearer", and the password of a URL.
SECRET = re.compile(
    r"alph_[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,}|(?<=[Bb]earer )[^\s\"',}]+|(?<=://)[^/@\s\"']*:[^/@\s\"']+(?=@)"
)
STRUCK = "***"
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def strike_secrets(text: str) -> str:
    """Return ``text`` with everything that looks like a key, token or password struck out."""
    return SECRET.sub(STRUCK, text)


def configure(log_format: str = "auto", stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send all logging to ``stream`` (stderr): ``json``, ``text``, or ``auto``, which is text on a terminal."""
    target = sys.stderr if stream is None else stream
    as_json = log_format == "json" or (log_format == "auto" and not target.isatty())
    if as_json:
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
