"""Time and cost of analysing 7B to 1T models on one CPU box, one card, eight, and eight times eight: on paper.

    python reports/scale/run.py                                  # measures this CPU, writes results.json and README.md
    python reports/scale/run.py --gpu-eigen 5e12 --disk 12e9     # your own numbers (every assumption is a flag)

What a core does is measured here; what a card, a disk and a network do is assumed, each figure with where it is from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

HERE = Path(__file__).parent
for folder in (HERE, HERE.parents[1]):
    sys.path.insert(0, str(folder))

from model import MODELS, Machine, stage_seconds, total  # noqa: E402

from alphalloc.fits import FITS  # noqa: E402
from alphalloc.spectra import eigenvalues, gram  # noqa: E402

# name: (default, unit, where it is from)
ASSUMED: dict[str, tuple[float, str, str]] = {
    "cores": (32, "", "a usual CPU box"),
    "disk": (6e9, "bytes/s", "one NVMe drive of PCIe 4, its data sheet's sequential read"),
    "network": (12.5e9, "bytes/s a host", "100 Gbit/s Ethernet at line rate"),
    "store": (40e9, "bytes/s for all hosts", "a shared file system of a few servers"),
    "copy": (50e9, "bytes/s a card", "PCIe 5 x16, 63 GB/s less overhead"),
    "gpu-gram": (
        24e12,
        "flop/s",
        "an H200's data sheet: 60 TFLOP/s float64; half of it reached, 10/16 of a whole product computed",
    ),
    "gpu-eigen": (2e12, "flop/s", "224 reductions of 4096 rows in 10 s, the middle of an estimate of 6 to 14 s"),
    "gpu-fit": (1e-3, "s a matrix", "small beside the rest, a guess"),
    "gpu-start": (5.0, "s a GPU task on Ray", "a new process that imports torch and takes its card, a guess"),
    "cpu-price": (1.6, "USD an hour", "a 32-core cloud machine"),
    "gpu-price": (4.0, "USD an hour and card", "an H200 on demand"),
}


def measure(rounds: int) -> dict[str, float]:
    """This core's speeds, medians: Gram of 1024 x 4096 and reduction of 2048 rows, a fit of 4096, reading a file."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((1024, 4096)) * 0.02).astype(np.float16)
    square = gram(rng.standard_normal((2048, 2048))).matrix
    spectrum = np.sort(rng.pareto(2.0, 4096) + 1.0)
    with threadpool_limits(1):
        pin_torch()
        gram_s = median(lambda: gram(weight), rounds)
        eigen_s = median(lambda: eigenvalues(square), rounds)
        fit_s = median(lambda: FITS["xmin_peak_robust"](spectrum), rounds)
    return {
        "gram": 1024**2 * 4096 / gram_s,
        "eigen": 4 / 3 * 2048**3 / eigen_s,
        "fit": fit_s,
        "disk_here": reading_speed(rounds),
    }


def pin_torch() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


