"""One matrix to its alpha: what is measured, and the row of the document it becomes. Runs here or on any worker."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from alphalloc.alphas import MatrixAlpha
from alphalloc.analysis.cache import SpectraCache
from alphalloc.analysis.slabs import by_slabs
from alphalloc.analysis.trust import Trust
from alphalloc.backends.batched import BatchedResult
from alphalloc.checkpoint import WeightMatrix
from alphalloc.errors import AnalysisError, NonFiniteWeightError, SpectrumCheckError, UnknownEstimatorError
from alphalloc.fits import FITS, PowerLawFit
from alphalloc.fits.power_law import degenerate
from alphalloc.spectra import ESD, FarmsSettings, esd, farms_esd, spectral_metrics

Fit = Callable[..., PowerLawFit]


def fit_function(estimator: str, fraction: float) -> Fit:
    """Return the estimator of that name; ``fraction`` is the tail share of ``hill_fraction``.

    Raises UnknownEstimatorError, and AnalysisError for a share outside (0, 1].
    """
    if estimator not in FITS:
        near = difflib.get_close_matches(estimator, FITS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownEstimatorError(f"no estimator named {estimator!r}{hint} (there are: {', '.join(FITS)})")
    if estimator != "hill_fraction":
        return FITS[estimator]
    if not 0.0 < fraction <= 1.0:
        raise AnalysisError(f"expected a fraction in (0, 1], found {fraction!r}")
    return partial(FITS[estimator], fraction=fraction)


@dataclass(frozen=True)
class How:
    """What to do with each matrix: the estimator and its tail share, FARMS or the whole, and what else to measure.

    A value without arrays or closures, so that it can be sent to another process.
    """

    fit: Fit
    estimator: str
    fraction: float
    farms: FarmsSettings | None
    trust: Trust

    def spectrum(self, matrix: WeightMatrix, slabs: bool) -> ESD:
        """Return the spectrum of ``matrix``, read now."""
        if self.farms is not None:
            farms = self.farms
            return farms_esd(matrix.load(), rows=farms.rows, ratio=farms.ratio, windows=farms.windows)
        return esd(by_slabs(matrix) if slabs else matrix.load())

    def alpha(self, matrix: WeightMatrix, spectrum: ESD, fit: PowerLawFit | None = None) -> MatrixAlpha:
        """Return what ``spectrum`` says about ``matrix``; with ``fit`` instead of this estimator's own where given."""
        fit = fit or self.fit(spectrum.eigs)
        extra = self.trust.fields(spectrum, fit, self.fit, self.fraction, self.farms)
        return matrix_alpha(matrix, spectrum, fit, whole=self.farms is None, extra=extra)

    def alpha_of_batch(self, matrix: WeightMatrix, result: BatchedResult, precision: str) -> MatrixAlpha:
        """Return the same for a result of the batched backend.

        A full spectrum is fitted here once more (milliseconds): batched fits differ in the last digit, and a spectrum
        from the cache must give the same bytes as a fresh one. An approximate one keeps its own fit.
        """
        if result.spectrum is None:
            return matrix_alpha(matrix, None, result.fit)
        return self.alpha(matrix, result.spectrum, None if precision == "full" else result.fit)


@dataclass(frozen=True)
class Measured:
    """What a worker answers: the alpha, and the spectrum it came from where it is to be kept.

    ``cached``: it came from the cache. ``device``: what computed it, "cpu" or "cuda". ``numerics``: releases and BLAS
    kernels of the machine that made it, torch's release alone for one made on a card (empty where it was this process).
    ``notes``: what went another way than planned.
    """

    alpha: MatrixAlpha
    spectrum: ESD | None
    cached: bool = False
    device: str = "cpu"
    numerics: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def measure(how: How, store: SpectraCache | None, task: tuple[WeightMatrix, bool]) -> Measured:
    """Return what the matrix of ``task`` gives; its second part says whether it is read by slabs.

    Raises SpectrumCheckError naming the matrix; one with NaN or infinity has status "non_finite".
    """
    matrix, slabs = task
    try:
        kept = store.get(matrix) if store is not None else None
        spectrum = kept if kept is not None else how.spectrum(matrix, slabs)
    except NonFiniteWeightError as exc:
        return Measured(matrix_alpha(matrix, None, degenerate(how.estimator, "non_finite", str(exc))), None)
    except SpectrumCheckError as exc:
        raise SpectrumCheckError(f"{matrix.name}: {exc}") from exc
    return Measured(how.alpha(matrix, spectrum), None if kept is not None else spectrum, cached=kept is not None)


def matrix_alpha(
    matrix: WeightMatrix,
    spectrum: ESD | None,
    fit: PowerLawFit,
    *,
    whole: bool = True,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> MatrixAlpha:
    """Return the document's row of ``matrix``; metrics of the spectrum only where it is that of the ``whole``."""
    metrics = None if spectrum is None or not whole else spectral_metrics(spectrum, fit.alpha)
    return MatrixAlpha(
        name=matrix.name,
        module=matrix.module,
        layer=matrix.layer,
        stack=matrix.stack,
        role=matrix.role,
        rows=matrix.shape[0],
        cols=matrix.shape[1],
        dtype=matrix.dtype,
        quantized=matrix.quantized,
        estimator=fit.estimator,
        alpha=fit.alpha,
        xmin=fit.xmin,
        ks_distance=fit.ks_distance,
        num_tail=fit.num_tail,
        sigma=fit.sigma,
        status=fit.status,
        reason=fit.reason,
        num_eigs=0 if spectrum is None else len(spectrum.eigs),
        num_zero=0 if spectrum is None else spectrum.num_zero,
        spectral_norm=metrics and metrics.spectral_norm,
        frobenius_norm=spectrum and spectrum.frobenius_norm,
        stable_rank=metrics and metrics.stable_rank,
        log10_spectral_norm=metrics and metrics.log10_spectral_norm,
        alpha_weighted=metrics and metrics.alpha_weighted,
        log_alpha_norm=metrics and metrics.log_alpha_norm,
        entropy=metrics and metrics.entropy,
        rank=metrics.rank if metrics else 0 if spectrum is None else None,
        **extra,
    )
