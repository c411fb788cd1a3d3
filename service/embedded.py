"""The worker beside an embedded server: one child process, started again when it dies, gone when the server goes.

``python -m alphalloc_service.embedded`` is that child. It reads the settings from stdin and works until stdin closes.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from itertools import chain, repeat

from .handover import line_of, read_line, when_closed
from .settings import Settings

logger = logging.getLogger("alphalloc_service")

RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)  # pauses before the next start; the last from then on
STOP_SECONDS = 10.0


class EmbeddedWorker:
    """A worker process of ours. ``stop`` lets it give its lease back."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_alive, name="alphalloc-worker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def stop(self) -> None:
        """Stop the worker and wait until it is gone."""
        with self._lock:
            self._stopping.set()
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
        self._thread.join()

    def _keep_alive(self) -> None:
        for pause in chain(RESTART_SECONDS, repeat(RESTART_SECONDS[-1])):
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = process = self._start()
            while process.poll() is None and not self._stopping.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
            try:
                status = process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if self._stopping.is_set():
                return
            logger.error("the worker ended with status %d; it is started again in %g s", status, pause)
            self._stopping.wait(pause)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.embedded"],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the server, and the server stops the worker
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line_of(self._settings))
            process.stdin.flush()
        return process


def main() -> None:
    """Work until stdin closes."""
    from .logs import configure
    from .worker import run_worker

    settings, _ = read_line(sys.stdin.buffer)
    configure(settings.log_format)
    stop = threading.Event()
    when_closed(sys.stdin.buffer, stop.set)
    run_worker(settings, stop=stop)


if __name__ == "__main__":
    main()
