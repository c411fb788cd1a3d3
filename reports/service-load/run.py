"""How many requests a second one process of the service answers, beside a bare FastAPI hello in the same run.

    python reports/service-load/run.py                       # SQLite; needs wrk
    python reports/service-load/run.py --postgres            # and new schedules on PostgreSQL (Debian's)
    python reports/service-load/run.py --rounds 5 --seconds 10

Rounds are interleaved, so that other work on the machine meets both sides. The server's CPU time a request is noted
beside the rate: it depends less on other work. Remakes results.json and README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPT = HERE / "new_schedules.lua"
HELLO = """
import sys, fastapi, uvicorn
app = fastapi.FastAPI()

@app.get("/")
async def hello():
    return {"hello": "world"}

uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
ALPHAS = [round(2 + i / 16, 4) for i in range(32)]
QUIET = {"OMP_NUM_THREADS": "1", "ALPHALLOC_RATE_LIMIT": "off"}


class Server:
    """A process that answers at ``url``."""

    def __init__(self, name: str, port: int, command: list[str], **environ: str) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            command, env={**os.environ, **QUIET, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/openapi.json").read()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"{name} did not start")

    def cpu_seconds(self) -> float:
        """User and system time so far. Linux only."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def load(server: Server, path: str, connections: int, seconds: int, **script: int) -> dict[str, Any]:
    """Return what wrk measured: requests a second, p99 in milliseconds, other answers than 2xx, CPU time a request."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-s", str(SCRIPT)] if script else []
    before = server.cpu_seconds()
    environ = {**os.environ, **{name.upper(): str(value) for name, value in script.items()}}
    text = subprocess.run([*command, server.url + path], capture_output=True, text=True, check=True, env=environ).stdout
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    requests = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: (.*)", text)
    return {
        "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),  # type: ignore[index]
        "p99_ms": float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit],
        "other_answers": int(refused[1]) if refused else 0,
        "socket_errors": errors[1] if errors else "",
        "cpu_us": round((server.cpu_seconds() - before) / max(1, requests) * 1e6),
    }


def schedule_path(server: Server) -> str:
    """Store a schedule of 32 layers and return its path."""
    body = json.dumps({"source": {"alphas": ALPHAS}, "budget": {"total": 160}}).encode()
    asked = urllib.request.Request(f"{server.url}/v1/allocations", body, {"Content-Type": "application/json"})
    return str(urllib.request.urlopen(asked).headers["Location"])


def measure(rounds: int, seconds: int, postgres: bool) -> dict[str, list[dict[str, Any]]]:
    """Return every round of every case."""
    program = [sys.executable, "-m", "alphalloc", "serve", "--no-worker"]
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        servers = [
            Server("hello", 8971, [sys.executable, "-c", HELLO, "8971"]),
            Server("SQLite", 8972, [*program, "--port", "8972", "--database-url", f"sqlite:///{folder}/load.db"]),
        ]
        if postgres:
            sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))
            from postgres import new_database

            url = new_database()
            subprocess.run([sys.executable, "-m", "alphalloc", "db", "upgrade", "--database", url], check=True)
            servers.append(Server("PostgreSQL", 8973, [*program, "--port", "8973", "--database-url", url]))
        try:
            place = schedule_path(servers[1])
            for number in range(rounds):
                for connections in (16, 32):
                    for name, server, path in (("hello", servers[0], "/"), ("cached GET", servers[1], place)):
                        found.setdefault(f"{name}, c={connections}", []).append(
                            load(server, path, connections, seconds)
                        )
                    for server in servers[1:]:
                        for layers in (4, 32):
                            seed = 1000 * number + 10 * connections + layers
                            case = f"new schedule of {layers} layers, {server.name}, c={connections}"
                            one = load(server, "", connections, seconds, layers=layers, seed=seed)
                            found.setdefault(case, []).append(one)
                            print(case, one, file=sys.stderr, flush=True)
        finally:
            for server in servers:
                server.stop()
    return found


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def page(results: dict[str, Any]) -> str:
    """Return the README."""
    cases = results["cases"]

    def median(case: str, what: str) -> float:
        return statistics.median(one[what] for one in cases[case])

    rows = []
    for case, rounds in cases.items():
        rates = [one["per_second"] for one in rounds]
        others = sum(one["other_answers"] for one in rounds)
        p99, cpu = median(case, "p99_ms"), median(case, "cpu_us")
        rows.append(
            f"| {case} | {median(case, 'per_second'):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {p99:.1f} "
            f"| {cpu:.0f} | {others} |"
        )
    verdicts = []
    for connections in (16, 32):
        hello, get = f"hello, c={connections}", f"cached GET, c={connections}"
        ratio = statistics.median(
            mine["per_second"] / bare["per_second"] for mine, bare in zip(cases[get], cases[hello], strict=True)
        )
        of_cpu = median(hello, "cpu_us") / median(get, "cpu_us")
        verdicts.append(
            f"- cached GET at c={connections}: {ratio:.2f} of hello's rate (by CPU time {of_cpu:.2f}); target 0.5: "
            + ("met." if ratio >= 0.5 else "**missed.**")
        )
    for case in cases:
        if case.startswith("new schedule") and case.endswith("c=16"):
            rate, p99 = median(case, "per_second"), median(case, "p99_ms")
            met = rate >= 1000 and p99 <= 50
            verdicts.append(
                f"- {case}: {rate:,.0f}/s, p99 {p99:.1f} ms; target 1,000/s and 50 ms: "
                + ("met." if met else "**missed.**")
            )
    machine = results["machine"]
    conditions = (
        f"{machine['processor']}, {machine['cores']} cores for client, server and database together, Python "
        f"{machine['python']}, {results['rounds']} rounds of {results['seconds']} s; load average "
        f"{machine['load_before']} before and {machine['load_after']} after. Above 2 the machine was busy with other "
        "work: rates and p99 are worse than on an idle one; ratios and CPU times less so."
    )
    return "\n".join(
        [
            "# Requests a second",
            "",
            'One process of `alphalloc serve` beside a bare FastAPI hello (`{"hello": "world"}`, one process, same',
            "uvicorn, same loop) under wrk with one thread. A cached GET asks for one stored schedule of 32 layers; a",
            "new schedule is a question that was never asked, computed and stored (group commit) before the answer.",
            "",
            "| case | requests/s, median (range) | p99 ms | server's CPU µs a request | not 2xx |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *verdicts,
            "",
            conditions,
            "",
            "Remade by `python reports/service-load/run.py --postgres`.",
            "",
        ]
    )


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    cases = measure(options.rounds, options.seconds, options.postgres)
    machine["load_after"] = round(os.getloadavg()[0], 1)
    results = {"rounds": options.rounds, "seconds": options.seconds, "machine": machine, "cases": cases}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = page(results)
    (HERE / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
