"""Does a busy service stay the size it is? 200 requests a second with jobs; memory and descriptors watched.

    python reports/service-soak/run.py              # 30 minutes, writes results.json and README.md
    python reports/service-soak/run.py --minutes 2 --no-report

Before the clock starts, schedules are stored until the service's memory of documents is full, so that what comes after
is the steady state: every new schedule pushes out an old one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
RATE = 200  # requests a second, of all threads
THREADS = 8
JOB_SECONDS = 15  # a new analysis that often
FILL = 24_000  # four times what the service keeps in memory: what replaces what has left its holes by then
# Of a hundred requests: reading stored schedules, asking for known ones, new ones, lists, methods, health.
MIX = (("get", 60), ("again", 15), ("new", 10), ("list", 5), ("methods", 5), ("health", 5))


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    late: int = 0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, status: int | str, seconds: float) -> None:
        with self.lock:
            self.statuses[f"{kind} {status}"] += 1
            self.seconds.append(seconds)


class Client:
    """One connection that is opened again when it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
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


def question(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    return {"source": {"alphas": [round(draw.uniform(2, 5), 6) for _ in range(32)]}, "budget": {"total": 160}}


def start(folder: Path) -> tuple[subprocess.Popen[str], int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALPHALLOC_")}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "ALPHALLOC_DATABASE_URL": f"sqlite:///{folder}/service.db",
        "ALPHALLOC_MODEL_ROOTS": str(folder / "models"),
        "ALPHALLOC_RATE_LIMIT": "off",
        "ALPHALLOC_LOG_FORMAT": "json",
    }
    log = (folder / "log.jsonl").open("w")
    command = [sys.executable, "-m", "alphalloc", "serve", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=log, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", (folder / "log.jsonl").read_text())
        if found:
            return process, int(found[1])
        time.sleep(0.1)
    raise SystemExit("the service did not start: " + (folder / "log.jsonl").read_text())


def models(folder: Path) -> list[str]:
    """Write ten small models and return their names."""
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


def fill(port: int) -> list[str]:
    """Store FILL schedules and return their paths, oldest first."""
    paths: list[list[str]] = [[] for _ in range(THREADS)]

    def work(index: int) -> None:
        client = Client(port)
        for number in range(index, FILL, THREADS):
            status, content = client.request("POST", "/v1/allocations", question(number))
            assert status in (200, 201), content
            paths[index].append("/v1/allocations/" + json.loads(content)["id"])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [path for group in paths for path in group]


def visit(index: int, port: int, paths: list[str], until: float, seen: Seen) -> None:
    """Send this thread's share of the requests at their times."""
    client, draw, pause = Client(port), random.Random(index), THREADS / RATE
    kinds, weights = zip(*MIX, strict=True)
    due = time.monotonic() + index * pause / THREADS
    number = FILL + index * 10_000_000
    while due < until:
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        elif wait < -1:
            seen.late += 1
            due = time.monotonic()
        due += pause
        kind = draw.choices(kinds, weights)[0]
        number += 1
        asked: dict[str, tuple[str, str, Any]] = {
            "get": ("GET", draw.choice(paths[-2000:]), None),
            "again": ("POST", "/v1/allocations", question(draw.randrange(FILL))),
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
            seen.errors.append(str(exc))
        seen.add(kind, status, time.perf_counter() - began)


def submit_jobs(port: int, names: list[str], until: float, seen: Seen, ids: list[str]) -> None:
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
        seen.add("job", status, time.perf_counter() - began)
        ids.append(json.loads(content)["id"])
        time.sleep(JOB_SECONDS)


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


def watch(pid: int, until: float, samples: list[dict[str, float]]) -> None:
    """Take a sample every ten seconds."""
    began = time.monotonic()
    while time.monotonic() < until:
        sample: dict[str, float] = {"seconds": round(time.monotonic() - began, 1)}
        for name, process in (("server", pid), ("worker", worker_of(pid))):
            with suppress(OSError):
                if process is not None:
                    sample[f"{name}_rss"], sample[f"{name}_fds"] = memory_of(process)
        samples.append(sample)
        time.sleep(10)


def growth(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    """Compare the medians of the first and the last sixth."""
    values = [sample[name] for sample in samples if name in sample]
    part = max(1, len(values) // 6)
    first, last = statistics.median(values[:part]), statistics.median(values[-part:])
    return {"first": first, "last": last, "growth": last / first - 1, "most": max(values)}


def measure(minutes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="alphalloc-soak-") as text:
        folder = Path(text)
        names = models(folder / "models")
        process, port = start(folder)
        try:
            print(f"filling: {FILL} schedules", file=sys.stderr, flush=True)
            began = time.monotonic()
            paths = fill(port)
            filled = time.monotonic() - began
            print(f"filled in {filled:.0f} s; {minutes:g} minutes begin", file=sys.stderr, flush=True)
            seen = Seen()
            samples: list[dict[str, float]] = []
            ids: list[str] = []
            until = time.monotonic() + 60 * minutes
            threads = [
                threading.Thread(target=visit, daemon=True, args=(at, port, paths, until, seen))
                for at in range(THREADS)
            ]
            threads.append(threading.Thread(target=submit_jobs, daemon=True, args=(port, names, until, seen, ids)))
            threads.append(threading.Thread(target=watch, daemon=True, args=(process.pid, until, samples)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            ends: Counter[str] = Counter()
            for id in ids:
                for _ in range(60):
                    state = json.loads(Client(port).request("GET", f"/v1/analyses/{id}")[1])["status"]
                    if state not in ("queued", "running"):
                        break
                    time.sleep(1)
                ends[state] += 1
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        log = (folder / "log.jsonl").read_text()
    requests = len(seen.seconds)
    ordered = sorted(seen.seconds)
    return {
        "minutes": minutes,
        "requests": requests,
        "requests_per_second": requests / (60 * minutes),
        "late_starts": seen.late,
        "statuses": dict(sorted(seen.statuses.items())),
        "connection_errors": len(seen.errors),
        "latency_ms": {
            name: 1000 * ordered[int(share * (requests - 1))] for name, share in (("p50", 0.5), ("p99", 0.99))
        },
        "jobs": dict(ends),
        "fill_seconds": filled,
        "exit_code": code,
        "tracebacks": log.count("Traceback"),
        **{name: growth(samples, name) for name in ("server_rss", "server_fds", "worker_rss", "worker_fds")},
        "samples": samples,
        "load_average": os.getloadavg(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, 1 BLAS thread",
    }


def row(found: dict[str, Any], name: str) -> str:
    """Return one line of the table, and whether its target was met."""
    one, memory = found[name], name.endswith("_rss")
    unit, word = (2**20, "MiB") if memory else (1, "open")
    met = one["growth"] < 0.05 if memory else abs(one["last"] - one["first"]) <= 2
    title = name.replace("_rss", ", resident").replace("_fds", ", descriptors")
    values = f"{one['first'] / unit:.1f} | {one['last'] / unit:.1f} {word} | {100 * one['growth']:+.1f} %"
    return f"| {title} | {values} | {one['most'] / unit:.1f} | {'yes' if met else '**no**'} |"


def page(found: dict[str, Any]) -> str:
    """Return README.md."""
    bad = {name: count for name, count in found["statuses"].items() if not name.rsplit(" ", 1)[1].startswith("2")}
    later = growth(found["samples"][len(found["samples"]) // 2 :], "server_rss")["growth"]
    rows = "\n".join(row(found, name) for name in ("server_rss", "server_fds", "worker_rss", "worker_fds"))
    mix = ", ".join(f"{share} {kind}" for kind, share in MIX)
    jobs = ", ".join(f"{count} {state}" for state, count in found["jobs"].items())
    rate = found["requests_per_second"]
    latency, load = found["latency_ms"], ", ".join(f"{value:.1f}" for value in found["load_average"])
    return f"""# Does a busy service stay the size it is?

{found["minutes"]:g} minutes of `alphalloc serve` (one process, SQLite, one worker) at {rate:.0f} requests a second
(asked for: {RATE}) from {THREADS} connections, of a hundred: {mix}.
A new analysis of a small model every {JOB_SECONDS} s. Before the clock starts {FILL} schedules fill the service's
memory of documents four times over, so that every new one pushes out an old one and the holes that they leave are
there.

| | First sixth (median) | Last sixth | Growth | Most | Target met |
| --- | --- | --- | --- | --- | --- |
{rows}

Targets: resident memory grows by less than 5 %, descriptors stay within 2.

- In the second half of the time alone the server grew by {100 * later:.1f} %.
- {found["requests"]} requests, {sum(bad.values())} without a 2xx{f" ({bad})" if bad else ""}.
- {found["connection_errors"]} broken connections; a client fell more than a second behind {found["late_starts"]} times.
- Median {latency["p50"]:.1f} ms, 99th percentile {latency["p99"]:.0f} ms.
- Jobs: {jobs}. Tracebacks in the log: {found["tracebacks"]}. Exit code: {found["exit_code"]}.

{found["machine"]}; load average at the end {load}: the machine was shared with other
work, so the latencies are an upper bound. `run.py` remakes `results.json`, with every sample, and this page.
"""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service is stopped too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()
    found = measure(options.minutes)
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=2))
    if not options.no_report:
        (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (HERE / "README.md").write_text(page(found))
    else:
        print(page(found))


if __name__ == "__main__":
    main()
