"""How fast is the batched pipeline on a card? Ours, a plain loop and AlphaLoRA's procedure, beside the card's bounds.

    python reports/gpu-speed/run.py                       # on a machine with CUDA: results.json and README.md anew
    python reports/gpu-speed/run.py --routes --device cpu # the eigenvalue routes on the CPU: routes-on-cpu.json alone

Runs from a plain checkout with torch, numpy and scipy. Without CUDA it writes "not measured", unless a
measured report is there already; results are written after every section. It stays under eight
minutes on an H200-class card: sections beyond ``--seconds`` are left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
for folder in (HERE, HERE.parents[1]):
    sys.path.insert(0, str(folder))

from page import page, routes_page  # noqa: E402
from routes import ROUTES, WIDTH, bisect, chase, one_stage, to_band  # noqa: E402
from shapes import MODELS, TINY, Weight, gram_flop, make_weights, reduction_flop  # noqa: E402

from alphalloc.backends.batched import run_batched  # noqa: E402
from alphalloc.backends.reader import Reader  # noqa: E402
from alphalloc.fits.batched import fit_batch  # noqa: E402
from alphalloc.spectra.batched import add_gram, batch_spectra, symmetric_eigenvalues  # noqa: E402

ESTIMATOR = "xmin_peak_robust"
GIB = 2**30


class Bench:
    """The device, the clock and what is left of the time."""

    def __init__(self, device: str, tiny: bool, rounds: int, seconds: float) -> None:
        # one card: without an index the batched backend would take every card of the machine, and the others the first
        self.device = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
        self.tiny, self.rounds = tiny, rounds
        self.module = torch.get_device_module(self.device)
        self.start, self.limit = time.perf_counter(), seconds
        self.left_out: list[str] = []

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds of ``work``: by the wall on a card, of the process on a CPU, which others may share."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        self.module.synchronize()
        begin = clock()
        work()
        self.module.synchronize()
        return clock() - begin

    def times(self, work: Callable[[], Any], rounds: int | None = None) -> list[float]:
        """Seconds of every round after one that is not counted (handles, kernels, memory)."""
        self.timed(work)
        return [self.timed(work) for _ in range(rounds or self.rounds)]

    def may_start(self, section: str) -> bool:
        if time.perf_counter() - self.start < self.limit:
            return True
        self.left_out.append(section)
        return False


def median(times: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(times), "low": min(times), "high": max(times), "rounds": len(times)}


def bounds(bench: Bench) -> dict[str, float]:
    """float64 product, memory traffic and host-to-device copy, as measured here."""
    side, size = (256, 2**20) if bench.tiny else (8192, 2**31)
    a = torch.randn(side, side, dtype=torch.float64, device=bench.device)
    product = statistics.median(bench.times(lambda: a @ a, 3))
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    traffic = statistics.median(bench.times(lambda: target.copy_(source), 3))
    host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=bench.device.type == "cuda")
    copied = statistics.median(bench.times(lambda: target[: size // 4].copy_(host, non_blocking=True), 3))
    return {
        "gemm_flop_per_s": 2 * side**3 / product,
        "memory_bytes_per_s": 2 * size / traffic,
        "host_to_device_bytes_per_s": size // 4 / copied,
    }


def ours(bench: Bench, weights: list[Weight]) -> Callable[[], None]:
    def run() -> None:
        device = str(bench.device)
        fits = [result.fit for _, result in run_batched(weights, estimator=ESTIMATOR, device=device)]
        assert len(fits) == len(weights)
        assert all(fit.status == "ok" for fit in fits)

    return run


def plain_loop(weights: list[Weight]) -> None:
    for weight in weights:
        w = weight.value.double()
        torch.linalg.eigvalsh(w @ w.T if len(w) <= w.shape[1] else w.T @ w)


def alphalora(weights: list[Weight]) -> None:
    """float32 singular values, a histogram of their logarithms, a loop over all candidates (arXiv 2410.10054)."""
    for weight in weights:
        eigs = torch.linalg.svdvals(weight.value.float()).square().sort().values
        logs = torch.log10(eigs.clamp_min(1e-30))
        counts = torch.histc(logs, 100, min=float(logs.min()), max=float(logs.max()))
        edges = torch.linspace(float(logs.min()), float(logs.max()), 101, device=eigs.device)
        peak = 10 ** edges[counts.argmax()]
        lower, upper, best = torch.log10(0.95 * peak), 1.5 * peak, 1.0
        for i, xmin in enumerate(eigs[:-1]):
            if xmin < lower:
                continue
            if xmin > upper:
                break
            n = len(eigs) - i
            alpha = 1 + n / (torch.log(eigs[i:]).sum() - n * torch.log(xmin))
            steps = torch.arange(n, device=eigs.device) / n
            distance = torch.max(torch.abs(1 - (eigs[i:] / xmin) ** (1 - alpha) - steps))
            if distance < best:
                best = float(distance)


def stages(bench: Bench, weights: list[Weight]) -> dict[str, float]:
    """Seconds a matrix of every stage by itself, over one block's matrices of the largest smaller side."""
    side = max(min(weight.shape) for weight in weights)
    chosen = [weight for weight in weights if min(weight.shape) == side]
    grams = torch.zeros(len(chosen), side, side, dtype=torch.float64, device=bench.device)
    norms = torch.zeros(len(chosen), dtype=torch.float64, device=bench.device)

    def products() -> None:
        grams.zero_()
        for index, weight in enumerate(chosen):
            norms[index] = add_gram(grams[index], weight.value)

    found: dict[str, float] = {"gram": statistics.median(bench.times(products, 2))}
    values = symmetric_eigenvalues(grams)
    found["eigenvalues"] = statistics.median(bench.times(lambda: symmetric_eigenvalues(grams), 1))
    found["checks"] = statistics.median(bench.times(lambda: batch_spectra(grams, norms, lambda _: values), 2))
    zeros = torch.zeros(len(chosen), dtype=torch.int64, device=bench.device)
    kept = values.clamp_min(1e-12)
    found["fit"] = statistics.median(bench.times(lambda: fit_batch(ESTIMATOR, kept, zeros), 2))
    return {name: seconds / len(chosen) for name, seconds in found.items()} | reading(bench, chosen[0])


