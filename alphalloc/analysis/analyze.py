"""analyze(): from a model to its alphas."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from alphalloc.allocation.schedule import AnalysisRef, CreatedBy, ModelRef
from alphalloc.alphas import LayerAlpha, ModelAlphas, SkippedMatrix, fill_median, layer_alphas
from alphalloc.analysis.cache import SpectraCache
from alphalloc.analysis.dispatch import Job, measure_all
from alphalloc.analysis.measure import How, fit_function
from alphalloc.analysis.notes import nothing_message, require_clean, warnings_of
from alphalloc.analysis.plan import Plan, make_plan
from alphalloc.analysis.progress import Progress
from alphalloc.analysis.trust import Trust
from alphalloc.analysis.where import Backend, Precision, Where, choose
from alphalloc.checkpoint import Checkpoint, open_checkpoint
from alphalloc.errors import AnalysisError, NothingToAnalyzeError
from alphalloc.spectra import FarmsSettings


def analyze(
    model: Any,
    *,
    estimator: str = "xmin_peak_robust",
    revision: str | None = None,
    backend: Backend = "auto",
    device: str = "auto",
    precision: Precision = "full",
    ray_address: str | None = None,
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
    that plan before work on the local backend, ``progress`` after every matrix on all.

    ``backend``: "local" (threads of this process), "batched" (matrices of one size together on a CUDA device; on the
    CPU the same code), "ray" (tasks on a cluster, ``docs/scale-out.md``), or "auto": batched where the device is CUDA,
    else local. ``device``: "auto" (CUDA where torch sees a card, else the CPU; on Ray always the CPU), "cpu", "cuda"
    (every card; on Ray a card a task), "cuda:N", or "mps" (no float64 there: the CPU, with a warning). FARMS, adapters
    and what does not fit into memory whole are computed on the CPU. ``precision="fast"``: float32 eigenvalues on the
    device, for the estimators that allow it; nothing is cached then and the document says so. ``ray_address``: a head
    node's host:port, else RAY_ADDRESS, else a private Ray for the time of the analysis. On Ray ``memory`` is what one
    task on a CPU may take, ``workers`` bounds the tasks at once, and models in memory are refused.

    The local backend and Ray on CPUs give the same bytes for the same library releases and CPU type, whatever the
    number of workers; batched results agree to 1e-9, and their spectra are cached apart.
    ``sampling="farms"``: alphas of pooled sub-matrices (``spectra.farms_esd``, with settings ``farms``): another
    measure, kept apart in the cache. How far each alpha can be trusted: ``stability`` gives it a band, the bulk edge of
    noise and the spikes beyond; ``gof`` a bootstrap p-value and likelihood ratios; ``randomize`` soft rank and distance
    from noise (see ``MatrixAlpha``). All of it is seeded. ``histograms`` keeps each spectrum for reports.

    Layer mean: unweighted over the layer's matrices (AlphaLoRA, arXiv 2410.10054). All arithmetic is float64.

    Raises a CheckpointError when the weights cannot be read, UnknownEstimatorError, DeviceError, NothingToAnalyzeError,
    MemoryBudgetError, StrictError, BackendError (no cluster, or a task kept dying), MissingExtraError, AnalysisError
    for choices that contradict each other, or SpectrumCheckError when the eigensolver contradicts itself.
    """
    fit = fit_function(estimator, hill_fraction)
    _check_settings(fill, workers)
    windows = _farms_settings(sampling, farms)
    where = choose(backend, device, precision, ray_address, windows)
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
        raise NothingToAnalyzeError(nothing_message(checkpoint))
    plan = make_plan(checkpoint, memory=memory, workers=workers, farms=windows)
    if planned is not None and where.backend == "local":
        planned(plan)
    store = _open_cache(cache, checkpoint, windows, where)
    how = How(fit, estimator, hill_fraction, windows, trust)
    matrices, notes = measure_all(Job(checkpoint.matrices, plan, how, where, store, workers), progress)
    layers = layer_alphas(matrices)
    if strict:
        require_clean(matrices, checkpoint.skipped)
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
    settings |= trust.settings() | where.settings()
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
        warnings=(*notes, *(store.warnings if store else ()), *warnings_of(checkpoint, matrices, layers)),
    )


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
    cache: bool | str | os.PathLike[str] | SpectraCache,
    checkpoint: Checkpoint,
    farms: FarmsSettings | None,
    where: Where,
) -> SpectraCache | None:
    if cache is False or where.precision != "full":  # approximations belong in no cache
        return None
    store = cache if isinstance(cache, SpectraCache) else SpectraCache(None if cache is True else cache)
    store.variant = where.variant if farms is None else repr(farms)  # never the key of a whole spectrum
    store.digest_files(checkpoint.matrices)
    return store


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
