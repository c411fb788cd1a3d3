"""A service under a steady load with jobs: what its clients saw, and its memory and descriptors all the while.

    found = soak(tmp_path, minutes=30, warm_up=10)

First ``fill`` schedules are stored, four times what the service keeps in memory, so that every new one pushes out an
old one. Then the load runs; ``warm_up`` minutes of it pass before the samples count, in which connections, page caches
and the heap's holes find their size.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from running_service import RunningService
from safetensors.numpy import save_file

RATE = 200  # requests a second, of all threads
THREADS = 8
JOB_SECONDS = 15  # a new analysis that often
SAMPLE_SECONDS = 10
FILL = 24_000  # four times what the service keeps in memory: what replaces what has left its holes by then
# Of a hundred requests: reading stored schedules, asking for known ones, new ones, lists, methods, health.
MIX = (("get", 60), ("again", 15), ("new", 10), ("list", 5), ("methods", 5), ("health", 5))
# The targets: less growth of resident memory, at most so many descriptors more or fewer, a rate of requests a second.
GROWTH, DESCRIPTORS, LEAST_RATE = 0.05, 2, 0.95 * RATE
WATCHED = ("server_rss", "server_fds", "worker_rss", "worker_fds")


@dataclass
class SoakReport:
    """What happened. Requests and jobs of the warm-up count too; its samples (negative seconds) are not compared."""

    minutes: float
    warm_up: float
    fill: int
    fill_seconds: float = 0.0
    late_starts: int = 0  # a client was more than a second behind
    statuses: Counter[str] = field(default_factory=Counter)  # "get 200": number
    errors: list[str] = field(default_factory=list)  # of broken connections
    jobs: Counter[str] = field(default_factory=Counter)  # how the analyses ended
    latencies: list[float] = field(default_factory=list)  # seconds
    samples: list[dict[str, float]] = field(default_factory=list)
    exit_code: int | None = None
    tracebacks: int = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def add(self, kind: str, status: int | str, seconds: float) -> None:
        """Count one request."""
        with self._lock:
            self.statuses[f"{kind} {status}"] += 1
            self.latencies.append(seconds)

    @property
    def failed(self) -> dict[str, int]:
        """Requests without a 2xx."""
        return {name: count for name, count in self.statuses.items() if not name.rsplit(" ", 1)[1].startswith("2")}

    def growth(self, name: str, samples: Sequence[dict[str, float]] | None = None) -> dict[str, float]:
        """Compare the medians of the first and the last sixth of the samples after the warm-up."""
        counted = [sample for sample in self.samples if sample["seconds"] >= 0] if samples is None else samples
        values = [sample[name] for sample in counted if name in sample]
        part = max(1, len(values) // 6)
        first, last = statistics.median(values[:part]), statistics.median(values[-part:])
        return {"first": first, "last": last, "growth": last / first - 1, "most": max(values)}

    def met(self, name: str) -> bool:
        """Whether one of WATCHED met its target."""
        found = self.growth(name)
        return found["growth"] < GROWTH if name.endswith("_rss") else abs(found["last"] - found["first"]) <= DESCRIPTORS

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / (60 * (self.minutes + self.warm_up))

    @property
    def workers(self) -> set[float]:
        """The process ids that the worker had; more than one when it was started again."""
        return {sample["worker_pid"] for sample in self.samples if "worker_pid" in sample}

    def wrong(self) -> list[str]:
        """What should not be, targets aside."""
        expected = 60 * (self.minutes + self.warm_up) // JOB_SECONDS - 2
        checks = {
            f"requests without a 2xx: {self.failed}": bool(self.failed),
            f"broken connections: {self.errors[:3]}": bool(self.errors),
            f"jobs: {dict(self.jobs)}, expected at least {expected:g}, all succeeded": (
                set(self.jobs) != {"succeeded"} or self.jobs["succeeded"] < expected
            ),
            f"exit code {self.exit_code}": self.exit_code != 0,
            f"{self.tracebacks} tracebacks in the log": self.tracebacks > 0,
            f"{len(self.workers)} workers one after the other": len(self.workers) != 1,
        }
        return [what for what, is_so in checks.items() if is_so]

    def as_dict(self) -> dict[str, Any]:
        """The figures for a report: latencies as percentiles, samples last."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        samples, latencies = found.pop("samples"), sorted(found.pop("latencies"))
        requests = len(latencies)
        percentiles = {
            name: 1000 * latencies[int(share * (requests - 1))] for name, share in (("p50", 0.5), ("p99", 0.99))
        }
        return {
            **found,
            "statuses": dict(sorted(self.statuses.items())),
            "requests": requests,
            "requests_per_second": self.rate,
            "latency_ms": percentiles,
            **{name: self.growth(name) for name in WATCHED},
            "samples": samples,
        }


