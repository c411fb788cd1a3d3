"""The plan of an analysis, made from headers alone: what is computed when, by how many workers, in how much memory.

Costs are counted, not guessed: nmin²·nmax multiply-adds for the Gram matrix and 4/3·nmin³ flop for its reduction. Time
follows from them by the speeds of this machine's core, measured in about a tenth of a second (:func:`measure_speed`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from alphalloc.analysis.memory import memory_budget
from alphalloc.analysis.slabs import can_read_by_slabs
from alphalloc.backends.local import available_cores
from alphalloc.checkpoint.buffers import NUMPY_DTYPES, FileSlice
from alphalloc.checkpoint.matrices import Checkpoint, WeightMatrix
from alphalloc.errors import MemoryBudgetError
from alphalloc.spectra.blas import add_product
from alphalloc.spectra.eigenvalues import NUMPY_MAX_SIDE, eigenvalues, has_torch
from alphalloc.spectra.farms import FarmsSettings, farms_bytes, farms_cost
from alphalloc.spectra.gram import SLAB_BYTES

# A slab in float64, and as much again for its cast and for the small arrays of a fit.
SLABS_HELD = 2
READ_BYTES_PER_SECOND = 1e9  # stated, not measured: a local disk; a network file system can be ten times slower
SECONDS_A_MATRIX = 3e-3  # opening, fit and bookkeeping, whatever the size
# A core reduces large matrices faster through torch's MKL than the measured small one: 1.6x (AMD) to 2.6x (Intel).
LARGE_EIGEN_FACTOR = 2.0


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second of one core: in the Gram matrix and in the reduction to eigenvalues."""

    gram: float
    eigen: float


@dataclass(frozen=True)
class Batch:
    """Matrices of one smaller side: ``positions`` in ``Checkpoint.matrices``, the costly ones first.

    ``by_slabs``: each is read slab by slab, because it does not fit whole. ``matrix_bytes``: the most that loading one
    takes; ``gram_bytes``: Gram matrix, the solver's copy and slabs. ``gram_flop`` and ``eigen_flop`` are of all.
    """

    side: int
    positions: tuple[int, ...]
    by_slabs: bool
    matrix_bytes: int
    gram_bytes: int
    gram_flop: float
    eigen_flop: float
    read_bytes: int

    @property
    def task_bytes(self) -> int:
        """The most one of its matrices takes while it is computed."""
        return self.matrix_bytes + self.gram_bytes


