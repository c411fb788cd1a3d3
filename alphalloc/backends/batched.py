"""The batched backend: matrices of one smaller side together on a device, the stages overlapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from alphalloc.checkpoint.matrices import WeightMatrix
from alphalloc.errors import AnalysisError, DeviceError, NonFiniteWeightError, SpectrumCheckError
from alphalloc.fits import FITS, PowerLawFit
from alphalloc.fits.power_law import degenerate
from alphalloc.spectra import ESD, esd


@dataclass(frozen=True)
class BatchedResult:
    """What one matrix gave: its spectrum (None where there is none), its fit, and what went another way than planned."""

    spectrum: ESD | None
    fit: PowerLawFit
    notes: tuple[str, ...] = ()


def run_batched(
    matrices: Sequence[WeightMatrix],
    *,
    estimator: str,
    hill_fraction: float = 0.25,
    device: str = "cuda",
    precision: Literal["full", "fast"] = "full",
    free_bytes: int | None = None,
) -> Iterator[tuple[int, BatchedResult]]:
    """Yield (position in ``matrices``, result) as they finish.

    A matrix with NaN or infinity has no spectrum and a fit of status "non_finite". Raises DeviceError when the device
    is not there, AnalysisError for an estimator that ``precision="fast"`` cannot serve, SpectrumCheckError (naming the
    matrix) when an eigensolver contradicts itself.
    """
    if device != "cpu":
        raise DeviceError(f"expected device 'cpu', found {device!r}")
    if precision == "fast":
        raise AnalysisError(f"precision 'fast' cannot serve {estimator}")
    fit = partial(FITS[estimator], fraction=hill_fraction) if estimator == "hill_fraction" else FITS[estimator]
    for position, matrix in enumerate(matrices):
        try:
            spectrum = esd(matrix.load())
        except NonFiniteWeightError as exc:
            yield position, BatchedResult(None, degenerate(estimator, "non_finite", str(exc)))
            continue
        except SpectrumCheckError as exc:
            raise SpectrumCheckError(f"{matrix.name}: {exc}") from exc
        yield position, BatchedResult(spectrum, fit(spectrum.eigs))
