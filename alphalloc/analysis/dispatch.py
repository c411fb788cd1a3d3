"""Every matrix measured by the backend that was chosen; the answers put in order, the spectra into the cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from threadpoolctl import threadpool_limits

from alphalloc.alphas import MatrixAlpha
from alphalloc.analysis.cache import SpectraCache, numerics
from alphalloc.analysis.measure import How, Measured, measure
from alphalloc.analysis.on_ray import measure_batch_there, measure_there, refuse_memory
from alphalloc.analysis.plan import Plan, matrix_bytes, task_bytes
from alphalloc.analysis.progress import Meter, Progress
from alphalloc.analysis.where import Where, torch_release
from alphalloc.backends import run_local
from alphalloc.backends.batched import CPU_BYTES, READER_THREADS, BatchedResult, run_batched
from alphalloc.backends.local import available_cores
from alphalloc.backends.ray import cluster_gpus, run_ray
from alphalloc.checkpoint import WeightMatrix
from alphalloc.checkpoint.values import LowRankLoad
from alphalloc.spectra.eigenvalues import NUMPY_MAX_SIDE, has_torch

# GPU tasks on Ray a card: each is a new process, whose start takes seconds, and the second lets the cards even out.
GPU_TASKS_A_CARD = 2  # chosen here
# Matrices of one such task at most: what a lost worker costs, and what one answer carries (16 MiB of 4096 rows).
GPU_BATCH = 512  # chosen here
OTHER_NUMERICS = (
    "some workers have other library releases or BLAS kernels than this machine: last digits may differ, and their "
    "spectra are not kept"
)
Answers = Generator[tuple[int, Measured], None, None]


@dataclass(frozen=True)
class Job:
    """What is to be measured (``matrices``, as planned), how, where, and what is known already (``store``)."""

    matrices: tuple[WeightMatrix, ...]
    plan: Plan
    how: How
    where: Where
    store: SpectraCache | None
    workers: int | None

    @property
    def by_slabs(self) -> frozenset[int]:
        """Positions of the matrices that are read slab by slab."""
        return frozenset(p for batch in self.plan.batches if batch.by_slabs for p in batch.positions)


def measure_all(
    job: Job, progress: Callable[[Progress], None] | None
) -> tuple[tuple[MatrixAlpha, ...], tuple[str, ...]]:
    """Return the alphas in the given order, and notes on what went another way than asked for.

    Spectra are put into the cache here and not by the workers: after an interrupt the one BLAS thread a task is not
    warranted any more, and nothing that still runs then may be kept. Nor is a spectrum kept that was made by other
    library releases or BLAS kernels than this machine's, as the cache's key names those (of a card's, torch's release).
    """
    results: list[MatrixAlpha | None] = [None] * len(job.matrices)
    meter, notes, store = Meter(job.matrices), dict.fromkeys(job.where.notes), job.store
    with closing(_answers(job)) as answers:
        for position, found in answers:
            matrix = job.matrices[position]
            results[position] = found.alpha
            notes |= dict.fromkeys(found.notes)
            alike = found.numerics in ((), (torch_release(),), numerics(matrix.shape))
            if not alike:
                notes[OTHER_NUMERICS] = None
            if store is not None and found.spectrum is not None and alike:
                store.put(matrix, found.spectrum)
            if progress is not None:
                progress(meter.step(position, found.alpha, cached=found.cached, device=found.device))
    if store is not None and store.num_put:
        store.prune()
    return tuple(result for result in results if result is not None), tuple(notes)


def _answers(job: Job) -> Answers:
    if job.where.backend == "local":
        yield from _locally(job, range(len(job.matrices)))
        return
    missing = set(range(len(job.matrices)))
    for position, found in _from_cache(job):
        missing.remove(position)
        yield position, found
    rest = [position for position in job.plan.positions if position in missing]
    if rest:
        yield from (_batched if job.where.backend == "batched" else _on_ray)(job, rest)


def _locally(job: Job, wanted: Sequence[int]) -> Answers:
    """By threads of this process, stage after stage of the plan."""
    chosen, slabs = frozenset(wanted), job.by_slabs
    for stage in job.plan.stages:
        positions = [position for position in stage.positions if position in chosen]
        tasks = [(job.matrices[position], position in slabs) for position in positions]
        large = any(batch.side > NUMPY_MAX_SIDE for batch in stage.batches)
        compute = partial(measure, job.how, job.store)
        for done, found in run_local(compute, tasks, workers=stage.workers, pin_torch=large and has_torch()):
            yield positions[done], found


def _from_cache(job: Job) -> Answers:
    """What the cache holds undamaged; fits and everything else are then made here."""
    if job.store is None:
        return
    held = [position for position in job.plan.positions if job.store.holds(job.matrices[position])]
    compute = partial(_kept, job.how, job.store)
    for done, found in run_local(compute, [job.matrices[position] for position in held], workers=job.workers):
        if found is not None:
            yield held[done], found


def _kept(how: How, store: SpectraCache, matrix: WeightMatrix) -> Measured | None:
    spectrum = store.get(matrix)
    return None if spectrum is None else Measured(how.alpha(matrix, spectrum), None, cached=True)


def _batched(job: Job, positions: Sequence[int]) -> Answers:
    """By batches on a device. Adapters, whose factors give the spectrum at once, and what is too large for the memory
    (on the CPU: with what a batch of one holds beside the matrix) go the local way. Bands, p-values and the like are
    made by threads while the device goes on."""
    on_cpu, budget = job.where.device == "cpu", job.plan.budget_bytes
    large = job.by_slabs | {p for p in positions if on_cpu and _alone_bytes(job.matrices[p]) > budget}
    apart = [p for p in positions if p in large or isinstance(job.matrices[p].load, LowRankLoad)]
    yield from _locally(job, apart)
    together = [p for p in positions if p not in set(apart)]
    if not together:
        return
    where, how = job.where, job.how
    pool = ThreadPoolExecutor(job.workers or available_cores(), "alphalloc")
    pending: dict[Future[Measured], int] = {}
    try:
        with threadpool_limits(1):
            results = run_batched(
                [job.matrices[position] for position in together],
                estimator=how.estimator,
                hill_fraction=how.fraction,
                device=where.device,
                precision=where.precision,
                free_bytes=min(CPU_BYTES, budget - _staged_bytes(job, together, readers=1)) if on_cpu else None,
            )
            for done, result in results:
                position = together[done]
                pending[pool.submit(_finish, how, where, job.matrices[position], result)] = position
                for future in [future for future in pending if future.done()]:
                    yield pending.pop(future), future.result()
            for future in as_completed(list(pending)):
                yield pending[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _finish(how: How, where: Where, matrix: WeightMatrix, result: BatchedResult) -> Measured:
    alpha = how.alpha_of_batch(matrix, result, where.precision)
    return Measured(alpha, result.spectrum, device=where.device_type, notes=result.notes)


def _on_ray(job: Job, positions: Sequence[int]) -> Answers:
    """By workers of a Ray cluster, with GPUs or without; what is read by slabs always without."""
    refuse_memory(job.matrices)
    slabs = job.by_slabs if job.where.device != "cpu" else frozenset(positions)
    yield from _on_ray_gpus(job, [position for position in positions if position not in slabs])
    yield from _on_ray_cpus(job, [position for position in positions if position in slabs])


def _on_ray_cpus(job: Job, positions: Sequence[int]) -> Answers:
    """Matrix by matrix."""
    slabs = job.by_slabs
    tasks = [(job.matrices[position], position in slabs) for position in positions]
    found = run_ray(
        partial(measure_there, job.how, job.store is not None),
        tasks,
        address=job.where.ray_address,
        workers=job.workers,
        memory=[task_bytes(matrix, by_slabs=by_slabs, farms=job.how.farms) for matrix, by_slabs in tasks],
        pin_torch=has_torch() and any(min(matrix.shape) > NUMPY_MAX_SIDE for matrix, _ in tasks),
    )
    with closing(found):
        for done, measured in found:
            yield positions[done], measured


def _on_ray_gpus(job: Job, positions: Sequence[int]) -> Answers:
    """By workers with a GPU each: batches of one smaller side."""
    if not positions:
        return
    with cluster_gpus(job.where.ray_address, workers=job.workers) as cards:
        groups = _gpu_groups(job, positions, min(cards, job.workers or cards))
        found = run_ray(
            partial(measure_batch_there, job.how, job.where.precision, job.store is not None),
            [tuple(job.matrices[position] for position in group) for group in groups],
            address=job.where.ray_address,
            num_gpus=1,
            workers=job.workers,
            memory=[_gpu_task_bytes(job, group) for group in groups],
            pin_torch=True,
        )
        with closing(found):
            for done, measured in found:
                yield from zip(groups[done], measured, strict=True)


def _gpu_groups(job: Job, positions: Sequence[int], cards: int) -> list[tuple[int, ...]]:
    """Positions of one smaller side together, in the given order: GPU_TASKS_A_CARD groups or a few more for each of
    ``cards``, of at most GPU_BATCH."""
    sides: dict[int, list[int]] = defaultdict(list)
    for position in positions:
        sides[min(job.matrices[position].shape)].append(position)
    size = min(GPU_BATCH, -(-len(positions) // (GPU_TASKS_A_CARD * max(1, cards))))
    return [
        tuple(members[start : start + size]) for members in sides.values() for start in range(0, len(members), size)
    ]


def _gpu_task_bytes(job: Job, group: Sequence[int]) -> int:
    """The host memory of a GPU task: what it stages, and one matrix computed on the CPU, as the card's may run out."""
    return _staged_bytes(job, group, readers=READER_THREADS) + max(task_bytes(job.matrices[p]) for p in group)


def _staged_bytes(job: Job, positions: Sequence[int], *, readers: int) -> int:
    """The most that matrices take which were read ahead of a device: ``readers`` + 1 staged and two on their way to it,
    and the file's copy behind each one being read."""
    return (2 * readers + 3) * max(_read_bytes(job.matrices[position]) for position in positions)


def _alone_bytes(matrix: WeightMatrix) -> int:
    """The most that a batch of this matrix alone takes on the CPU: staged, and twice its Gram matrices and slabs (one
    batch's products run beside the other's eigenvalues)."""
    return 5 * _read_bytes(matrix) + 2 * (task_bytes(matrix) - matrix_bytes(matrix))


def _read_bytes(matrix: WeightMatrix) -> int:
    """What a reader takes for ``matrix``, which copies one that lies in memory too."""
    return max(matrix.nbytes, matrix_bytes(matrix))
