"""One contender on one file of weights, in this process: prints CPU and wall seconds, memory and alphas as JSON.

    python contenders.py NAME weights.safetensors        # diffract: weights.npz

Everything is imported before the clock starts and the peak is reset; what is measured is reading, spectra and fits.
AlphaLoRA's procedure is written anew from its description (arXiv 2410.10054), WeightWatcher and Diffract are the
released packages.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], dict[str, float]]


def alphalloc(estimator: str) -> Callable[[str], Run]:
    def prepare(path: str) -> Run:
        import numpy as np

        import alphalloc as package

        try:  # loaded before the clock: large matrices go through it
            import torch

            torch.linalg.eigvalsh(torch.eye(8, dtype=torch.float64))
        except ImportError:
            pass
        package.analyze({f"layers.{i}.weight": np.eye(20) for i in range(2)}, workers=1)

        def run() -> dict[str, float]:
            alphas = package.analyze(path, cache=False, workers=1, estimator=estimator)
            return {matrix.name: matrix.alpha or 0.0 for matrix in alphas.matrices}

        return run

    return prepare


def alphalora(path: str) -> Run:
    """Float32 singular values, a histogram peak of their logarithms, a Python loop over the candidates near it."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(1)

    def fit(weight: torch.Tensor) -> float:
        eigs = torch.sort(torch.square(torch.linalg.svdvals(weight.float()))).values
        logs = torch.log10(eigs)
        low, high = logs.min(), logs.max()
        counts = torch.histc(logs, 100, min=float(low), max=float(high))
        edges = torch.linspace(float(low), float(high), 101)
        peak = 10 ** edges[counts.argmax()]
        lower, upper = torch.log10(0.95 * peak), 1.5 * peak  # the logarithm is the released code's
        n_all, best, alpha = len(eigs), 1.0, 0.0
        logarithms = torch.log(eigs)
        for i, xmin in enumerate(eigs[:-1]):
            if xmin < lower:
                continue
            if xmin > upper:
                break
            n = float(n_all - i)
            candidate = 1 + n / (torch.sum(logarithms[i:]) - n * torch.log(xmin))
            if candidate > 1:
                distance = torch.max(torch.abs(1 - (eigs[i:] / xmin) ** (1 - candidate) - torch.arange(n) / n))
                if distance < best:
                    best, alpha = float(distance), float(candidate)
        return alpha

    def run() -> dict[str, float]:
        with safe_open(path, framework="pt") as file:
            return {name: fit(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  (no mapping)

    return run


def weightwatcher(path: str) -> Run:
    import torch
    import weightwatcher as package
    from safetensors.torch import load_file

    torch.set_num_threads(1)

    def run() -> dict[str, float]:
        frame = package.WeightWatcher(model=load_file(path)).analyze()
        return {str(row.longname): float(row.alpha) for row in frame.itertuples()}

    return run


def diffract(path: str) -> Run:
    import numpy as np
    from diffract import Session

    def run() -> dict[str, float]:
        with np.load(path) as file:
            weights = {name: file[name].astype(np.float32) for name in file.files}
        with Session(profile="ram") as session:
            session.models.add(weights, model_id="m")
            session.compute.apply("pl_alpha")
            found: Any = session.results.export_metrics("pl_alpha", export_format="list")
        return {str(i): 0.0 for i, _ in enumerate(found)}

    return run


CONTENDERS: dict[str, Callable[[str], Run]] = {
    "alphalloc (ks)": alphalloc("ks"),
    "alphalloc (xmin_peak_reference)": alphalloc("xmin_peak_reference"),
    "AlphaLoRA's procedure": alphalora,
    "WeightWatcher 0.7.7": weightwatcher,
    "Diffract 0.3.1": diffract,
}


def main() -> None:
    run = CONTENDERS[sys.argv[1]](sys.argv[2])
    base = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    alphas = run()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    peak = (_status("VmHWM") - base) / 2**20
    print("RESULT " + json.dumps({"cpu": cpu, "wall": wall, "mib": peak, "matrices": len(alphas), "alphas": alphas}))


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s*([0-9]+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    assert os.environ.get("OMP_NUM_THREADS") == "1", "one thread: set OMP_NUM_THREADS=1"
    main()
