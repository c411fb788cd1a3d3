"""Settings on their way to a process of our own: one line of JSON on its standard input, where no other user looks."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from .settings import Settings

SECRETS = ("database_url",)


def line_of(settings: Settings, *, secrets: bool = True, **more: Any) -> bytes:
    """Return the line to write; without ``secrets`` the reader gets the default in their place."""
    values = asdict(settings)
    if not secrets:
        values = {name: value for name, value in values.items() if name not in SECRETS}
    return json.dumps({"settings": values, **more}).encode() + b"\n"


def read_line(stream: IO[bytes]) -> tuple[Settings, dict[str, Any]]:
    """Return what :func:`line_of` was given."""
    values: dict[str, Any] = json.loads(stream.readline())
    given: dict[str, Any] = values.pop("settings")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Settings(**given), values


def when_closed(stream: IO[bytes], act: Callable[[], object]) -> None:
    """Call ``act`` when the other end of ``stream`` goes away, as it does when the process there ends in any way."""

    def watch() -> None:
        # The descriptor and not the stream: at exit the interpreter would wait for the stream's lock.
        while os.read(stream.fileno(), 4096):
            pass
        act()

    threading.Thread(target=watch, name="alphalloc-parent", daemon=True).start()
