"""A job's child process as its worker holds it: start, listen, kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from .handover import line_of
from .settings import Settings

MAX_DOCUMENT_BYTES = 2**30  # of what the child may send at once; a thousand times the document of a 7B model
# What a child has no use for and may hold the way into the database: libpq's variables, and ours, as settings come by
# stdin. The rest is the hub's, Ray's, CUDA's and the system's.
KEPT_BACK = ("ALPHALLOC_", "PG")
POLITE_SECONDS = 0.5  # from SIGTERM to SIGKILL; Ray takes its leave from the cluster in it


class JobProcess:
    """A running child, the leader of its own process group, so that it can be killed with all it started."""

    def __init__(
        self,
        request: dict[str, Any],
        settings: Settings,
        folder: Path,
        backend: str,
        ray_address: str | None,
        id: str = "",
    ) -> None:
        self._reader, writer = Pipe(duplex=False)
        with contextlib.closing(writer):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.jobs", str(writer.fileno())],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
                pass_fds=[writer.fileno()],
                start_new_session=True,  # and Ctrl-C in a terminal is the worker's to handle
                env={name: value for name, value in os.environ.items() if not name.startswith(KEPT_BACK)},
            )
        job = {"id": id, "request": request, "folder": str(folder), "backend": backend, "ray_address": ray_address}
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: receive() will say so
            stdin.write(line_of(settings, secrets=False, **job))
            stdin.flush()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message, None when there was none for so long. Raises EOFError when the child has ended.

        The message ``finished`` has the document's bytes under ``document``.
        """
        if not self._reader.poll(seconds):
            return None
        try:
            message: dict[str, Any] = json.loads(self._reader.recv_bytes(MAX_DOCUMENT_BYTES))
            if message["kind"] == "finished":
                message["document"] = self._reader.recv_bytes(MAX_DOCUMENT_BYTES)
        except OSError as exc:  # it was killed in the middle of a message
            raise EOFError from exc
        return message

    def end(self) -> int:
        """Make sure that the child and its descendants are gone; return the exit status, negative for a signal."""
        for signum, seconds in ((signal.SIGTERM, POLITE_SECONDS), (signal.SIGKILL, None)):
            if self._process.poll() is None:
                self._signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._reader.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        return self._process.returncode

    def exit_status(self) -> int:
        """Return how the child ended by itself; to be called after ``receive`` raised EOFError."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(POLITE_SECONDS)
        return self.end()

    def _signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signum)


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
