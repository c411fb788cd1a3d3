"""One device at work: batches of matrices go through it, the next one's Gram matrices beside this one's eigenvalues.

The same code runs on a card and on the CPU: torch's CPU streams and events have the methods and do nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, Literal

import torch
from torch import Tensor

from alphalloc.backends.batched import BatchedResult
from alphalloc.backends.reader import Reader, Staged
from alphalloc.errors import NonFiniteWeightError, SpectrumCheckError
from alphalloc.fits import FITS
from alphalloc.fits.batched import fit_batch
from alphalloc.fits.power_law import degenerate
from alphalloc.spectra.batched import (
    BrokenSpectrumError,
    Solver,
    add_gram,
    batch_spectra,
    has_batched_solver,
    is_out_of_memory,
    symmetric_eigenvalues,
)
from alphalloc.spectra.esd import esd, spectrum_of
from alphalloc.spectra.fast import FAST_TOLERANCE, fast_eigenvalues

IN_FLIGHT = 2  # matrices whose weights are on the device at once: one being copied, one in its product
GRAM_COPIES = 4  # of n x n float64 a matrix: next batch's Gram, this batch's, the solver's copy and its workspace


@dataclass(frozen=True)
class How:
    """What to do with every matrix."""

    estimator: str
    fraction: float = 0.25
    precision: Literal["full", "fast"] = "full"
    solver: Solver = "auto"
    solver_threads: int = 4
    reader_threads: int = 1


@dataclass(frozen=True)
class Batch:
    """Positions of matrices with the same smaller ``side``."""

    side: int
    positions: tuple[int, ...]

    def split(self, size: int) -> list[Batch]:
        """Return batches of at most ``size`` of its matrices, in order."""
        starts = range(0, len(self.positions), size)
        return [Batch(self.side, self.positions[start : start + size]) for start in starts]


class DeviceLostError(RuntimeError):
    """The device stopped answering; whatever it had not handed over yet must be computed elsewhere."""


@dataclass(frozen=True)
class _Grams:
    batch: Batch
    grams: Tensor
    squared_norms: Tensor
    ready: Any


class Lane:
    """Computes batches on one device and hands every result to ``out``.

    ``allocate`` is told before a batch takes memory, in bytes, and may raise torch.OutOfMemoryError: a limit of its own
    for a device that has none. ``stop`` ends the work between two matrices.
    """

    def __init__(
        self,
        device: torch.device,
        matrices: Sequence[Any],
        how: How,
        out: Callable[[int, BatchedResult], None],
        *,
        allocate: Callable[[int], None] = lambda size: None,
        stop: Event | None = None,
    ) -> None:
        self.device, self.matrices, self.how, self.out = device, matrices, how, out
        self.allocate, self.stop = allocate, stop or Event()
        self.module = torch.get_device_module(device)
        self._limit: dict[int, int] = {}  # matrices a batch, by side, since memory ran out
        self._held: deque[tuple[Any, Tensor, Staged]] = deque()
        self._streams: tuple[Any, ...] = ()
        self._apart: list[Future[None]] = []  # matrices that did not fit on the device alone

    def run(self, batches: Sequence[Batch]) -> None:
        """Compute all ``batches`` in order.

        Raises DeviceLostError, also when the device refuses to begin (busy, or without any memory), or what a matrix
        itself raises.
        """
        torch.set_num_threads(1)  # counts for the calling thread: one BLAS thread, whatever the machine
        order = [position for batch in batches for position in batch.positions]
        pin, threads = self.device.type == "cuda", self.how.reader_threads
        reader = Reader(self.matrices, order, pin=pin, threads=threads, ahead=threads + 1)
        solver = ThreadPoolExecutor(1, "alphalloc-spectra")
        self._cpu = ThreadPoolExecutor(threads, "alphalloc-apart", initializer=partial(torch.set_num_threads, 1))
        try:
            self.module.set_device(self.device)
            self._streams = tuple(self.module.Stream() for _ in range(3))
            self._work_off(deque(batches), reader, solver)
            for future in self._apart:
                if not self.stop.is_set():
                    future.result()
        except RuntimeError as exc:
            if not self._streams or _is_device_lost(exc):
                raise DeviceLostError(f"{type(exc).__name__}: {str(exc).splitlines()[0]}") from exc
            raise
        finally:
            self._held.clear()
            reader.close()
            for pool in (solver, self._cpu):
                pool.shutdown(wait=True, cancel_futures=True)

    def _work_off(self, work: deque[Batch], reader: Reader, solver: ThreadPoolExecutor) -> None:
        running: Future[Batch | None] | None = None
        while (work or running is not None) and not self.stop.is_set():
            grams = self._next_grams(work, reader) if work else None
            if running is not None and (failed := running.result()) is not None:
                self._retry(failed, work)
            running = solver.submit(self._finish, grams) if grams is not None else None

    def _next_grams(self, work: deque[Batch], reader: Reader) -> _Grams | None:
        """Return the next batch's Gram matrices; None where memory ran out, with its halves at the head of ``work``."""
        whole = work.popleft()
        batch, *rest = whole.split(self._limit.get(whole.side, len(whole.positions)))
        work.extendleft(reversed(rest))
        try:
            return self._grams(batch, reader)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
        self._retry(batch, work)
        return None

    def _retry(self, batch: Batch, work: deque[Batch]) -> None:
        """After memory ran out: half the size from now on, a single matrix on the CPU, beside the device's work."""
        self._release(0)
        if self.device.type == "cuda":
            self.module.empty_cache()
        size = len(batch.positions) // 2
        if size:
            self._limit[batch.side] = size
            work.extendleft(reversed(batch.split(-(-len(batch.positions) // 2))))
        else:
            note = f"{self.matrices[batch.positions[0]].name} did not fit on {self.device}; the CPU computed it"
            self._apart.append(self._cpu.submit(self._by_itself, batch.positions[0], (note,)))

    def _grams(self, batch: Batch, reader: Reader) -> _Grams:
        copying, multiplying, _ = self._streams
        size, side = len(batch.positions), batch.side
        self.allocate(GRAM_COPIES * 8 * side**2 * size)
        with self.module.stream(multiplying):
            grams = torch.zeros(size, side, side, dtype=torch.float64, device=self.device)
            norms = torch.full((size,), torch.nan, dtype=torch.float64, device=self.device)
        for slot, position in enumerate(batch.positions):
            if self.stop.is_set():
                break
            staged = reader.take(position)
            if staged.weight is None:
                continue  # its norm stays NaN: computed by itself
            with self.module.stream(copying):
                weight = staged.weight.to(self.device, non_blocking=True)
                copied = self._event(copying)
            with self.module.stream(multiplying):
                multiplying.wait_event(copied)
                norms[slot] = add_gram(grams[slot], weight)
                self._held.append((self._event(multiplying), weight, staged))
            self._release(IN_FLIGHT - 1, reader)
        return _Grams(batch, grams, norms, self._event(multiplying))

    def _event(self, stream: Any) -> Any:
        event = self.module.Event()
        event.record(stream)
        return event

    def _release(self, keep: int, reader: Reader | None = None) -> None:
        """Wait for the oldest products and let go of their weights, until ``keep`` are left."""
        while len(self._held) > keep:
            done, _, staged = self._held.popleft()
            done.synchronize()
            if reader is not None:
                reader.give_back(staged)

    def _finish(self, work: _Grams) -> Batch | None:
        """Eigenvalues, checks and fits of one batch, handed over; the batch itself when memory ran out."""
        torch.set_num_threads(1)
        self.module.set_device(self.device)
        stream = self._streams[2]
        solver = self.how.solver
        if solver == "auto":
            solver = "batched" if has_batched_solver(self.device) else "threads"
        try:
            with self.module.stream(stream):
                stream.wait_event(work.ready)
                try:
                    self._spectra_and_fits(work, solver)
                except BrokenSpectrumError as exc:
                    if solver != "batched":
                        raise
                    note = f"{self._blame(work, exc)}; the eigenvalues of its batch were computed matrix by matrix"
                    self._spectra_and_fits(work, "threads", (note,))
        except BrokenSpectrumError as exc:
            raise SpectrumCheckError(self._blame(work, exc)) from exc
        except (RuntimeError, MemoryError) as exc:
            if is_out_of_memory(exc):
                return work.batch
            raise
        return None

    def _blame(self, work: _Grams, broken: BrokenSpectrumError) -> str:
        return f"{self.matrices[work.batch.positions[broken.position]].name}: {broken}"

    def _spectra_and_fits(self, work: _Grams, solver: Solver, notes: tuple[str, ...] = ()) -> None:
        if self.stop.is_set():
            return  # the batch may be incomplete
        solve: Callable[[Tensor], Tensor]
        solve = partial(symmetric_eigenvalues, solver=solver, threads=self.how.solver_threads)
        if self.how.precision == "fast":
            found = batch_spectra(
                work.grams, work.squared_norms, partial(fast_eigenvalues, solve=solve), tolerance=FAST_TOLERANCE
            )
        else:
            found = batch_spectra(work.grams, work.squared_norms, solve)
        fits = fit_batch(self.how.estimator, found.values, found.num_zero, fraction=self.how.fraction)
        values, norms, finite = (tensor.cpu().numpy() for tensor in (found.values, found.squared_norms, found.finite))
        for slot, position in enumerate(work.batch.positions):
            if self.stop.is_set():
                return
            if not finite[slot]:
                self._by_itself(position, notes)
                continue
            rows, cols = self.matrices[position].shape
            spectrum = spectrum_of(values[slot], rows, cols, float(norms[slot]))
            self.out(position, BatchedResult(spectrum, fits[slot], notes))

    def _by_itself(self, position: int, notes: tuple[str, ...] = ()) -> None:
        """One matrix the other way, on the CPU: it says what is wrong with one that is not finite."""
        if self.stop.is_set():
            return
        matrix, name = self.matrices[position], self.how.estimator
        try:
            spectrum = esd(matrix.load())
        except NonFiniteWeightError as exc:
            self.out(position, BatchedResult(None, degenerate(name, "non_finite", str(exc)), notes))
            return
        except SpectrumCheckError as exc:
            raise SpectrumCheckError(f"{matrix.name}: {exc}") from exc
        fit = FITS[name]
        found = fit(spectrum.eigs, self.how.fraction) if name == "hill_fraction" else fit(spectrum.eigs)
        self.out(position, BatchedResult(spectrum, found, notes))


def _is_device_lost(error: BaseException) -> bool:
    """Whether ``error`` is the card's fault and not the matrix's: after it nothing more can be computed there."""
    if is_out_of_memory(error):
        return False
    signs = ("CUDA error", "CUDA driver error", "_STATUS_EXECUTION_FAILED", "_STATUS_INTERNAL_ERROR")
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in signs)
