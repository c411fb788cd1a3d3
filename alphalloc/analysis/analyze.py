"""analyze(): from a model to its alphas."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from alphalloc.allocation.schedule import AnalysisRef, CreatedBy, ModelRef
from alphalloc.alphas import LayerAlpha, MatrixAlpha, ModelAlphas, SkippedMatrix, fill_median, layer_alphas
from alphalloc.analysis.cache import SpectraCache
from alphalloc.analysis.plan import Plan, make_plan
from alphalloc.analysis.progress import Meter, Progress
from alphalloc.analysis.slabs import by_slabs
from alphalloc.analysis.trust import Trust
from alphalloc.backends import run_local
from alphalloc.checkpoint import Checkpoint, SkippedTensor, WeightMatrix, open_checkpoint
from alphalloc.errors import (
    AnalysisError,
    DeviceError,
    NonFiniteWeightError,
    NothingToAnalyzeError,
    SpectrumCheckError,
    StrictError,
    UnknownEstimatorError,
)
from alphalloc.fits import FITS, PowerLawFit
from alphalloc.fits.power_law import degenerate
from alphalloc.spectra import ESD, FarmsSettings, esd, farms_esd, spectral_metrics
from alphalloc.spectra.eigenvalues import NUMPY_MAX_SIDE, has_torch

Fit = Callable[..., PowerLawFit]


def analyze(
    model: Any,
    *,
    estimator: str = "xmin_peak_robust",
    revision: str | None = None,
    device: str = "auto",
    cache: bool | str | os.PathLike[str] | SpectraCache = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    layer_pattern: str | None = None,
    embeddings: bool = False,
    split_fused: bool = True,
    base: Any = None,
    hill_fraction: float = 0.25,
    fill: Literal["median"] | None = None,
    strict: bool = False,
    workers: int | None = None,
    memory: int | str | None = None,
    sampling: Literal["whole", "farms"] = "whole",
    farms: FarmsSettings | None = None,
    stability: bool = False,
    gof: bool = False,
    randomize: bool = False,
    histograms: bool = False,
    planned: Callable[[Plan], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ModelAlphas:
    """Return the power-law alpha of every weight matrix in the blocks of ``model``, and their layer means.

    ``model``: a checkpoint file or folder, a hub id, an ``nn.Module`` or a state dict; weights are read one matrix at a
    time and no model is built. ``estimator``: a name of ``fits.FITS``; ``hill_fraction``: tail share of the
    estimator of that name. ``include``/``exclude``: globs on tensor name, module path or role. ``layer_pattern``
    overrides how block indices are found. ``embeddings``: analyse embeddings and heads too (they enter no layer mean).
    ``split_fused=False`` keeps q, k, v and gate, up together where they are stored as one. ``base``: a model to
    subtract, so that the alphas are of what a fine-tuning changed.
    ``cache``: keep spectra on disk (True: the user's cache folder; a path: that folder; or an open cache), each as soon
    as it is known, so that a run that was killed goes on where it stopped. ``fill="median"`` gives a layer without any
    valid alpha the median of the others. ``strict``: a skipped block matrix or one without an alpha raises.
    ``workers``: threads, default one a core. ``memory``: what matrices may take, in bytes or as "8GiB"; measured
    free memory when None (see ``plan.make_plan``, which decides what is computed at once). ``planned`` is called with
    that plan before the work, ``progress`` after every matrix.
    ``sampling="farms"``: alphas of pooled sub-matrices (``spectra.farms_esd``, with settings ``farms``): another
    measure, kept apart in the cache. How far each alpha can be trusted: ``stability`` gives it a band, the bulk edge of
    noise and the spikes beyond; ``gof`` a bootstrap p-value and likelihood ratios; ``randomize`` soft rank and distance
    from noise (see ``MatrixAlpha``). All of it is seeded. ``histograms`` keeps each spectrum for reports.

    Layer mean: unweighted over the layer's matrices (AlphaLoRA, arXiv 2410.10054). All arithmetic is float64.

    Raises a CheckpointError when the weights cannot be read, UnknownEstimatorError, DeviceError, NothingToAnalyzeError,
    MemoryBudgetError, StrictError, or SpectrumCheckError when the eigensolver contradicts itself.
    """
    fit = _fit_function(estimator, hill_fraction)
    notes = _device_notes(device)
    _check_settings(fill, workers)
    windows = _farms_settings(sampling, farms)
    trust = Trust(stability, gof, randomize, histograms).checked(windows)
    checkpoint = open_checkpoint(
        model,
        revision=revision,
        layer_pattern=layer_pattern,
        include=include,
        exclude=exclude,
        embeddings=embeddings,
        split_fused=split_fused,
        base=base,
    )
    if not checkpoint.matrices:
        raise NothingToAnalyzeError(_nothing_message(checkpoint))
    plan = make_plan(checkpoint, memory=memory, workers=workers, farms=windows)
    if planned is not None:
        planned(plan)
    store = _open_cache(cache, checkpoint, windows)
    how = _How(fit, estimator, hill_fraction, windows, trust)
    matrices = _matrix_alphas(checkpoint.matrices, plan, how, store, progress)
    layers = layer_alphas(matrices)
    if strict:
        _require_clean(matrices, checkpoint.skipped)
    if fill == "median":
        layers = fill_median(layers)
    settings: dict[str, Any] = {
        "include": list(include),
        "exclude": list(exclude),
        "layer_pattern": layer_pattern,
        "embeddings": embeddings,
        "fill": fill,
    }
    settings |= {"split_fused": False} if not split_fused else {}
    settings |= (
        {"base": Path(base).name if isinstance(base, str | os.PathLike) else "memory"} if base is not None else {}
    )
    if estimator == "hill_fraction":
        settings["hill_fraction"] = hill_fraction
    if windows is not None:
        settings |= {"sampling": "farms", "farms": windows.as_dict()}
    settings |= trust.settings()
    return ModelAlphas(
        created_by=CreatedBy.current(),
        model=_model_ref(checkpoint, layers),
        analysis=AnalysisRef(estimator=estimator, settings=settings),
        layers=layers,
        matrices=matrices,
        skipped=tuple(
            SkippedMatrix(name=s.name, shape=s.shape, reason=s.reason, by_design=s.by_design)
            for s in checkpoint.skipped
        ),
        warnings=(*notes, *(store.warnings if store else ()), *_warnings(checkpoint, matrices, layers)),
    )


def _fit_function(estimator: str, fraction: float) -> Fit:
    if estimator not in FITS:
        near = difflib.get_close_matches(estimator, FITS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownEstimatorError(f"no estimator named {estimator!r}{hint} (there are: {', '.join(FITS)})")
    if estimator != "hill_fraction":
        return FITS[estimator]
    if not 0.0 < fraction <= 1.0:
        raise AnalysisError(f"expected a fraction in (0, 1], found {fraction!r}")
    return partial(FITS[estimator], fraction=fraction)


def _device_notes(device: str) -> tuple[str, ...]:
    if device in ("auto", "cpu"):
        return ()
    if device.partition(":")[0] == "mps":
        return ("MPS has no float64, which spectra need; the CPU was used",)
    raise DeviceError(f"expected device 'auto' or 'cpu', found {device!r}; this release computes spectra on the CPU")


def _check_settings(fill: str | None, workers: int | None) -> None:
    if fill not in (None, "median"):
        raise AnalysisError(f"expected fill None or 'median', found {fill!r}")
    if workers is not None and (isinstance(workers, bool) or workers < 1):
        raise AnalysisError(f"expected at least one worker, found {workers!r}")


def _farms_settings(sampling: str, farms: FarmsSettings | None) -> FarmsSettings | None:
    if sampling not in ("whole", "farms"):
        raise AnalysisError(f"expected sampling 'whole' or 'farms', found {sampling!r}")
    if sampling == "farms":
        return farms or FarmsSettings()
    if farms is not None:
        raise AnalysisError("settings of FARMS were given without sampling='farms'; give both or neither")
    return None


def _open_cache(
    cache: bool | str | os.PathLike[str] | SpectraCache, checkpoint: Checkpoint, farms: FarmsSettings | None
) -> SpectraCache | None:
    if cache is False:
        return None
    store = cache if isinstance(cache, SpectraCache) else SpectraCache(None if cache is True else cache)
    store.variant = "" if farms is None else repr(farms)  # never the key of a whole spectrum
    store.digest_files(checkpoint.matrices)
    return store


@dataclass(frozen=True)
class _How:
    """What to do with each matrix: the estimator and its tail share, FARMS or the whole, and what else to measure."""

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

    def alpha(self, matrix: WeightMatrix, spectrum: ESD) -> MatrixAlpha:
        """Return what ``spectrum`` says about ``matrix``."""
        fit = self.fit(spectrum.eigs)
        extra = self.trust.fields(spectrum, fit, self.fit, self.fraction, self.farms)
        return _matrix_alpha(matrix, spectrum, fit, whole=self.farms is None, extra=extra)


@dataclass(frozen=True)
class _Measured:
    """What a worker answers: the alpha, and the spectrum it came from (None where there is none) if it is new."""

    alpha: MatrixAlpha
    spectrum: ESD | None
    cached: bool


def _matrix_alphas(
    matrices: tuple[WeightMatrix, ...],
    plan: Plan,
    how: _How,
    store: SpectraCache | None,
    progress: Callable[[Progress], None] | None,
) -> tuple[MatrixAlpha, ...]:
    """Measure every matrix as planned; answer in the given order.

    Spectra are put into the cache here and not by the workers: after an interrupt the one BLAS thread a task is not
    warranted any more, and nothing that still runs then may be kept.
    """
    results: list[MatrixAlpha | None] = [None] * len(matrices)
    meter = Meter(matrices)
    for stage in plan.stages:
        slabs = {position for batch in stage.batches if batch.by_slabs for position in batch.positions}
        large = any(batch.side > NUMPY_MAX_SIDE for batch in stage.batches)
        tasks = [(matrices[position], position in slabs) for position in stage.positions]
        measure = partial(_measure, how, store)
        for done, found in run_local(measure, tasks, workers=stage.workers, pin_torch=large and has_torch()):
            matrix = tasks[done][0]
            results[stage.positions[done]] = found.alpha
            if store is not None and found.spectrum is not None and not found.cached:
                store.put(matrix, found.spectrum)
            if progress is not None:
                progress(meter.step(matrix, cached=found.cached))
    if store is not None and store.num_put:
        store.prune()
    return tuple(result for result in results if result is not None)


def _measure(how: _How, store: SpectraCache | None, task: tuple[WeightMatrix, bool]) -> _Measured:
    matrix, slabs = task
    try:
        kept = store.get(matrix) if store is not None else None
        spectrum = kept if kept is not None else how.spectrum(matrix, slabs)
    except NonFiniteWeightError as exc:
        none = _matrix_alpha(matrix, None, degenerate(how.estimator, "non_finite", str(exc)))
        return _Measured(none, None, cached=False)
    except SpectrumCheckError as exc:
        raise SpectrumCheckError(f"{matrix.name}: {exc}") from exc
    return _Measured(how.alpha(matrix, spectrum), spectrum, cached=kept is not None)


def _matrix_alpha(
    matrix: WeightMatrix,
    spectrum: ESD | None,
    fit: PowerLawFit,
    *,
    whole: bool = True,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> MatrixAlpha:
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


def _model_ref(checkpoint: Checkpoint, layers: tuple[LayerAlpha, ...]) -> ModelRef:
    local = checkpoint.commit is None and checkpoint.format != "memory"
    return ModelRef(
        # A local path says nothing on another machine; its last name and the fingerprint do.
        id=Path(checkpoint.model_id).resolve().name if local else checkpoint.model_id,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        fingerprint=checkpoint.fingerprint,
        format=checkpoint.format,
        quantized=checkpoint.quantized,
        num_layers=len(layers),
    )


def _require_clean(matrices: tuple[MatrixAlpha, ...], skipped: tuple[SkippedTensor, ...]) -> None:
    lost = [tensor for tensor in skipped if not tensor.by_design]
    if lost:
        listed = "; ".join(f"{tensor.name}: {tensor.reason}" for tensor in lost[:5])
        raise StrictError(f"{len(lost)} tensors cannot be analysed, and strict was asked for: {listed}")
    bad = [matrix for matrix in matrices if matrix.alpha is None]
    if bad:
        listed = "; ".join(f"{matrix.name}: {matrix.status} ({matrix.reason})" for matrix in bad[:5])
        raise StrictError(f"{len(bad)} of {len(matrices)} matrices have no alpha, and strict was asked for: {listed}")


def _warnings(
    checkpoint: Checkpoint, matrices: tuple[MatrixAlpha, ...], layers: tuple[LayerAlpha, ...]
) -> tuple[str, ...]:
    found = list(checkpoint.notes)
    if checkpoint.quantized:
        found.append("alphas are of quantised weights, dequantised")
    bad = sum(matrix.alpha is None for matrix in matrices)
    if bad:
        found.append(f"{bad} of {len(matrices)} matrices have no alpha and do not enter their layer's mean")
    unexpected = [tensor for tensor in checkpoint.skipped if not tensor.by_design]
    if unexpected:
        first = f"{unexpected[0].name} ({unexpected[0].reason})"
        found.append(f"{len(unexpected)} tensors that one would expect were left out, the first {first}")
    found += _gaps(layers)
    filled = [str(layer.layer) for layer in layers if layer.filled]
    if filled:
        found.append(f"layers filled with the median alpha: {', '.join(filled)}")
    return tuple(found)


def _gaps(layers: tuple[LayerAlpha, ...]) -> list[str]:
    """Say which block indices below the highest of their stack have no matrix at all."""
    indices: dict[str, set[int]] = {}
    for layer in layers:
        indices.setdefault(layer.stack, set()).add(layer.layer)
    notes = []
    for stack, present in indices.items():
        missing = max(present) + 1 - len(present)
        if missing and missing <= 10_000:
            first = next(index for index in range(max(present)) if index not in present)
            where = f" of {stack}" if stack else ""
            notes.append(f"{missing} layers{where} have no matrix to analyse, the first is layer {first}")
        elif missing:
            notes.append(f"layer indices up to {max(present)} with {len(present)} layers: check --layer-pattern")
    return notes


def _nothing_message(checkpoint: Checkpoint) -> str:
    reasons = "; ".join(f"{tensor.name}: {tensor.reason}" for tensor in checkpoint.skipped[:5])
    return f"no weight matrix of {checkpoint.model_id} is left to analyse; check include and exclude ({reasons})"
