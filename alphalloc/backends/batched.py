"""The batched backend: matrices of one smaller side together on a device, the stages overlapped.

Read, stage (page-locked for a card), copy, float64 Gram, eigenvalues of the whole stack, checks, fits: see ``lane`` for
one device. Here the matrices are cut into batches, spread over the devices, and what a lost card leaves is taken over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal

from alphalloc.errors import AnalysisError, BackendError, DeviceError, MissingExtraError
from alphalloc.fits import FITS, PowerLawFit
from alphalloc.spectra import ESD

if TYPE_CHECKING:
    import torch

    from alphalloc.backends.lane import Batch, How

SHARE_OF_FREE = 0.8  # chosen here: the solver's own workspace and other processes want some
CPU_BYTES = 512 * 2**20  # chosen here: on the CPU a batch gains nothing by its size, and results come sooner
STACK_BYTES = 4 * 2**30  # Gram matrices of one batch: 32 of 4096 rows, beyond which a card gains nothing more
MAX_BATCH = 512
READER_THREADS = 4  # a card; chosen here: one thread copies about as fast as one disk reads
# Alphas within 1e-4 (relative) of the full ones on all 246 block matrices of two models. `xmin_peak_reference` is left
# out: it reproduces published numbers, and its window compares raw eigenvalues with a logarithm.
FAST_ESTIMATORS = ("xmin_peak_robust", "xmin_peak", "ks", "xmin_median", "hill_fraction")


@dataclass(frozen=True)
class BatchedResult:
    """What one matrix gave: spectrum (None where there is none), fit, and what went another way than planned."""

    spectrum: ESD | None
    fit: PowerLawFit
    notes: tuple[str, ...] = ()


def run_batched(
    matrices: Sequence[Any],
    *,
    estimator: str,
    hill_fraction: float = 0.25,
    device: str = "cuda",
    precision: Literal["full", "fast"] = "full",
    free_bytes: int | None = None,
) -> Iterator[tuple[int, BatchedResult]]:
    """Yield (position in ``matrices``, result) as they finish.

    ``matrices``: WeightMatrix values, or anything with ``name``, ``shape`` and ``load()``. ``estimator``: a name of
    ``FITS``, ``hill_fraction`` the tail share of the one of that name. ``device``: "cuda" (every card of the machine),
    "cuda:N" or "cpu". ``free_bytes``: what may be used on each device; by default 80 % of what a card has free, and
    512 MiB on the CPU. ``precision="fast"``: float32 eigenvalues, the smallest corrected (``spectra.fast``), for
    estimators that allow it; such spectra are approximations and belong in no cache.

    Both identities are checked on every matrix. A matrix with NaN or infinity has no spectrum and a fit of status
    "non_finite". Where memory runs out, batches are halved; what does not fit alone, and what a lost card (or one that
    refuses to begin) leaves, is computed on the CPU; a batch on which the batched eigensolver contradicts itself is
    solved again matrix by matrix. Such results carry a note. One BLAS thread is used a task.

    Raises MissingExtraError without torch, DeviceError when the device is not there, AnalysisError for an estimator
    that ``precision="fast"`` does not serve, BackendError when weights were lost with a card, SpectrumCheckError
    (naming the matrix) when an eigensolver contradicts itself, and what ``load()`` raises.
    """
    _check(estimator, hill_fraction, precision)
    try:
        import torch

        from alphalloc.backends.lane import How
        from alphalloc.spectra.batched import SOLVER_THREADS
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "torch":
            raise
        raise MissingExtraError("the batched backend needs torch: pip install 'alphalloc[torch]'") from exc
    devices = _devices(device)
    cores = _cores()
    on_cpu = devices[0].type == "cpu"
    solvers, readers = (cores, 1) if on_cpu else (SOLVER_THREADS, min(READER_THREADS, cores))
    how = How(estimator, hill_fraction, precision, solver_threads=solvers, reader_threads=readers)
    free = [_free(torch, one) if free_bytes is None else free_bytes for one in devices]
    return _results(matrices, how, devices, free)


def run_lanes(
    matrices: Sequence[Any],
    how: How,
    devices: Sequence[torch.device],
    free: Sequence[int],
    *,
    allocate: Callable[[int], None] = lambda size: None,
) -> Iterator[tuple[int, BatchedResult]]:
    """Yield (position, result) from one lane a device, each with ``free`` bytes; ``allocate`` as in ``Lane``."""
    import torch

    from alphalloc.backends.lane import DeviceLostError, Lane

    messages: SimpleQueue[tuple[int, BatchedResult] | _Ended] = SimpleQueue()
    stop = Event()
    waiting = set(range(len(matrices)))

    def start(device: torch.device, batches: list[Batch], limit: Callable[[int], None], *notes: str) -> None:
        """Begin a lane in a thread of its own; ``notes``, which only a lane that takes over has, go to its results."""

        def out(position: int, result: BatchedResult) -> None:
            messages.put((position, BatchedResult(result.spectrum, result.fit, (*notes, *result.notes))))

        def work() -> None:
            error: BaseException | None = None
            try:
                Lane(device, matrices, how, out, allocate=limit, stop=stop).run(batches)
            except BaseException as exc:
                error = exc
            messages.put(_Ended(device, batches, error, takes_over=bool(notes)))

        Thread(target=work, name=f"alphalloc-{device}", daemon=True).start()

    running = 0
    try:
        for device, batches in zip(devices, assign(matrices, free), strict=True):
            if batches:
                start(device, batches, allocate)
                running += 1
        while running:
            message = messages.get()
            if not isinstance(message, _Ended):
                if message[0] in waiting:  # a batch that was done again may hand some results over twice
                    waiting.discard(message[0])
                    yield message
                continue
            running -= 1
            if isinstance(message.error, DeviceLostError):
                if message.takes_over:
                    raise BackendError(
                        f"a card was lost, and the CPU cannot go on: {message.error}; weights that lie on the card "
                        "went with it: read them from a file again"
                    ) from message.error
                note = f"{message.device} was lost ({message.error}); the CPU went on"
                left = [_without(batch, waiting) for batch in message.batches]
                start(torch.device("cpu"), _small([b for b in left if b.positions]), lambda size: None, note)
                running += 1
            elif message.error is not None:
                raise message.error
    finally:
        stop.set()


def assign(matrices: Sequence[Any], free: Sequence[int]) -> list[list[Batch]]:
    """Return the batches of every device, costly ones first: one smaller side a batch, sized from ``free`` bytes.

    A side's matrices make at least two batches a device, so that one's products run beside the other's eigenvalues. A
    device of 0 bytes, which did not answer, makes no batch smaller: its lane will say what is wrong.
    """
    from alphalloc.backends.lane import GRAM_COPIES, IN_FLIGHT, Batch
    from alphalloc.spectra.batched import SLAB_BYTES

    sides: dict[int, list[int]] = defaultdict(list)
    for position, matrix in enumerate(matrices):
        sides[min(matrix.shape)].append(position)
    held = max((8 * matrix.shape[0] * matrix.shape[1] for matrix in matrices), default=0)
    room = min(filter(None, free), default=0) - IN_FLIGHT * min(held, 2**31) - 2 * SLAB_BYTES
    batches = []
    for side in sorted(sides, reverse=True):
        order = sorted(sides[side], key=lambda position: (-max(matrices[position].shape), position))
        fitting = min(room // (GRAM_COPIES * 8 * side**2), STACK_BYTES // (8 * side**2), MAX_BATCH)
        share = -(-len(order) // (2 * len(free)))
        batches += Batch(side, tuple(order)).split(max(1, min(fitting, share)))
    lanes: list[list[Batch]] = [[] for _ in free]
    loads = [0.0] * len(free)
    for batch in batches:
        lane = loads.index(min(loads))
        lanes[lane].append(batch)
        loads[lane] += sum(_flop(matrices[position].shape) for position in batch.positions)
    return lanes


@dataclass(frozen=True)
class _Ended:
    device: torch.device
    batches: list[Batch]
    error: BaseException | None
    takes_over: bool


def _results(
    matrices: Sequence[Any], how: How, devices: Sequence[torch.device], free: Sequence[int]
) -> Iterator[tuple[int, BatchedResult]]:
    with _one_blas_thread():
        yield from run_lanes(matrices, how, devices, free)


def _check(estimator: str, fraction: float, precision: str) -> None:
    if estimator not in FITS:
        raise AnalysisError(f"no estimator named {estimator!r} (there are: {', '.join(FITS)})")
    if estimator == "hill_fraction" and not 0.0 < fraction <= 1.0:
        raise AnalysisError(f"expected a fraction in (0, 1], found {fraction!r}")
    if precision not in ("full", "fast"):
        raise AnalysisError(f"expected precision 'full' or 'fast', found {precision!r}")
    if precision == "fast" and estimator not in FAST_ESTIMATORS:
        raise AnalysisError(
            f"precision 'fast' does not serve {estimator}, whose alphas are to be reproduced to the digit; "
            f"use precision 'full', or one of: {', '.join(FAST_ESTIMATORS)}"
        )


def _devices(name: str) -> list[torch.device]:
    """The devices of that name. Raises DeviceError for a name that is none and for a card that is not there."""
    import torch

    kind, _, index = name.partition(":")
    if name == "cpu":
        return [torch.device("cpu")]
    if kind != "cuda" or not (index.isdigit() or name == "cuda"):
        raise DeviceError(f"expected device 'cpu', 'cuda' or 'cuda:N', found {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count or (index and int(index) >= count):
        raise DeviceError(f"expected a CUDA device for {name!r}, torch sees {count}; use device 'cpu'")
    return [torch.device("cuda", int(index))] if index else [torch.device("cuda", i) for i in range(count)]


def _free(torch: Any, device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_BYTES
    try:
        free, _ = torch.cuda.mem_get_info(device)  # makes the context, which a busy or full card refuses
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next use
    except RuntimeError:
        return 0
    return int(SHARE_OF_FREE * (free + held))


def _cores() -> int:
    try:
        from alphalloc.backends.local import available_cores
    except ModuleNotFoundError:  # a plain checkout without threadpoolctl
        return 4
    return available_cores()


def _one_blas_thread() -> AbstractContextManager[Any]:
    """For what numpy computes on the CPU by itself; torch's threads are pinned where they run."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


def _flop(shape: tuple[int, int]) -> float:
    side, length = min(shape), max(shape)
    return float(side) ** 2 * length / 3 + 4 / 3 * float(side) ** 3  # a product runs at about three times the speed


def _without(batch: Batch, waiting: set[int]) -> Batch:
    from alphalloc.backends.lane import Batch

    return Batch(batch.side, tuple(position for position in batch.positions if position in waiting))


def _small(batches: list[Batch]) -> list[Batch]:
    """Batches for the CPU: as many Gram matrices at once as its default memory holds."""
    from alphalloc.backends.lane import GRAM_COPIES

    sizes = (max(1, CPU_BYTES // (GRAM_COPIES * 8 * batch.side**2)) for batch in batches)
    return [part for batch, size in zip(batches, sizes, strict=True) for part in batch.split(size)]
