"""What the service keeps when its processes are killed: the figures, made by the code that the tests run.

python reports/service-reliability/run.py                 # everything, about half an hour
python reports/service-reliability/run.py --only kills --kills 10
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from databases import DATABASES, new_url  # noqa: E402
from kill_loop import LEASE_SECONDS, kill_loop  # noqa: E402
from running_service import RunningService  # noqa: E402

SIDE = 5000  # rows of a matrix that takes longer than any wait here


def kills(number: int, databases: Sequence[str]) -> dict[str, Any]:
    """Kill a worker or its child ``number`` times on each of the databases."""
    found = {}
    for kind in databases:
        with tempfile.TemporaryDirectory(prefix="alphalloc-kills-") as folder:
            report = kill_loop(new_url(kind, Path(folder)), Path(folder), number)
        found[kind] = report.as_dict()
        print(kind, json.dumps(found[kind]), flush=True)
    return found


def cancels(number: int) -> dict[str, Any]:
    """Cancel ``number`` analyses over HTTP while a matrix of SIDE rows is computed."""
    rng, draw = np.random.default_rng(0), random.Random(0)
    answered, ended = [], []
    with tempfile.TemporaryDirectory(prefix="alphalloc-cancels-") as text:
        folder = Path(text)
        state = {
            f"model.layers.{layer}.mlp.up_proj.weight": rng.standard_normal((SIDE, SIDE), dtype=np.float32)
            for layer in range(2)
        }
        save_file(state, folder / "large.safetensors")
        with RunningService(folder, "--model-root", str(folder), rate_limit="off") as service:
            for at in range(number):
                body = {
                    "model": {"path": "large.safetensors"},
                    "estimator": "hill_fraction",
                    "hill_fraction": round(0.2 + at / 1000, 3),
                }
                id = service.json("POST", "/v1/analyses", body)[1]["id"]
                wait_until(lambda id=id: service.json("GET", f"/v1/analyses/{id}")[1]["status"] == "running")
                job = wait_until(lambda: job_processes(service.process.pid))
                time.sleep(draw.uniform(1.5, 6))  # importing takes the first second; the matrix more than the rest
                began = time.monotonic()
                assert service.json("POST", f"/v1/analyses/{id}/cancel")[0] == 200
                wait_until(lambda id=id: service.json("GET", f"/v1/analyses/{id}")[1]["status"] == "cancelled")
                answered.append(round(time.monotonic() - began, 2))
                wait_until(lambda job=job: not job & job_processes(service.process.pid))
                ended.append(round(time.monotonic() - began, 2))
    found = {"side": SIDE, "until_cancelled": answered, "until_process_gone": ended}
    print("cancels", json.dumps(found), flush=True)
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what ``condition`` does as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def job_processes(server: int) -> set[int]:
    """Process ids of the jobs that the worker of the server has started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):  # it may be gone by now
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    workers = {pid for pid, parent in parents.items() if parent == server}
    return {pid for pid, parent in parents.items() if parent in workers}


def machine() -> dict[str, Any]:
    """Return where this ran."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def readme(results: dict[str, Any]) -> str:
    """Return the report's text."""
    lines = ["# What the service keeps when its processes are killed, and how soon it lets go", ""]
    lines += [__doc__.partition("\n")[0] if __doc__ else "", ""]
    where = results["machine"]
    shared = f"{where['cores']} cores shared with other work (load {where['load']})"
    lines += [f"{where['cpu']}, {shared}, Python {where['python']}.", ""]
    if "kills" in results:
        lines += _kills_section(results["kills"])
    if "cancels" in results:
        lines += _cancels_section(results["cancels"])
    return "\n".join(lines)


def _kills_section(found: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("kills of workers + of their children", lambda r: f"{r['kills_of_workers']} + {r['kills_of_children']}"),
        ("analyses acknowledged", lambda r: str(r["jobs"])),
        ("of them lost", lambda r: str(r["jobs_lost"])),
        ("of them with other bytes than an undisturbed run", lambda r: str(r["results_differing"])),
        ("most attempts of one analysis", lambda r: str(r["most_attempts"])),
        ("spectra on disk at some kill, of all", lambda r: f"{r['spectra_seen']} of {r['spectra']}"),
        ("of them lost or computed again", lambda r: str(r["spectra_lost"])),
        ("job processes alive 2 s after their worker's death", lambda r: str(r["orphans"])),
        ("faults found by `alphalloc db check`", lambda r: str(len(r["wrong_in_database"]))),
        (
            "seconds from a kill to the next attempt of that analysis, median and longest",
            lambda r: f"{statistics.median(r['recovery_seconds']):.2f}, {max(r['recovery_seconds']):.2f}",
        ),
        (
            "the same without the time in which the worker was at another analysis",
            lambda r: f"{statistics.median(r['idle_seconds']):.2f}, {max(r['idle_seconds']):.2f}",
        ),
        (
            f"of these longer than the target, lease + 5 s = {LEASE_SECONDS + 5:g} s",
            lambda r: f"{sum(s > r['lease_seconds'] + 5 for s in r['idle_seconds'])} of {len(r['idle_seconds'])}",
        ),
        ("seconds in all", lambda r: str(r["seconds"])),
    ]
    how = (
        f"One worker with a lease of {LEASE_SECONDS:g} s; it or its job's process is killed at a random moment: up to "
        "2.5 s after a running job was seen, or when a random number of its spectra are on disk. The queue never runs "
        "dry, so a worker that starts before the lease is out takes another analysis first. In the end every analysis "
        "is compared with one that nobody disturbed."
    )
    lines = [
        "## kill -9 at random moments",
        "",
        how,
        "",
        "| | " + " | ".join(found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(show(report) for report in found.values()) + " |" for name, show in rows]
    return [*lines, ""]


def _cancels_section(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| {what} | {statistics.median(times):.2f} | {max(times):.2f} | {sum(one > 2 for one in times)} |"
        for what, times in (
            ("`GET` says `cancelled`", found["until_cancelled"]),
            ("the job's process is gone", found["until_process_gone"]),
        )
    ]
    how = (
        f"{len(found['until_cancelled'])} analyses of matrices with {found['side']} rows and columns, cancelled over "
        "HTTP at a random moment of the Gram product or the eigensolver. Target: 2 s."
    )
    return [
        "## Cancelling inside a computation",
        "",
        how,
        "",
        "| seconds until | median | longest | longer than 2 s |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    """Run what is asked for, add it to results.json and write README.md anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    sections: dict[str, Callable[[argparse.Namespace], Any]] = {
        "kills": lambda given: kills(given.kills, given.database or DATABASES),
        "cancels": lambda given: cancels(given.cancels),
    }
    parser.add_argument("--only", choices=sections, action="append")
    parser.add_argument("--database", choices=DATABASES, action="append", help="one alone; the other's figures stay")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cancels", type=int, default=20)
    parser.add_argument("--text", action="store_true", help="write README.md from results.json alone")
    given = parser.parse_args()
    target = HERE / "results.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    if not given.text:
        for name in given.only or sections:
            results[name] = results.get(name, {}) | sections[name](given)
        results["machine"] = machine()
    target.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    (HERE / "README.md").write_text(readme(results))


if __name__ == "__main__":
    main()