def median(work: Callable[[], Any], rounds: int) -> float:
    """Median CPU seconds after a round that is not counted; the machine may be shared."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def reading_speed(rounds: int, size: int = 256 * 2**20) -> float:
    """Bytes a second from a file that the kernel was asked to forget."""
    speeds = []
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(2**20) * (size // 2**20))
        file.flush()
        os.fsync(file.fileno())
        for _ in range(rounds):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            file.seek(0)
            while file.read(16 * 2**20):
                pass
            speeds.append(size / (time.perf_counter() - begin))
    return statistics.median(speeds)


def machines(core: dict[str, float], a: dict[str, float]) -> list[Machine]:
    paths = {"storage": a["disk"], "network": a["network"], "store": a["store"]}
    card = paths | {"gram": a["gpu-gram"], "eigen": a["gpu-eigen"], "fit": a["gpu-fit"], "copy": a["copy"]}
    card["start"] = a["gpu-start"]
    cpu = paths | {"gram": core["gram"], "eigen": core["eigen"], "fit": core["fit"], "copy": None}
    return [
        Machine(f"1 CPU box, {a['cores']:g} cores", 1, int(a["cores"]), price=a["cpu-price"], **cpu),
        Machine("1 GPU", 1, 1, price=a["gpu-price"], **card),
        Machine("8 GPUs", 1, 8, price=8 * a["gpu-price"], **card),
        Machine("8 x 8 GPUs", 8, 8, price=8 * a["gpu-price"], **card),
    ]


def duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} d"


def page(results: dict[str, Any], lanes: list[Machine]) -> str:
    core, where = results["measured"], results["environment"]
    lines = [
        "# Scale on paper",
        "",
        "How long would an analysis take, and what would it cost, from 7B to 1T parameters? What one core does was",
        "measured; cards, disks, networks and prices are **assumptions, not measured** (table below): this is",
        "arithmetic, not a benchmark. Remade by `python reports/scale/run.py`; every assumption is a flag.",
        "",
        "| model | matrices | parameters in them | stored | " + " | ".join(lane.name for lane in lanes) + " |",
        "|---" * (4 + len(lanes)) + "|",
    ]
    for model in MODELS:
        cells = []
        for lane in lanes:
            seconds, why, cost = total(model, lane)
            cells.append(f"{duration(seconds)}, {cost:.2g} USD ({why})")
        lines.append(
            f"| {model.name} | {model.matrices} | {model.parameters / 1e9:.4g} G | {model.stored_bytes / 1e9:.4g} GB | "
            + " | ".join(cells) + " |"
        )  # fmt: skip
    return "\n".join([*lines, "", *_formula(), *_bottleneck(lanes), *_numbers(results, core, where)])


def _formula() -> list[str]:
    return [
        "In brackets: the stage that holds everything up.",
        "",
        "## The formula",
        "",
        "For matrices of nmin x nmax, W workers (cores or cards) on H hosts:",
        "",
        "    read        = bytes / (disk, or for several hosts min(H·network, store))",
        "    copy        = bytes / (W·copy)                              cards only",
        "    Gram        = Σ nmin²·nmax / (W·gram)",
        "    eigenvalues = Σ 4/3·nmin³ / (W·eigen)",
        "    fit         = matrices·fit / W",
        "    starts      = start · max(2, matrices / (512·W))            cards of several hosts only",
        "    time        = starts + max(read, copy, Gram + eigenvalues + fit, the largest matrix on one worker)",
        "    cost        = time · H · price",
        "",
        "Reading and copying run beside the computing, hence the maximum. One matrix is never split over workers.",
        "Several hosts need Ray, which starts a process for every GPU task: about two a card, of at most 512 matrices.",
        "Download from a hub, start of machines and Ray's other time (milliseconds a task) come on top.",
        "",
    ]


def _bottleneck(lanes: list[Machine]) -> list[str]:
    lines = [
        "## Where the bottleneck moves",
        "",
        "Seconds of each stage if it alone held the machine up.",
        "",
        "| model | machine | read | copy | Gram | eigenvalues | fit | largest matrix | starts | held up by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for lane in lanes:
            s = stage_seconds(model, lane)
            read = s.get("disk", s.get("network", 0.0))
            row = (read, s.get("copy"), s["Gram"], s["eigenvalues"], s["fit"], s["largest matrix"], s.get("starts"))
            cells = " | ".join("-" if value is None else f"{value:.3g}" for value in row)
            lines.append(f"| {model.name} | {lane.name} | {cells} | {total(model, lane)[1]} |")
    held = [[total(model, lane)[1] for model in MODELS] for lane in lanes]
    lines += ["", *(f"- {lane.name}: {', '.join(dict.fromkeys(why))}." for lane, why in zip(lanes, held, strict=True))]
    return [
        *lines,
        "",
        "The eigensolver's work grows with nmin³ and the bytes with nmin·nmax, so the larger a dense model's matrices,",
        "the longer computing decides, until one matrix of 16,384 rows is the limit. A model of many small experts has",
        "less to compute a byte: there disk or network decide first, and more cards gain nothing without more of them.",
        "",
    ]


def _numbers(results: dict[str, Any], core: dict[str, float], where: dict[str, Any]) -> list[str]:
    lines = [
        "## Measured",
        "",
        f"{where['processor']}, one thread ({where['libraries']}),",
        f"CPU seconds, medians of {where['rounds']}; {where['date']}.",
        "The reduction runs through torch where it is installed.",
        "",
        "| | |",
        "|---|---|",
        f"| Gram, 1024 x 4096 float16 | {core['gram'] / 1e9:.3g} Gflop/s a core |",
        f"| eigenvalues, 2048 rows | {core['eigen'] / 1e9:.3g} Gflop/s a core |",
        f"| fit, 4096 eigenvalues | {1e3 * core['fit']:.3g} ms |",
        f"| reading here, file not in memory (for comparison, not used) | {core['disk_here'] / 1e9:.3g} GB/s |",
        "",
        "## Assumed, not measured",
        "",
        "| flag | value | where it is from |",
        "|---|---|---|",
    ]
    for name, (_, unit, origin) in ASSUMED.items():
        value = results["assumed"][name]
        changed = "" if value == ASSUMED[name][0] else " (changed by a flag)"
        lines.append(f"| `--{name}` | {value:g} {unit}{changed} | {origin} |")
    return [
        *lines,
        "",
        "Shapes are those of the models' published configurations; embeddings and heads are not analysed.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (value, unit, origin) in ASSUMED.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{unit or 'number'} ({origin})")
    for name in ("gram", "eigen", "fit"):
        parser.add_argument(f"--core-{name}", type=float, help="of one core, instead of measuring it here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE)
    options = vars(parser.parse_args())
    core = {name: options[f"core_{name}"] for name in ("gram", "eigen", "fit")} | {"disk_here": 0.0}
    if None in core.values():
        core = measure(options["rounds"]) | {name: value for name, value in core.items() if value}
    assumed = {name: options[name.replace("-", "_")] for name in ASSUMED}
    lanes = machines(core, assumed)
    libraries = {
        f"{pool['internal_api']} {pool['version']}" for pool in threadpool_info() if pool["user_api"] == "blas"
    }
    results: dict[str, Any] = {
        "environment": {
            "processor": processor(),
            "libraries": ", ".join(sorted(libraries)),
            "rounds": options["rounds"],
            "date": time.strftime("%Y-%m-%d"),
        },
        "measured": core,
        "assumed": assumed,
        "machines": [asdict(lane) for lane in lanes],
        "totals": [
            {"model": model.name, "machine": lane.name, "seconds": seconds, "why": why, "cost": cost}
            for model in MODELS
            for lane in lanes
            for seconds, why, cost in [total(model, lane)]
        ],
    }
    text = page(results, lanes)
    (options["output"] / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options["output"] / "README.md").write_text(text)
    print(text)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
