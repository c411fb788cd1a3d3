"""``alphalloc allocate ALPHAS.json``: from saved alphas to a schedule, without the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alphalloc.cli import options, output, render
from alphalloc.errors import InvalidParameterError

Alphas = Annotated[Path, typer.Argument(metavar="ALPHAS.json", help="What analyze -o wrote.", show_default=False)]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the schedule here.")]


def allocate(
    alphas_file: Alphas,
    experts: options.Experts = None,
    rule: options.RuleName = None,
    beta: options.Beta = None,
    rounding: options.Rounding = None,
    min_experts: options.MinExperts = None,
    max_experts: options.MaxExperts = None,
    top_k: options.TopK = None,
    paper: options.Paper = None,
    schedule_file: Output = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Allocate experts to layers from saved alphas."""
    asked = options.AllocationOptions(experts, rule, beta, rounding, min_experts, max_experts, top_k).checked()
    asked, estimator = options.with_paper(asked, None, paper)
    output.check_outputs({"--output": schedule_file}, inputs=[alphas_file])

    from alphalloc.alphas import ModelAlphas

    alphas = ModelAlphas.load(alphas_file)
    if estimator not in (None, alphas.analysis.estimator):
        raise InvalidParameterError(
            f"--paper {paper} means estimator {estimator}, but {alphas_file} holds alphas of "
            f"{alphas.analysis.estimator}; analyze the model again with --paper {paper}"
        )
    schedule = asked.allocate(alphas)
    if schedule_file is not None:
        output.write_outputs({schedule_file: schedule.to_json()})
    if as_json:
        output.print_json(schedule.to_json())
    else:
        render.print_table(lambda ascii_only: render.schedule_report(schedule, ascii_only=ascii_only))
    if not quiet:
        render.closing_notes(schedule.warnings, [] if schedule_file is None else [schedule_file])
