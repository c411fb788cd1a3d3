"""A real service on a free loopback port, started by the command line, with a database of its own.

    with RunningService(tmp_path) as service:
        answer, body = service.request("GET", "/v1/info")

Settings go in as environment variables (``rate_limit="off"`` becomes ALPHALLOC_RATE_LIMIT). What it logs is in ``log``.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

STARTED = re.compile(r"http://(?:127\.0\.0\.1|\[::1\]|localhost|0\.0\.0\.0):(\d+)")


class RunningService:
    """Context manager; ``port`` is where it listens, ``headers`` go with every request."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None, **settings: Any) -> None:
        self.database_url = f"sqlite:///{folder}/service.db"
        self.headers: dict[str, str] = {}
        self.port = 0
        self._lines: list[str] = []
        self._options = options
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ALPHALLOC_")},
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "ALPHALLOC_DATABASE_URL": self.database_url,
            "ALPHALLOC_LOG_FORMAT": "json",
            **{f"ALPHALLOC_{name.upper()}": str(value) for name, value in settings.items()},
            **(environment or {}),
        }

    def __enter__(self) -> RunningService:
        command = [sys.executable, "-m", "alphalloc", "serve", "--port", "0", *self._options]
        self.process = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            if found := STARTED.search(line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError(f"the service did not start: {self.log}")
        self._reader = threading.Thread(target=self._lines.extend, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join(10)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything it wrote to stderr so far."""
        return "".join(self._lines)

    def records(self) -> list[dict[str, Any]]:
        """The log lines that are JSON."""
        return [json.loads(line) for line in list(self._lines) if line.startswith("{")]

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send one request; a ``body`` that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = dict(self.headers) | (headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Send one request and return status and JSON."""
        answer, content = self.request(method, path, body, headers)
        return answer.status, json.loads(content) if content else None

    def finished(self, analysis_id: str, seconds: float = 240) -> dict[str, Any]:
        """Wait for the end of an analysis and return it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status, found = self.json("GET", f"/v1/analyses/{analysis_id}", headers={"Prefer": "wait=10"})
            assert status == 200, found
            if found["status"] in ("succeeded", "failed", "cancelled"):
                return dict(found)
        raise AssertionError(f"analysis {analysis_id} did not end within {seconds} s")

    def command(self, *arguments: str) -> str:
        """Run ``alphalloc`` with this service's settings; return what it prints."""
        command = [sys.executable, "-m", "alphalloc", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True).stdout