def reading(bench: Bench, weight: Weight) -> dict[str, float]:
    """Seconds a matrix to read a file that is in the page cache into staging memory, and from there onto the device."""
    array, count = weight.value.cpu().numpy(), 4 if bench.tiny else 16

    class Stored:
        shape, name = array.shape, "stored"

        def load(self) -> np.ndarray:
            return np.fromfile(path, dtype=np.float16).reshape(array.shape)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight"
        array.tofile(path)

        def read(copy: bool) -> None:
            reader = Reader([Stored()] * count, range(count), pin=bench.device.type == "cuda", threads=4, ahead=5)
            for position in range(count):
                staged = reader.take(position)
                if copy and staged.weight is not None:
                    staged.weight.to(bench.device, non_blocking=True)
                    bench.module.synchronize()
                reader.give_back(staged)
            reader.close()

        both = [statistics.median(bench.times(lambda copy=copy: read(copy), 2)) / count for copy in (False, True)]
    return {"read": both[0], "copy": max(both[1] - both[0], 0.0)}


def try_routes(bench: Bench, side: int, count: int) -> dict[str, Any]:
    """Seconds a matrix and error of every route on ``count`` Gram matrices of ``side`` rows."""
    weights = make_weights([(side, side)], count, bench.device)
    grams = torch.stack([weight.value.double() @ weight.value.double().T for weight in weights])
    exact = torch.linalg.eigvalsh(grams[:2].cpu())
    found: dict[str, Any] = {}
    for name, route in ROUTES.items():
        try:
            values = route(grams)
            error = ((values[:2].cpu() - exact).abs() / exact[:, -1:]).max()
            seconds = bench.timed(lambda route=route: route(grams)) / count
            found[name] = {"seconds": seconds, "error_over_bound": float(error) / (side * 2.2e-16)}
        except Exception as exc:  # a route that fails is a result too
            found[name] = {"failed": f"{type(exc).__name__}: {str(exc).splitlines()[0][:120]}"}
    sound = {name: row["seconds"] for name, row in found.items() if row.get("error_over_bound", 2.0) <= 1.0}
    winner = min(sound, key=lambda name: sound[name], default=None)
    return {"side": side, "count": count, "routes": found, "winner": winner, "parts": parts(bench, grams)}


def parts(bench: Bench, grams: torch.Tensor) -> dict[str, float]:
    """Seconds a matrix of the steps of the routes written here, bisection as a whole; of none where one fails."""
    kept: dict[str, Any] = {}

    def step(name: str, work: Callable[[], Any]) -> float:
        return bench.timed(lambda: kept.__setitem__(name, work())) / len(grams)

    try:
        return {
            "blocked tridiagonalisation": step("one", lambda: one_stage(grams)),
            "to a band": step("band", lambda: to_band(grams, WIDTH)),
            "chase bulges": step("two", lambda: chase(kept["band"], WIDTH)),
            "bisection": step("values", lambda: bisect(*kept["two"])),
        }
    except Exception:  # the route it is part of says why
        return {}


