"""``alphalloc validate FILE``: is this document what it says, and does it fit a model?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alphalloc.cli import output
from alphalloc.cli.text import plain
from alphalloc.errors import DocumentError

File = Annotated[Path, typer.Argument(metavar="FILE", help="A schedule.json or alphas.json.", show_default=False)]
Base = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Check the layers against this model.")]


def validate(file: File, model: Base = None) -> None:
    """Check a schedule or alphas document: schema, totals, id and, with --model, layers and modules."""
    from alphalloc.allocation import ExpertSchedule, ModuleShapes, check_against_model
    from alphalloc.alphas import ModelAlphas
    from alphalloc.checkpoint import open_checkpoint

    try:
        schedule = ExpertSchedule.load(file)
    except DocumentError as exc:
        if "expected kind" not in str(exc):
            raise
        alphas = ModelAlphas.load(file)
        if model is not None:
            raise DocumentError(f"{file} holds alphas; --model checks schedules") from exc
        text = f"{len(alphas.matrices)} matrices in {len(alphas.layers)} layers, {alphas.analysis.estimator}"
        output.print_text(f"{plain(str(file))}: valid alphas, {text}\n")
        return
    if model is not None:
        check_against_model(schedule, ModuleShapes.of_matrices(open_checkpoint(model, split_fused=False).matrices))
    fits = "" if model is None else f", fits {plain(model)}"
    text = f"{schedule.totals.num_experts} experts in {schedule.totals.num_layers} layers, {schedule.id}"
    output.print_text(f"{plain(str(file))}: valid schedule, {text}{fits}\n")
