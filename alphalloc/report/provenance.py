"""Where a report's numbers come from, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from alphalloc.allocation import ExpertSchedule
from alphalloc.alphas import ModelAlphas
from alphalloc.documents import package_version
from alphalloc.report.charts import number


def origin(alphas: ModelAlphas) -> tuple[tuple[str, str], ...]:
    """Return model, analysis and program as (what, value)."""
    model = alphas.model
    settings = [f"{name} {value}" for name, value in alphas.analysis.settings.items() if value not in (None, False, [])]
    pairs = [
        ("model", model.id),
        ("revision", model.revision or ""),
        ("commit", model.commit or ""),
        ("headers", model.fingerprint or ""),
        ("format", f"{model.format or ''}{', quantised' if model.quantized else ''}"),
        ("estimator", alphas.analysis.estimator),
        ("settings", ", ".join(settings)),
        ("analysed by", f"{alphas.created_by.tool} {alphas.created_by.version}"),
        ("reported by", f"alphalloc {package_version()}"),
    ]
    return tuple((name, value) for name, value in pairs if value)


def schedule_origin(schedule: ExpertSchedule) -> tuple[tuple[str, str], ...]:
    """Return what a schedule was made from as (what, value)."""
    params = ", ".join(f"{name} {value}" for name, value in schedule.rule.params.items())
    bounds = f"{schedule.bounds.min_experts} to {schedule.bounds.max_experts or 'any number'}"
    pairs = [
        ("id", schedule.id),
        ("rule", f"{schedule.rule.name}{f' ({params})' if params else ''}"),
        ("rounding", schedule.rounding),
        ("budget", f"{number(schedule.budget.total)} {schedule.budget.unit}"),
        ("bounds", bounds),
        ("top_k", f"at most {schedule.max_top_k}"),
        ("level", schedule.level),
    ]
    return tuple(pairs)


def analyze_command(alphas: ModelAlphas) -> str:
    """Return the command that makes such alphas again; a local model is named by its last name only."""
    settings = alphas.analysis.settings
    words = ["alphalloc", "analyze", alphas.model.id]
    words += ["--revision", alphas.model.commit] if alphas.model.commit else []
    words += ["--estimator", alphas.analysis.estimator]
    for name in ("include", "exclude"):
        words += [word for glob in settings.get(name) or () for word in (f"--{name}", str(glob))]
    for name in ("layer_pattern", "fill", "hill_fraction", "base", "sampling"):
        if settings.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    farms = settings.get("farms")
    if isinstance(farms, dict):
        words += [word for name, value in farms.items() for word in (f"--farms-{name}", str(value))]
    words += [f"--{name}" for name in ("embeddings", "stability", "gof", "randomize") if settings.get(name)]
    words += ["--keep-fused"] if settings.get("split_fused") is False else []
    words += ["--histograms"] if any(matrix.esd_histogram for matrix in alphas.matrices) else []
    return shlex.join([*words, "-o", "alphas.json"])


def report_command(files: Sequence[str], *, light: bool = False) -> str:
    """Return the command that makes this report again from the same files."""
    return shlex.join(["alphalloc", "report", *files, *(["--light"] if light else []), "-o", "report.html"])
