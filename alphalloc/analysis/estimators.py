"""One model seen by every estimator: their layer means and the schedule each would give, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.alphas import ModelAlphas
from alphalloc.analysis.analyze import analyze
from alphalloc.analysis.cache import SpectraCache
from alphalloc.checkpoint import WeightMatrix
from alphalloc.errors import AllocationError, AnalysisError
from alphalloc.fits import FITS
from alphalloc.spectra import ESD


@dataclass(frozen=True)
class EstimatorView:
    """What one estimator makes of the model; ``schedule`` is None where it gives none, and ``problem`` says why."""

    alphas: ModelAlphas
    schedule: ExpertSchedule | None
    problem: str | None = None

    @property
    def estimator(self) -> str:
        """The estimator's name."""
        return self.alphas.analysis.estimator


def compare_estimators(
    model: Any,
    allocate: Callable[[ModelAlphas], ExpertSchedule],
    *,
    estimators: Sequence[str] = tuple(FITS),
    cache: bool | str | os.PathLike[str] = True,
    **options: Any,
) -> tuple[EstimatorView, ...]:
    """Return one view an estimator, in the given order; each matrix is read and reduced to its spectrum once.

    ``allocate`` turns alphas into a schedule; ``options`` are those of ``analyze``. Errors are those of ``analyze``;
    alphas without a schedule are a view with a ``problem``, not an error.
    """
    store = _Remembered(cache)
    return tuple(_view(analyze(model, estimator=name, cache=store, **options), allocate) for name in estimators)


def _view(alphas: ModelAlphas, allocate: Callable[[ModelAlphas], ExpertSchedule]) -> EstimatorView:
    try:
        return EstimatorView(alphas, allocate(alphas))
    except (AllocationError, AnalysisError) as exc:
        return EstimatorView(alphas, None, str(exc))


class _Remembered(SpectraCache):
    """A cache that also holds what it has seen in memory, so that models without files need no second reduction."""

    def __init__(self, cache: bool | str | os.PathLike[str]) -> None:
        super().__init__(None if isinstance(cache, bool) else cache)
        self.on_disk = cache is not False
        self.seen: dict[str, ESD] = {}

    def get(self, matrix: WeightMatrix) -> ESD | None:
        if matrix.name in self.seen:
            return self.seen[matrix.name]
        found = super().get(matrix) if self.on_disk else None
        if found is not None:
            self.seen[matrix.name] = found
        return found

    def holds(self, matrix: WeightMatrix) -> bool:
        return matrix.name in self.seen or (self.on_disk and super().holds(matrix))

    def put(self, matrix: WeightMatrix, spectrum: ESD) -> None:
        self.seen[matrix.name] = spectrum
        if self.on_disk:
            super().put(matrix, spectrum)

    def digest_files(self, matrices: tuple[WeightMatrix, ...]) -> None:
        if self.on_disk:
            super().digest_files(matrices)