def measure(bench: Bench, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Put every section into ``results``, and ``save`` after each: what comes later may fail or be killed."""
    shapes, layers = (TINY, 2) if bench.tiny else MODELS["LLaMA-2-7B"]
    results["left_out"] = bench.left_out
    results["bounds"] = bounds(bench)
    save()
    weights = make_weights(shapes, layers, bench.device)
    first = bench.timed(ours(bench, weights))
    rounds = 1 if first > 60 else bench.rounds
    results["ours"] = median([bench.timed(ours(bench, weights)) for _ in range(rounds)]) | {"first": first}
    results["matrices"] = len(weights)
    save()
    block = len(shapes)
    sample = weights[: block * min(4, layers)]
    scale = len(weights) / len(sample)
    loop = bench.times(lambda: plain_loop(sample), 2)
    results["plain_loop"] = median([seconds * scale for seconds in loop]) | {"sample": len(sample)}
    save()
    if bench.may_start("AlphaLoRA's procedure"):
        bench.timed(lambda: alphalora(weights[:1]))  # not counted: handles, kernels, memory
        one = [bench.timed(lambda: alphalora(weights[:block])) for _ in range(2)]
        results["alphalora"] = median([seconds * len(weights) / block for seconds in one]) | {"sample": block}
        save()
    bounds_ = results["bounds"]
    flop = sum(2 * gram_flop(w.shape) for w in weights), sum(reduction_flop(w.shape) for w in weights)
    traffic = sum(4 * min(w.shape) ** 3 / 3 for w in weights)  # one triangle of what is left, once a column
    results["floors"] = {
        "gemm_seconds": (flop[0] / 2 + flop[1]) / bounds_["gemm_flop_per_s"],
        "one_stage_traffic_seconds": traffic / bounds_["memory_bytes_per_s"],
    }
    if bench.may_start("time by stage"):
        results["stages"] = stages(bench, weights[: 2 * block])
    save()
    sample.clear()
    weights.clear()  # the others need the memory
    if bench.may_start("routes"):
        results["routes"] = try_routes(bench, 16 if bench.tiny else 4096, 2 if bench.tiny else 16)
        save()
    results["others"] = {}
    for name in [] if bench.tiny else list(MODELS)[1:]:
        if bench.may_start(name):
            results["others"][name] = one_block(bench, name)
            save()


def one_block(bench: Bench, name: str) -> dict[str, Any]:
    """One block of a model, scaled up to all of them."""
    shapes, layers = MODELS[name]
    weights = make_weights(shapes, 1, bench.device)
    bench.timed(ours(bench, weights[:2]))
    seconds = bench.timed(ours(bench, weights))
    return {"sample": len(weights), "matrices": len(weights) * layers, "seconds": seconds * layers}


def environment(bench: Bench) -> dict[str, Any]:
    card = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else platform.machine()
    return {
        "device": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=360.0, help="no section starts after so many")
    parser.add_argument("--routes", action="store_true", help="the eigenvalue routes alone")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256], help="of the matrices for --routes")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    available = options.device == "cpu" or torch.cuda.is_available()
    results: dict[str, Any] = {"measured": available} | ({"tiny": True} if options.tiny else {})
    if available:
        torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
        bench = Bench(options.device, options.tiny, options.rounds, options.seconds)
        results["environment"] = environment(bench)
        if options.routes:
            results["sizes"] = [try_routes(bench, side, 4) for side in options.sides]
            write(options.output / f"routes-on-{options.device}", results, routes_page(results))
            return
        measure(bench, results, lambda: save_report(options.output, results))
    elif is_measured(options.output):
        print(f"no CUDA device: nothing was measured, and the measured report in {options.output} is kept")
        return
    save_report(options.output, results)
    print(page(results))


def is_measured(folder: Path) -> bool:
    """Whether ``folder`` holds the results of a run on a card (or of a trial)."""
    path = folder / "results.json"
    return path.exists() and bool(json.loads(path.read_text())["measured"])


def save_report(folder: Path, results: dict[str, Any]) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "README.md").write_text(page(results))


def write(stem: Path, results: dict[str, Any], text: str) -> None:
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
