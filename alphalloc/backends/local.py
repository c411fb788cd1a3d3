"""The local backend: one thread a core, one BLAS thread a task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from threadpoolctl import threadpool_limits

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_local(
    compute: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int | None = None, pin_torch: bool = False
) -> Iterator[tuple[int, Result]]:
    """Yield (position in ``tasks``, compute(task)) in the order in which they finish; tasks start in the given order.

    ``workers`` threads (default: the cores this process may use) share the tasks; LAPACK and BLAS release the
    interpreter lock. Each task gets one BLAS thread, so that results do not depend on the number of cores;
    ``pin_torch`` does the same for torch when tasks will use it.

    The first exception of a task is raised here. After it, after an interrupt (Ctrl-C) and when the caller stops
    taking results, no task is started any more; those already running end in the background, their results dropped.
    """
    executor = ThreadPoolExecutor(workers or available_cores(), "alphalloc", initializer=_pin if pin_torch else None)
    with threadpool_limits(1):
        try:
            positions = {executor.submit(compute, task): position for position, task in enumerate(tasks)}
            for future in as_completed(positions):
                yield positions[future], future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def available_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pin() -> None:
    import torch

    torch.set_num_threads(1)  # counts for the calling thread alone