class Client:
    """One connection that is opened again when it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send one request; return status and body. Raises OSError or HTTPException when the connection breaks."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            raise


def soak(folder: Path, *, minutes: float, warm_up: float = 0.0, fill: int = FILL) -> SoakReport:
    """Start a service in ``folder``, fill it, load it for ``warm_up`` and ``minutes``, and stop it."""
    report = SoakReport(minutes, warm_up, fill)
    names = write_models(folder / "models")
    service = RunningService(folder, "--model-root", str(folder / "models"), rate_limit="off")
    with service:
        began = time.monotonic()
        paths = store_schedules(service.port, fill)
        report.fill_seconds = time.monotonic() - began
        start = time.monotonic() + 60 * warm_up
        until = start + 60 * minutes
        ids: list[str] = []
        with ThreadPoolExecutor(THREADS + 2) as pool:
            running = [pool.submit(visit, at, service.port, paths, until, report) for at in range(THREADS)]
            running.append(pool.submit(submit_jobs, service.port, names, until, report, ids))
            running.append(pool.submit(watch, service.process.pid, start, until, report.samples))
            for one in as_completed(running):
                one.result()
        report.jobs = Counter(service.finished(id)["status"] for id in ids)
    report.exit_code = service.process.returncode
    report.tracebacks = service.log.count("Traceback")
    return report


def write_models(folder: Path) -> list[str]:
    """Write ten small models and return their file names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        state = {
            f"model.layers.{layer}.mlp.{role}_proj.weight": rng.standard_normal((96, 128)).astype(np.float32)
            for layer in range(6)
            for role in ("up", "down")
        }
        save_file(state, folder / f"model-{number}.safetensors")
    return sorted(path.name for path in folder.iterdir())


def question(number: int) -> dict[str, Any]:
    """One of many requests for a schedule of 32 layers, always the same for a number."""
    draw = random.Random(number)
    return {"source": {"alphas": [round(draw.uniform(2, 5), 6) for _ in range(32)]}, "budget": {"total": 160}}


def store_schedules(port: int, number: int) -> list[str]:
    """Store ``number`` schedules and return their paths."""

    def work(index: int) -> list[str]:
        client, paths = Client(port), []
        for at in range(index, number, THREADS):
            status, content = client.request("POST", "/v1/allocations", question(at))
            assert status in (200, 201), content
            paths.append("/v1/allocations/" + json.loads(content)["id"])
        return paths

    with ThreadPoolExecutor(THREADS) as pool:
        return [path for paths in pool.map(work, range(THREADS)) for path in paths]


def visit(index: int, port: int, paths: Sequence[str], until: float, report: SoakReport) -> None:
    """Send this thread's share of the requests at their times."""
    client, draw, pause = Client(port), random.Random(index), THREADS / RATE
    kinds, weights = zip(*MIX, strict=True)
    due = time.monotonic() + index * pause / THREADS
    number = report.fill + index * 10_000_000
    while due < until:
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        elif wait < -1:
            report.late_starts += 1
            due = time.monotonic()
        due += pause
        kind = draw.choices(kinds, weights)[0]
        number += 1
        asked: dict[str, tuple[str, str, Any]] = {
            "get": ("GET", draw.choice(paths[-2000:]), None),
            "again": ("POST", "/v1/allocations", question(draw.randrange(report.fill))),
            "new": ("POST", "/v1/allocations", question(number)),
            "list": ("GET", "/v1/analyses?limit=20", None),
            "methods": ("GET", "/v1/methods", None),
            "health": ("GET", draw.choice(("/healthz", "/readyz")), None),
        }
        began = time.perf_counter()
        try:
            status: int | str = client.request(*asked[kind])[0]
        except (OSError, http.client.HTTPException) as exc:
            status = type(exc).__name__
            report.errors.append(str(exc))
        report.add(kind, status, time.perf_counter() - began)


def submit_jobs(port: int, names: Sequence[str], until: float, report: SoakReport, ids: list[str]) -> None:
    """Have a new analysis started every JOB_SECONDS; the share of the tail makes each another one."""
    number = 0
    while time.monotonic() < until - JOB_SECONDS:
        client = Client(port)  # the service drops a connection that is idle for five seconds
        number += 1
        body = {
            "model": {"path": names[number % len(names)]},
            "estimator": "hill_fraction",
            "hill_fraction": round(0.2 + number / 10_000, 4),
        }
        began = time.perf_counter()
        status, content = client.request("POST", "/v1/analyses", body)
        report.add("job", status, time.perf_counter() - began)
        ids.append(json.loads(content)["id"])
        time.sleep(JOB_SECONDS)


def watch(pid: int, start: float, until: float, samples: list[dict[str, float]]) -> None:
    """Take a sample every SAMPLE_SECONDS; its seconds count from ``start``."""
    while (now := time.monotonic()) < until:
        sample = {"seconds": round(now - start, 1)}
        worker = worker_of(pid)
        if worker is not None:
            sample["worker_pid"] = worker
        for name, process in (("server", pid), ("worker", worker)):
            with suppress(OSError):
                if process is not None:
                    sample[f"{name}_rss"], sample[f"{name}_fds"] = memory_of(process)
        samples.append(sample)
        time.sleep(SAMPLE_SECONDS)


def memory_of(pid: int) -> tuple[int, int]:
    """Return resident bytes and open descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


def worker_of(pid: int) -> int | None:
    """Return the worker that the server holds beside itself."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):  # it may be gone by now
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"alphalloc_service.embedded" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return None
