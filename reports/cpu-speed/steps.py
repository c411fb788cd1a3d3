"""The two steps by themselves: matrix -> eigenvalues against float32 singular values, eigenvalues -> fit."""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alphalloc.checkpoint.buffers import FileSlice
from alphalloc.fits import FITS
from alphalloc.spectra import eigenvalues, gram

Sides = dict[str, Callable[[], object]]


def interleaved(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this thread for every side, round by round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            start = time.thread_time()
            work()
            found[name].append(round(time.thread_time() - start, 6))
    return found


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median of the rounds' own ratios."""
    return round(statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True)), 2)


def eigen_step(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    weight = (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(np.float32)
    wide, tall = torch.from_numpy(weight), torch.from_numpy(np.ascontiguousarray(weight.T))
    sides: Sides = {
        "Gram + eigenvalues, float64": lambda: eigenvalues(gram(weight).matrix),
        "torch svdvals float32, wide": lambda: torch.linalg.svdvals(wide),
        "torch svdvals float32, tall": lambda: torch.linalg.svdvals(tall),
    }
    ours, first, second = sides
    times = interleaved(sides, rounds)
    better = min(first, second, key=lambda name: statistics.median(times[name]))
    return {"shape": list(shape), "cpu_seconds": times, "as_given": ratio(times, first, ours),
            "better_orientation": ratio(times, better, ours)}  # fmt: skip


def solvers(side: int, rounds: int) -> dict[str, Any]:
    """Three ways to all eigenvalues; the two-stage one lies in numpy's OpenBLAS under a private name."""
    import torch

    torch.set_num_threads(1)
    weight = np.random.default_rng(0).standard_normal((side, 2 * side))
    matrix = weight @ weight.T
    sides: Sides = {
        "numpy": lambda: np.linalg.eigvalsh(matrix),
        "torch": lambda: torch.linalg.eigvalsh(torch.from_numpy(matrix)),
    }
    two_stage = _two_stage()
    if two_stage is not None:
        error = np.abs(two_stage(matrix) - np.linalg.eigvalsh(matrix)).max()
        assert error < side * 2.2e-16 * np.linalg.norm(matrix, 2)
        sides["two-stage"] = lambda: two_stage(matrix)
    times = interleaved(sides, rounds)
    return {"side": side, "cpu_seconds": times}


def fit_step(count: int, rounds: int) -> dict[str, Any]:
    import powerlaw

    rng = np.random.default_rng(0)
    eigs = np.sort(np.linalg.svd(rng.standard_normal((count, 2 * count)), compute_uv=False) ** 2) if count < 2000 else (
        np.sort(rng.pareto(2.0, count) + rng.random(count))
    )  # fmt: skip
    found: dict[str, Any] = {}

    def theirs() -> None:
        fit = powerlaw.Fit(eigs, parameter_ranges={"alpha": [1, None]}, verbose=False)
        found["theirs"] = (fit.alpha, fit.xmin, fit.D)

    def ours() -> None:
        fit = FITS["ks"](eigs)
        found["ours"] = (fit.alpha, fit.xmin, fit.ks_distance)

    times = interleaved({"powerlaw 2.0.0": theirs, "ks": ours}, rounds)
    apart = max(abs(a / b - 1) for a, b in zip(found["theirs"], found["ours"], strict=True))
    return {"n": count, "cpu_seconds": times, "ratio": ratio(times, "powerlaw 2.0.0", "ks"), "apart": apart}


def prefetch(rounds: int) -> dict[str, Any]:
    """Wall seconds for nine 512 x 32768 float16 tensors from a file that is not in memory, without and with asking
    the kernel for the next one while the spectrum of this one is computed."""
    side, length, count = 512, 32768, 9
    payload = (np.random.default_rng(0).standard_normal((side, length)) * 0.02).astype(np.float16).tobytes()
    found: dict[str, list[list[float]]] = {"plain": [], "next one asked for": []}
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(count):
            file.write(payload)
        file.flush()
        os.fsync(file.fileno())
        starts = range(0, count * len(payload), len(payload))
        loads = [FileSlice(file.name, start, (side, length), "F16", count * len(payload)) for start in starts]
        for _ in range(rounds):
            for name in found:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                started, reading = time.perf_counter(), 0.0
                for i, load in enumerate(loads):
                    begin = time.perf_counter()
                    weight = load()
                    reading += time.perf_counter() - begin
                    if name != "plain" and i + 1 < count:
                        os.posix_fadvise(file.fileno(), (i + 1) * len(payload), len(payload), os.POSIX_FADV_WILLNEED)
                    eigenvalues(gram(weight).matrix)
                found[name].append([round(time.perf_counter() - started, 3), round(reading, 3)])
    return {"wall_and_reading_seconds": found}


def _two_stage() -> Callable[[np.ndarray], np.ndarray] | None:
    libraries = sorted((Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*"))
    if not libraries or not hasattr(ctypes.CDLL(str(libraries[0])), "scipy_dsyevd_2stage_64_"):
        return None
    function = ctypes.CDLL(str(libraries[0])).scipy_dsyevd_2stage_64_

    def call(matrix: np.ndarray) -> np.ndarray:
        side = len(matrix)
        copy, values = matrix.copy(), np.empty(side)
        n, info = ctypes.c_int64(side), ctypes.c_int64(0)
        work, integers = np.empty(1), np.empty(1, np.int64)
        for query in (True, False):
            lengths = [ctypes.c_int64(-1 if query else len(array)) for array in (work, integers)]
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (copy, values, work, integers)]
            sizes = [ctypes.byref(length) for length in lengths]
            arguments = (pointers[0], ctypes.byref(n), pointers[1], pointers[2], sizes[0], pointers[3], sizes[1])
            function(b"N", b"U", ctypes.byref(n), *arguments, ctypes.byref(info), 1, 1)
            assert info.value == 0
            if query:
                work, integers = np.empty(int(work[0])), np.empty(max(1, int(integers[0])), np.int64)
        return values

    return call
