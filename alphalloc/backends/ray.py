"""The Ray backend: tasks on the workers of a cluster, retried when a worker or a node is lost."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from alphalloc.backends.ray_cluster import connected
from alphalloc.documents import package_version
from alphalloc.errors import AlphallocError, BackendError, CheckpointError, DeviceError, MemoryBudgetError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks handed to Ray at once, a CPU and at least: enough that no worker waits for the next one and that an autoscaler
# sees work to grow for; chosen here, more would only lengthen a cancel.
IN_FLIGHT_A_CPU = 2
LEAST_IN_FLIGHT = 64


def run_ray(
    compute: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    address: str | None = None,
    num_gpus: float = 0,
    max_retries: int = 3,
    workers: int | None = None,
    memory: Sequence[int] | None = None,
    pin_torch: bool = False,
) -> Generator[tuple[int, Result], None, None]:
    """Yield (position in ``tasks``, compute(task)) in the order in which they finish; tasks start in the given order.

    The same contract as ``run_local``, on a Ray cluster: see ``ray_cluster.connected`` for ``address`` and for what is
    started without one. ``compute`` and tasks are pickled, so they should name weights rather than hold them; the
    workers must be able to import them. Each task takes one CPU, ``num_gpus`` GPUs (Ray sets CUDA_VISIBLE_DEVICES) and
    ``memory[position]`` bytes of what Ray accounts for, and gets one BLAS thread (torch too with ``pin_torch``).
    ``workers``: at most so many tasks at once; None leaves it to the cluster.

    A task whose worker or node died is run again, up to ``max_retries`` times (Ray's own default, 3); an exception is
    not. The first exception of a task is raised here as it was raised there; errors of weights name the node. After it,
    after an interrupt (Ctrl-C) and when the caller stops taking results, the tasks under way are killed.

    Raises MissingExtraError without ray, BackendError when the cluster cannot be reached or a task kept dying,
    DeviceError when no node has a GPU to give, MemoryBudgetError when none has the memory.
    """
    if not tasks:
        return
    with connected(address, workers=workers) as ray:
        _require_resources(ray.nodes(), num_gpus, max(memory or (0,)))
        remote = ray.remote(max_retries=max_retries, num_cpus=1, num_gpus=num_gpus)(_run_task)
        waiting = iter(range(len(tasks)))
        pending: dict[Any, int] = {}
        try:
            while True:
                free = (workers or _in_flight(ray)) - len(pending)
                for position in islice(waiting, max(free, 0)):
                    placed = remote.options(memory=memory[position]) if memory is not None else remote
                    pending[placed.remote(package_version(), compute, tasks[position], pin_torch)] = position
                if not pending:
                    return
                for reference in ray.wait(list(pending), num_returns=1)[0]:
                    position = pending.pop(reference)
                    yield position, _result(ray, reference, f"task {position + 1} of {len(tasks)}", max_retries)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)  # kills the worker: LAPACK would not notice anything less


@contextmanager
def cluster_gpus(address: str | None = None, *, workers: int | None = None) -> Iterator[int]:
    """Yield how many GPUs the cluster has now, connected as ``run_ray`` is, which then uses the same connection."""
    with connected(address, workers=workers) as ray:
        yield int(ray.cluster_resources().get("GPU", 0))


def _run_task(release: str, compute: Callable[[Task], Result], task: Task, pin_torch: bool) -> Result:
    """What a worker does."""
    node = f"node {socket.gethostname()}"
    if release != package_version():
        raise BackendError(f"{node} runs alphalloc {package_version()}, the caller {release}; install the same on both")
    if pin_torch:
        import torch

        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return compute(task)
    except CheckpointError as exc:
        raise type(exc)(
            f"{node}: {exc}; every node must see the weights under the same path, or for a hub model have its commit "
            "in the cache or the hub in reach"
        ) from exc


def _in_flight(ray: Any) -> int:
    return max(LEAST_IN_FLIGHT, int(IN_FLIGHT_A_CPU * ray.cluster_resources().get("CPU", 0)))


def _require_resources(nodes: Sequence[dict[str, Any]], num_gpus: float, memory: int) -> None:
    """Raise unless some node can ever run a task; a cluster whose workers are still to come is not judged."""
    able = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if able and num_gpus > max(node.get("GPU", 0) for node in able):
        raise DeviceError(f"no node of the Ray cluster has {num_gpus:g} GPU to give; use device='cpu'")
    most = max((node.get("memory", 0) for node in able), default=memory)
    if memory > most:
        raise MemoryBudgetError(
            f"a task needs {memory} bytes of memory and the largest node gives Ray {most:.0f}; allow less than that "
            "(memory), so that matrices are read by slabs, or add a larger node"
        )


def _result(ray: Any, reference: Any, what: str, max_retries: int) -> Any:
    """Return the task's result; raise what it raised there, or BackendError where Ray gave it up."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as exc:
        cause = exc.cause
        if isinstance(cause, AlphallocError):
            raise cause from None  # Ray's wrapper adds nothing but the worker's stack
        text = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, ImportError) or "failed to import" in text:
            raise BackendError(
                f"a worker cannot import what the task needs ({_short(text)}); install the same alphalloc, with the "
                "same extras, on every node of the cluster"
            ) from exc
        raise cause if isinstance(cause, Exception) else BackendError(f"{what} failed: {_short(text)}") from exc
    except ray.exceptions.RayError as exc:
        raise BackendError(
            f"{what} was given up after {max_retries} further tries: {type(exc).__name__}: {_short(str(exc))}; look "
            "into the logs of that node (`ray status`), usually it ran out of memory"
        ) from exc


def _short(text: str) -> str:
    return " ".join(text.split())[:400]
