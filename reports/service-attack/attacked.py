"""The service that is attacked, and what one try is."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANALYSIS = f"/v1/analyses/an_{'0' * 32}"
POST = b"POST /v1/allocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
QUESTION = {"source": {"alphas": [2.1, 2.9, 3.4]}, "budget": {"total": 15}}


@dataclass(frozen=True)
class Try:
    """One thing that was tried: on what, how, what was wanted, and what came."""

    topic: str
    what: str
    wanted: str
    answer: str

    @property
    def held(self) -> bool:
        return re.search(self.wanted, self.answer) is not None


class Service:
    """`alphalloc serve` in a folder of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ALPHALLOC_")}
        self.environment |= {
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "ALPHALLOC_DATABASE_URL": f"sqlite:///{folder}/service.db",
            "ALPHALLOC_LOG_FORMAT": "json",
            **{f"ALPHALLOC_{name.upper()}": value for name, value in settings.items()},
        }
        self.headers: dict[str, str] = {}

    def command(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "alphalloc", *arguments]
        return subprocess.run(
            program, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False
        )

    @contextmanager
    def running(self, descriptors: int | None = None) -> Iterator[Service]:
        """Have it run; it is given so many ``descriptors`` to begin with (soft limit)."""
        log = (self.folder / "log.jsonl").open("a")
        program = [sys.executable, "-m", "alphalloc", "serve", "--port", "0"]
        if descriptors is not None:
            program = ["prlimit", f"--nofile={descriptors}:", *program]
        process = subprocess.Popen(program, env=self.environment, cwd=self.folder, stderr=log)
        try:
            until = time.monotonic() + 300
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.log)):
                assert time.monotonic() < until, self.log
                time.sleep(0.1)
            self.port, self.pid = int(found[1]), process.pid
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)

    @property
    def log(self) -> str:
        return (self.folder / "log.jsonl").read_text()

    def raw(self, content: bytes, seconds: float = 20) -> str:
        """Send bytes and return the first line that comes back."""
        return self.head(content, seconds).split(b"\r\n")[0].decode("latin-1") or "connection closed"

    def head(self, content: bytes, seconds: float = 20) -> bytes:
        """Send bytes and return all that comes back up to the end of the headers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(content)
            answer = b""
            with suppress(TimeoutError, ConnectionResetError):
                while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                    answer += part
        return answer

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> str:
        """Send a request and return status, and the code of the problem or the beginning of the answer."""
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, sent = json.dumps(body).encode(), {"Content-Type": "application/json", **sent}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        except OSError as exc:
            return f"connection closed ({type(exc).__name__})"
        finally:
            connection.close()
        text = content.decode("utf-8", "replace")
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict) and "code" in found:
                text = found["code"]
        return f"{answer.status} {' '.join(text.split())[:60]}".strip()

    def path_of_new(self, method: str, path: str, body: Any, **headers: str) -> str:
        """Send a request and return the Location of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json", **headers})
            return connection.getresponse().getheader("Location") or ""
        finally:
            connection.close()

    def job(self, body: dict[str, Any]) -> str:
        """Have something analysed and return how that ended."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(
            "POST", "/v1/analyses", json.dumps(body), {"Content-Type": "application/json"} | self.headers
        )
        analysis = json.loads(connection.getresponse().read())
        if "id" not in analysis:
            return f"{analysis['status']} {analysis['code']}"
        for _ in range(60):
            connection.request("GET", analysis["links"]["self"], headers={"Prefer": "wait=10"} | self.headers)
            analysis = json.loads(connection.getresponse().read())
            if analysis["status"] not in ("queued", "running"):
                break
        return f"job {analysis['status']}: {(analysis.get('error') or {}).get('code', '')}"


def memory_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Tries = list[Try]
