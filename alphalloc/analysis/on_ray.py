"""What a worker of another machine does: find the weights there, measure, and say on what numerics.

A task holds names and numbers, never values: the file, the tensor's place in it and how it is turned into a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from alphalloc.analysis.cache import numerics
from alphalloc.analysis.measure import How, Measured, measure
from alphalloc.analysis.where import torch_release
from alphalloc.backends.batched import run_batched
from alphalloc.checkpoint import WeightMatrix
from alphalloc.errors import AnalysisError

# A file of the hub's cache, wherever that lies: .../models--org--name/snapshots/<commit>/model.safetensors
_IN_HUB_CACHE = re.compile(r".*[/\\]models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\](.+)", re.DOTALL)


def refuse_memory(matrices: Sequence[WeightMatrix]) -> None:
    """Raise AnalysisError when a matrix lies in this process's memory: tasks name weights, they carry none."""
    inside = next((matrix for matrix in matrices if "memory" in matrix.source.split(" - ")), None)
    if inside is not None:
        raise AnalysisError(
            f"{inside.name}: lies in memory, and the ray backend sends no weights; save the model to files that every "
            "node can read, or use backend='local'"
        )


def measure_there(how: How, keep: bool, task: tuple[WeightMatrix, bool]) -> Measured:
    """Return what ``measure`` does, on a worker; with its spectrum if it is to be kept."""
    matrix, slabs = task
    return _answer(measure(how, None, (with_local_files(matrix), slabs)), matrix, keep)


def measure_batch_there(
    how: How, precision: Literal["full", "fast"], keep: bool, batch: Sequence[WeightMatrix], device: str = "cuda"
) -> list[Measured]:
    """Return the same for a batch, computed together on the GPU that Ray gave this worker.

    Its numerics are torch's release alone: this machine's CPU has no part in them.
    """
    found: list[Measured | None] = [None] * len(batch)
    here = [with_local_files(matrix) for matrix in batch]
    for position, result in run_batched(
        here, estimator=how.estimator, hill_fraction=how.fraction, device=device, precision=precision
    ):
        alpha = how.alpha_of_batch(batch[position], result, precision)
        spectrum = result.spectrum if keep else None
        found[position] = Measured(alpha, spectrum, device=device, numerics=(torch_release(),), notes=result.notes)
    return [one for one in found if one is not None]


def with_local_files(matrix: WeightMatrix) -> WeightMatrix:
    """Return ``matrix`` reading from this machine's own cache of the hub, at the same commit, where the file it names
    does not exist here but lay in such a cache; downloaded where it is missing. Other matrices stay as they are.

    Raises the hub's CheckpointErrors.
    """
    return replace(matrix, load=_relocated(matrix.load))


def _relocated(value: Any) -> Any:
    """The same loader with other paths: loaders are values made of values, paths are their strings."""
    if isinstance(value, str):
        return _local_copy(value)
    if isinstance(value, tuple):
        return tuple(_relocated(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _relocated(getattr(value, field.name)) for field in fields(value)})
    return value


@cache
def _local_copy(text: str) -> str:
    match = _IN_HUB_CACHE.fullmatch(text)
    if match is None or Path(text).exists():
        return text
    from alphalloc.checkpoint.hub import fetch

    snapshot = fetch(match[1].replace("--", "/"), match[2])
    return str(snapshot.folder / match[3])


def _answer(found: Measured, matrix: WeightMatrix, keep: bool) -> Measured:
    return replace(found, spectrum=found.spectrum if keep else None, numerics=numerics(matrix.shape))