@dataclass(frozen=True)
class Stage:
    """Batches computed by one set of workers; each worker needs at most ``worker_bytes``."""

    workers: int
    worker_bytes: int
    batches: tuple[Batch, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of all its matrices in the order in which they start."""
        return tuple(position for batch in self.batches for position in batch.positions)


@dataclass(frozen=True)
class Plan:
    """Stages one after the other. ``peak_bytes`` (over the process's own size) is at most ``budget_bytes``."""

    stages: tuple[Stage, ...]
    budget_bytes: int

    @property
    def batches(self) -> tuple[Batch, ...]:
        """All batches in the order in which they are computed."""
        return tuple(batch for stage in self.stages for batch in stage.batches)

    @property
    def workers(self) -> int:
        """The most workers at once."""
        return max((stage.workers for stage in self.stages), default=0)

    @property
    def peak_bytes(self) -> int:
        """The most memory that all workers take together."""
        return max((stage.workers * stage.worker_bytes for stage in self.stages), default=0)

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of all matrices in ``Checkpoint.matrices`` in the order in which they start."""
        return tuple(position for stage in self.stages for position in stage.positions)

    def seconds(self, speed: Speed) -> float:
        """Return the estimated time of computing everything anew; within a factor of two where it was compared."""
        return sum(_stage_seconds(stage, speed) for stage in self.stages)


def make_plan(
    checkpoint: Checkpoint,
    *,
    memory: int | str | None = None,
    workers: int | None = None,
    farms: FarmsSettings | None = None,
) -> Plan:
    """Return the plan for all matrices of ``checkpoint``, or of their windows with ``farms``.

    ``memory``: the budget, in bytes or as "8GiB"; measured free memory when None. ``workers``: at most so many
    (default: one a core); fewer where the budget does not hold more matrices at once.

    A matrix that does not fit whole is read by slabs. Raises MemoryBudgetError, naming matrix and bytes, for one that
    does not fit even so, and AnalysisError for a budget that is no size.
    """
    budget, most = memory_budget(memory), workers or available_cores()
    _refuse_too_large(checkpoint.matrices, budget, farms)
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for position, matrix in enumerate(checkpoint.matrices):
        slabs = task_bytes(matrix, farms=farms) > budget
        groups[_side(matrix, farms), slabs].append(position)
    batches = [_batch(checkpoint.matrices, key, positions, farms) for key, positions in groups.items()]
    batches.sort(key=lambda batch: (-cost(checkpoint.matrices[batch.positions[0]], farms), batch.by_slabs))
    return Plan(tuple(_stages(batches, budget, most)), budget)


def measure_speed() -> Speed:
    """Return this core's speeds, from one Gram matrix of 768 x 2048 and one reduction of 512 x 512 (second of two)."""
    weight = np.random.default_rng(0).standard_normal((768, 2048))
    total = np.zeros((768, 768), order="F")
    small = np.asfortranarray(weight[:512] @ weight[:512].T)
    with threadpool_limits(1):
        gram = [_elapsed(lambda: add_product(total, weight)) for _ in range(2)][-1]
        eigen = [_elapsed(lambda: eigenvalues(small)) for _ in range(2)][-1]
    return Speed(gram=768 * 768 * 2048 / gram, eigen=4 / 3 * 512**3 / eigen)


def cost(matrix: WeightMatrix, farms: FarmsSettings | None = None) -> float:
    """Return the work of one matrix in flop of the reduction, which run at about a third of the Gram matrix's speed."""
    gram, eigen = _flop(matrix, farms)
    return gram / 3 + eigen


def task_bytes(matrix: WeightMatrix, *, by_slabs: bool = False, farms: FarmsSettings | None = None) -> int:
    """Return the most memory that computing ``matrix`` takes: the tensor (or a slab of it) + 2·8·nmin² + slabs."""
    return matrix_bytes(matrix, by_slabs) + _gram_bytes(matrix, farms)


def matrix_bytes(matrix: WeightMatrix, by_slabs: bool = False) -> int:
    """Return the most memory that loading ``matrix`` takes: the tensor, or a slab of it, and what it is unpacked to."""
    if by_slabs:
        return min(SLAB_BYTES, matrix.nbytes)
    if matrix.source == "memory":
        return 0  # it is there already
    unpacked = 4 * matrix.shape[0] * matrix.shape[1] if matrix.quantized else 0  # float32 beside the packed bytes
    return max(matrix.nbytes, _innermost_bytes(matrix.load)) + unpacked


def _side(matrix: WeightMatrix, farms: FarmsSettings | None) -> int:
    if farms is None:
        return min(matrix.shape)
    windows = farms_cost(matrix.shape, farms)
    return min(windows.rows, windows.cols)


def _flop(matrix: WeightMatrix, farms: FarmsSettings | None) -> tuple[float, float]:
    if farms is not None:  # a product of stacked windows is gemm: twice the multiply-adds of syrk
        windows = farms_cost(matrix.shape, farms)
        side, length = sorted((windows.rows, windows.cols))
        return windows.windows * 2.0 * side**2 * length, windows.windows * 4 / 3 * float(side) ** 3
    side, length = sorted(matrix.shape)
    return float(side) ** 2 * length, 4 / 3 * float(side) ** 3


def _gram_bytes(matrix: WeightMatrix, farms: FarmsSettings | None) -> int:
    if farms is not None:
        return farms_bytes(matrix.shape, farms)
    side, length = sorted(matrix.shape)
    return 2 * 8 * side**2 + SLABS_HELD * min(SLAB_BYTES, 8 * side * length)


def _innermost_bytes(load: object) -> int:
    """Bytes of the stored tensor that a part of it is loaded through; 0 where the loader does not tell."""
    while (inner := getattr(load, "load", None)) is not None:
        load = inner
    if not isinstance(load, FileSlice):
        return 0
    return int(np.prod(load.shape, dtype=np.int64)) * NUMPY_DTYPES[load.dtype].itemsize


def _refuse_too_large(matrices: Sequence[WeightMatrix], budget: int, farms: FarmsSettings | None) -> None:
    """Raise MemoryBudgetError, naming the one that needs most, for matrices that do not fit even by slabs."""
    least = [_least_bytes(matrix, farms) for matrix in matrices]
    most = max(least, default=0)
    if most <= budget:
        return
    matrix, (rows, cols) = matrices[least.index(most)], matrices[least.index(most)].shape
    raise MemoryBudgetError(
        f"{matrix.name}: {rows} x {cols} of {matrix.dtype} needs {most} bytes of memory, the budget is {budget} "
        f"({sum(need > budget for need in least)} of {len(least)} matrices need more); "
        f"allow at least {-(-most // 2**20)}MiB, or leave them out (exclude)"
    )


def _least_bytes(matrix: WeightMatrix, farms: FarmsSettings | None) -> int:
    slabs = farms is None and can_read_by_slabs(matrix)  # windows overlap: FARMS needs the matrix whole
    whole = task_bytes(matrix, farms=farms)
    return min(whole, task_bytes(matrix, by_slabs=True)) if slabs else whole


def _batch(
    matrices: Sequence[WeightMatrix], key: tuple[int, bool], positions: Iterable[int], farms: FarmsSettings | None
) -> Batch:
    side, slabs = key
    order = sorted(positions, key=lambda position: (-cost(matrices[position], farms), position))
    members = [matrices[position] for position in order]
    return Batch(
        side=side,
        positions=tuple(order),
        by_slabs=slabs,
        matrix_bytes=max(matrix_bytes(matrix, slabs) for matrix in members),
        gram_bytes=max(_gram_bytes(matrix, farms) for matrix in members),
        gram_flop=sum(_flop(matrix, farms)[0] for matrix in members),
        eigen_flop=sum(_flop(matrix, farms)[1] for matrix in members),
        read_bytes=sum(matrix.nbytes for matrix in members),
    )


def _stages(batches: Iterable[Batch], budget: int, most: int) -> list[Stage]:
    """Batches with the same number of workers share a stage, so that no core idles between them.

    A worker keeps its read buffer, so in a stage it may hold the largest tensor of one batch beside the largest Gram
    matrix of another; where that would not fit, a new stage (new workers, empty buffers) begins.
    """
    stages: list[Stage] = []
    for batch in batches:
        workers = max(1, min(most, budget // batch.task_bytes))
        if stages and stages[-1].workers == workers:
            together = (*stages[-1].batches, batch)
            need = max(b.matrix_bytes for b in together) + max(b.gram_bytes for b in together)
            if workers * need <= budget:
                stages[-1] = Stage(workers, need, together)
                continue
        stages.append(Stage(workers, batch.task_bytes, (batch,)))
    return stages


def _stage_seconds(stage: Stage, speed: Speed) -> float:
    each = [(len(batch.positions), _batch_seconds(batch, speed)) for batch in stage.batches]
    longest = max(seconds / count for count, seconds in each)
    return max(longest, sum(seconds for _, seconds in each) / stage.workers)


def _batch_seconds(batch: Batch, speed: Speed) -> float:
    large = batch.side > NUMPY_MAX_SIDE and has_torch()
    eigen = speed.eigen * (LARGE_EIGEN_FACTOR if large else 1.0)
    compute = batch.gram_flop / speed.gram + batch.eigen_flop / eigen
    return compute + batch.read_bytes / READ_BYTES_PER_SECOND + SECONDS_A_MATRIX * len(batch.positions)


def _elapsed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)
