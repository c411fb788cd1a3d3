"""Does a busy service stay the size it is? 200 requests a second with jobs; memory and descriptors watched.

python reports/service-soak/run.py              # 10 and 30 minutes, writes results.json and README.md
python reports/service-soak/run.py --warm-up 0 --minutes 2 --no-report

Exits with 1 when a target is missed or anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from soak import DESCRIPTORS, GROWTH, JOB_SECONDS, LEAST_RATE, MIX, RATE, THREADS, WATCHED, SoakReport, soak  # noqa: E402


def row(report: SoakReport, name: str) -> str:
    """Return one line of the table, and whether its target was met."""
    one, memory = report.growth(name), name.endswith("_rss")
    unit, word = (2**20, "MiB") if memory else (1, "open")
    title = name.replace("_rss", ", resident").replace("_fds", ", descriptors")
    values = f"{one['first'] / unit:.1f} | {one['last'] / unit:.1f} {word} | {100 * one['growth']:+.1f} %"
    return f"| {title} | {values} | {one['most'] / unit:.1f} | {'yes' if report.met(name) else '**no**'} |"


def page(report: SoakReport, found: dict[str, Any]) -> str:
    """Return README.md."""
    counted = [sample for sample in report.samples if sample["seconds"] >= 0]
    later = report.growth("server_rss", counted[len(counted) // 2 :])["growth"]
    warming = [sample["server_rss"] / 2**20 for sample in report.samples if sample["seconds"] < 0] or [0.0]
    rows = "\n".join(row(report, name) for name in WATCHED)
    mix = ", ".join(f"{share} {kind}" for kind, share in MIX)
    jobs = ", ".join(f"{count} {state}" for state, count in report.jobs.items())
    latency, load = found["latency_ms"], ", ".join(f"{value:.1f}" for value in found["load_average"])
    failed = f" ({report.failed})" if report.failed else ""
    what = (
        f"{report.minutes:g} minutes of `alphalloc serve` (one process, SQLite, one worker) at "
        f"{found['requests_per_second']:.0f} requests a second (asked for: {RATE}) from {THREADS} connections, of a "
        f"hundred: {mix}. A new analysis of a small model every {JOB_SECONDS} s. Before the clock starts {report.fill} "
        "schedules fill the service's memory of documents four times over, so that every new one pushes out an old "
        f"one, and the same load runs for {report.warm_up:g} minutes, in which the server went from {warming[0]:.0f} "
        f"to {warming[-1]:.0f} MiB: connections, page caches and the holes of the heap find their size."
    )
    return f"""# Does a busy service stay the size it is?

{textwrap.fill(what, 120)}

| After the warm-up | First sixth (median) | Last sixth | Growth | Most | Target met |
| --- | --- | --- | --- | --- | --- |
{rows}

Targets: resident memory grows by less than {100 * GROWTH:g} %, descriptors stay within {DESCRIPTORS}, at least
{LEAST_RATE:g} requests a second, nothing fails.

- In the second half of the time alone the server grew by {100 * later:.1f} %.
- {found["requests"]} requests, {sum(report.failed.values())} without a 2xx{failed} (warm-up included, here and below).
- {len(report.errors)} broken connections; a client fell more than a second behind {report.late_starts} times.
- Median {latency["p50"]:.1f} ms, 99th percentile {latency["p99"]:.0f} ms.
- Jobs: {jobs}. Tracebacks in the log: {report.tracebacks}. Exit code: {report.exit_code}.

{found["machine"]}; load average at the end {load} (with other work beside
it the latencies are an upper bound). `run.py` remakes `results.json`, with every sample, and this page.
"""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service is stopped too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=10, help="minutes of the same load before they count")
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alphalloc-soak-") as folder:
        report = soak(Path(folder), minutes=options.minutes, warm_up=options.warm_up)
    found = report.as_dict() | {
        "load_average": os.getloadavg(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, 1 BLAS thread",
    }
    found["samples"] = found.pop("samples")  # last, since they are long
    print(page(report, found))
    if not options.no_report:
        (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (HERE / "README.md").write_text(page(report, found))
    wrong = report.wrong() + [f"{name} missed its target" for name in WATCHED if not report.met(name)]
    if report.rate < LEAST_RATE:
        wrong.append(f"{report.rate:.0f} requests a second, expected at least {LEAST_RATE:g}")
    sys.exit("; ".join(wrong) or 0)


if __name__ == "__main__":
    main()
