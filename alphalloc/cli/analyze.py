"""``alphalloc analyze MODEL``: from a checkpoint to its alphas and a schedule."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alphalloc.cli import options, output, planning, render, trust
from alphalloc.cli.schedule_table import schedule_report
from alphalloc.errors import InvalidParameterError


class Backend(enum.StrEnum):
    """What computes the matrices."""

    auto = "auto"
    local = "local"
    batched = "batched"
    ray = "ray"


class Precision(enum.StrEnum):
    """Of eigenvalues on a device."""

    full = "full"
    fast = "fast"


class Fill(enum.StrEnum):
    """What a layer without a valid alpha gets."""

    median = "median"


Estimator = Annotated[str | None, typer.Option(metavar="E", help="How alpha is fitted.  [default: xmin_peak_robust]")]
HillFraction = Annotated[float | None, typer.Option(metavar="F", help="Tail share of hill_fraction.  [default: 0.25]")]
FillOption = Annotated[Fill | None, typer.Option(help="Give layers without a valid alpha the median of the others.")]
BackendOption = Annotated[Backend, typer.Option(help="Threads, batches on a device, or tasks on a Ray cluster.")]
RayAddress = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ray's head node.  [default: RAY_ADDRESS]")]
DeviceOption = Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda (every card) or cuda:N.")]
PrecisionOption = Annotated[Precision, typer.Option(help="fast: float32 on the device, for some estimators.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep spectra on disk.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail when a matrix is skipped or has no alpha.")]
AlphasOutput = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the alphas here.")]


def analyze(
    model: options.Model,
    estimator: Estimator = None,
    hill_fraction: HillFraction = None,
    revision: options.Revision = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    layer_pattern: options.LayerPattern = None,
    embeddings: options.Embeddings = False,
    keep_fused: options.KeepFused = False,
    base: options.Base = None,
    fill: FillOption = None,
    stability: trust.Stability = False,
    gof: trust.Gof = False,
    randomize: trust.Randomize = False,
    histograms: trust.Histograms = False,
    sampling: trust.SamplingOption = trust.Sampling.whole,
    farms_rows: trust.FarmsRows = None,
    farms_ratio: trust.FarmsRatio = None,
    farms_windows: trust.FarmsWindows = None,
    estimators: trust.Estimators = None,
    backend: BackendOption = Backend.auto,
    ray_address: RayAddress = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.full,
    workers: options.Workers = None,
    memory: options.Memory = None,
    no_cache: NoCache = False,
    experts: options.Experts = None,
    rule: options.RuleName = None,
    beta: options.Beta = None,
    rounding: options.Rounding = None,
    min_experts: options.MinExperts = None,
    max_experts: options.MaxExperts = None,
    top_k: options.TopK = None,
    paper: options.Paper = None,
    alphas_file: AlphasOutput = None,
    schedule_file: options.ScheduleOutput = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
) -> None:
    """Fit alphas to the weights of MODEL and allocate experts."""
    asked = options.AllocationOptions(experts, rule, beta, rounding, min_experts, max_experts, top_k).checked()
    asked, chosen = options.with_paper(asked, estimator, paper)
    files = {"--output": alphas_file, "--schedule": schedule_file}
    names = None if estimators is None else trust.estimator_names(estimators, chosen, files)
    fitting = _fitting(chosen, hill_fraction, compared=names or ())
    windows = {"rows": farms_rows, "ratio": farms_ratio, "windows": farms_windows}
    fitting |= trust.measuring(stability, gof, randomize, sampling, windows)
    fitting |= {"histograms": True} if histograms else {}
    output.check_outputs(files, inputs=_input_files(model))
    planning.check_memory(memory)
    computing: dict[str, Any] = {
        "backend": backend.value,
        "ray_address": ray_address,
        "device": device,
        "precision": precision.value,
    }
    _check_computing(computing, fitting)
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read by huggingface_hub when it is imported

    from alphalloc.checkpoint import open_checkpoint

    reading: dict[str, Any] = {
        "revision": revision,
        "layer_pattern": layer_pattern,
        "include": tuple(include or ()),
        "exclude": tuple(exclude or ()),
        "embeddings": embeddings,
        "split_fused": not keep_fused,
        "base": base,
    }
    checkpoint = open_checkpoint(model, **reading)
    blocks = {(matrix.stack, matrix.layer) for matrix in checkpoint.matrices if matrix.layer >= 0}
    if blocks:
        asked.rehearse(len(blocks))

    from alphalloc.analysis import analyze as analyze_model
    from alphalloc.analysis.estimators import compare_estimators
    from alphalloc.documents import pretty_json

    with render.progress_display(f"analysing {_short(model)}", quiet=quiet) as progress:
        computing |= {
            **reading,
            **fitting,
            "cache": not no_cache,
            "fill": None if fill is None else "median",
            "strict": strict,
            "workers": workers,
            "memory": memory,
            "planned": None if quiet else planning.show_once(),
            "progress": progress,
        }
        if names is not None:
            views = compare_estimators(model, asked.allocate, estimators=names, **computing)
        else:
            alphas = analyze_model(model, **computing)
    if names is not None:
        trust.print_estimators(views, as_json=as_json)
        return
    if alphas_file is not None:
        output.write_outputs({alphas_file: alphas.to_json()})  # kept even when no schedule comes of it
    schedule = asked.allocate(alphas)
    if schedule_file is not None:
        output.write_outputs({schedule_file: schedule.to_json()})
    if as_json:
        both = {"alphas": json.loads(alphas.to_json()), "schedule": json.loads(schedule.to_json())}
        output.print_json(pretty_json(both))
    else:
        render.print_table(lambda ascii_only: schedule_report(schedule, ascii_only=ascii_only))
        if stability or gof or randomize:
            render.print_table(lambda _: trust.trust_table(alphas))
    if not quiet:
        render.closing_notes(schedule.warnings, [path for path in (alphas_file, schedule_file) if path is not None])


def _fitting(estimator: str | None, fraction: float | None, compared: Sequence[str]) -> dict[str, Any]:
    chosen = {} if estimator is None else {"estimator": options.check_estimator(estimator)}
    if fraction is None:
        return chosen
    if "hill_fraction" not in (estimator, *compared):
        raise InvalidParameterError("--hill-fraction belongs to --estimator hill_fraction; give both or neither")
    return {**chosen, "hill_fraction": fraction}


def _check_computing(computing: dict[str, Any], fitting: dict[str, Any]) -> None:
    """Raise DeviceError or AnalysisError for a device or backend that cannot be, before anything is downloaded."""
    if computing != {"backend": "auto", "ray_address": None, "device": "auto", "precision": "full"}:
        from alphalloc.analysis.where import choose

        choose(**computing, farms=fitting.get("farms"))


def _short(model: str) -> str:
    """Return what fits beside a progress bar: the last part of a long path or id."""
    return model if len(model) <= 40 else Path(model).name[-40:]


def _input_files(model: str) -> list[Path]:
    """Return what an output must not overwrite: MODEL itself and, for a folder, the files in it."""
    path = Path(model)
    try:
        return [path, *path.iterdir()] if path.is_dir() else [path]
    except OSError:  # not a path after all, or not readable: opening the checkpoint will say which
        return []
