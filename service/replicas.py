"""Several processes that answer on one socket: each started again when it dies, all gone when their parent goes.

``python -m alphalloc_service.replicas FD`` is one of them. It reads the settings from stdin, answers on the listening
socket FD and stops when stdin closes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from alphalloc.errors import SettingsError

from .handover import line_of, read_line, when_closed
from .settings import Settings

logger = logging.getLogger("alphalloc_service")

LOOK_SECONDS = 0.5
MAX_DEATHS = 5  # within DEATH_SECONDS: then something is wrong that a restart does not mend; chosen here
DEATH_SECONDS = 30.0
STOP_SECONDS = 35.0  # a little more than a server gives its last requests


class Replicas:
    """``count`` server processes on ``listener``."""

    def __init__(self, settings: Settings, listener: socket.socket, count: int) -> None:
        self._settings, self._listener, self._count = settings, listener, count
        self._stop = threading.Event()
        self._interrupted = False

    def run(self) -> None:
        """Keep them running until SIGTERM (returns) or SIGINT (KeyboardInterrupt). Raises SettingsError when they die
        again and again.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        processes = [self._start() for _ in range(self._count)]
        died: list[float] = []
        try:
            while not self._stop.wait(LOOK_SECONDS):
                for place, process in enumerate(processes):
                    if process.poll() is not None:
                        died = [at for at in died if time.monotonic() - at < DEATH_SECONDS] + [time.monotonic()]
                        logger.error("a server process ended with status %d; it is started again", process.returncode)
                        processes[place] = self._start()
                if len(died) > MAX_DEATHS * self._count:
                    raise SettingsError("the server processes end as soon as they start; their log says why")
        finally:
            self._end(processes)
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._interrupted:
            raise KeyboardInterrupt

    def _start(self) -> subprocess.Popen[bytes]:
        descriptor = self._listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.replicas", str(descriptor)],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C reaches the parent, and the parent stops them
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line_of(self._settings))
            process.stdin.flush()
        return process

    def _end(self, processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._interrupted = self._interrupted or number == signal.SIGINT
        self._stop.set()


def main() -> None:
    """Serve until stdin closes or SIGTERM comes."""
    from . import observability
    from .server import serve
    from .store import Store

    settings, _ = read_line(sys.stdin.buffer)
    observability.start(settings)
    when_closed(sys.stdin.buffer, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        serve(settings, Store.open(settings.database_url), listener)


if __name__ == "__main__":
    main()
