"""``alphalloc allocate ALPHAS.json``: from saved alphas to a schedule, without the weights."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alphalloc.cli import options, output, remote, render
from alphalloc.cli.allocation_request import (
    AllocationRequest,
    BudgetOptions,
    RankOptions,
    SignalOptions,
    constraint_fields,
    rule_params,
)
from alphalloc.cli.schedule_table import schedule_report
from alphalloc.errors import InvalidParameterError

if TYPE_CHECKING:
    from alphalloc.allocation import ExpertSchedule


class Level(enum.StrEnum):
    """What gets a number of its own."""

    layer = "layer"
    module = "module"


class Direction(enum.StrEnum):
    """Which scores get more."""

    HIGHER = "higher"
    LOWER = "lower"


Alphas = Annotated[
    str,
    typer.Argument(
        metavar="ALPHAS.json",
        help="What analyze -o wrote; with --server a model's id or path there.",
        show_default=False,
    ),
]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="Ask this service, which analyses a model it does not know.")
]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="The service's API key.  [default: ALPHALLOC_KEY]")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the schedule here.")]
PerLayer = Annotated[float | None, typer.Option(metavar="X", help="Budget: experts a layer on average.")]
Parameters = Annotated[int | None, typer.Option(metavar="N", help="Budget: trainable parameters at most.")]
Megabytes = Annotated[float | None, typer.Option(metavar="X", help="Budget: 10^6 bytes of adapter at most.")]
Dtype = Annotated[str | None, typer.Option(metavar="T", help="Type the megabytes are in.  [default: float32]")]
Ranks = Annotated[int | None, typer.Option(metavar="N", help="Budget: ranks of all layers in sum; ranks vary.")]
RanksPerLayer = Annotated[float | None, typer.Option(metavar="X", help="Budget: rank on average; ranks vary.")]
Rank = Annotated[int | None, typer.Option("--rank", "-r", metavar="R", help="Rank of each expert.  [default: 8]")]
Targets = Annotated[
    str | None, typer.Option("--target-modules", metavar="A,B", help="Roles that are adapted.  [default: all]")
]
Vary = Annotated[bool, typer.Option("--vary-rank", help="Spend the budget on ranks instead of experts.")]
Each = Annotated[int | None, typer.Option("--experts-each", metavar="N", help="Experts a layer where ranks vary.")]
Multiple = Annotated[int | None, typer.Option("--rank-multiple", metavar="N", help="Ranks are multiples of this.")]
MinRank = Annotated[int | None, typer.Option(metavar="N", help="Smallest rank.")]
MaxRank = Annotated[int | None, typer.Option(metavar="N", help="Largest rank.")]
LevelOption = Annotated[Level, typer.Option(help="One count a layer, or one for each of its modules.")]
Metric = Annotated[str | None, typer.Option(metavar="NAME", help="Decide by this column instead of alpha.")]
Scores = Annotated[Path | None, typer.Option(metavar="FILE", help="Decide by the scores in this CSV or JSON file.")]
DirectionOption = Annotated[Direction | None, typer.Option(help="Whether higher or lower scores get more.")]
Param = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of the rule. Repeatable.")]
Limits = Annotated[Path | None, typer.Option("--constraints", metavar="FILE", help="Constraints as a JSON object.")]
Pin = Annotated[list[str] | None, typer.Option(metavar="LAYER=N", help="Fix a layer's experts. Repeatable.")]
Freeze = Annotated[list[str] | None, typer.Option(metavar="LAYER", help="No experts for a layer. Repeatable.")]
Group = Annotated[list[str] | None, typer.Option(metavar="A,B", help="Layers that share a count. Repeatable.")]
Confidence = Annotated[bool, typer.Option("--confidence", help="Say how far alpha's own error moves the schedule.")]
Draws = Annotated[int | None, typer.Option(metavar="N", help="Draws for --confidence.  [default: 1000]")]


def allocate(
    source: Alphas,
    experts: options.Experts = None,
    experts_per_layer: PerLayer = None,
    parameters: Parameters = None,
    megabytes: Megabytes = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    ranks_per_layer: RanksPerLayer = None,
    rank: Rank = None,
    target_modules: Targets = None,
    rule: options.RuleName = None,
    beta: options.Beta = None,
    param: Param = None,
    rounding: options.Rounding = None,
    min_experts: options.MinExperts = None,
    max_experts: options.MaxExperts = None,
    top_k: options.TopK = None,
    paper: options.Paper = None,
    level: LevelOption = Level.layer,
    vary_rank: Vary = False,
    experts_each: Each = None,
    rank_multiple: Multiple = None,
    min_rank: MinRank = None,
    max_rank: MaxRank = None,
    metric: Metric = None,
    scores: Scores = None,
    direction: DirectionOption = None,
    constraints: Limits = None,
    pin: Pin = None,
    freeze: Freeze = None,
    group: Group = None,
    confidence: Confidence = False,
    draws: Draws = None,
    server: Server = None,
    key: Key = None,
    schedule_file: Output = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Allocate experts or ranks to layers from saved alphas.

    LAYER is a selector: 3, 0-3, encoder.3, and with --level module also q_proj or 3.q_proj.
    """
    asked = options.AllocationOptions(experts, rule, beta, rounding, min_experts, max_experts, top_k).checked()
    asked, estimator = options.with_paper(asked, None, paper)
    if draws is not None and not confidence:
        raise InvalidParameterError("--draws belongs to --confidence; give both or neither")
    targets = None if target_modules is None else tuple(target_modules.split(","))
    request = AllocationRequest(
        asked,
        BudgetOptions(experts_per_layer, parameters, megabytes, dtype, ranks, ranks_per_layer, rank, targets),
        RankOptions(vary_rank, experts_each, rank_multiple, min_rank, max_rank),
        SignalOptions(metric, scores, None if direction is None else direction.value),
        level=level.value,
        params=rule_params(param or ()),
        constraints=constraint_fields(constraints, pin or (), freeze or (), group or ()),
        confidence=confidence,
        draws=draws,
    )
    output.check_outputs({"--output": schedule_file}, inputs=[Path(source)])
    if server is None:
        if key is not None:
            raise InvalidParameterError("--key belongs to --server; give both or neither")
        schedule = _schedule_here(request, Path(source), estimator, paper)
    else:
        schedule = remote.schedule(request, source, estimator, server, key, quiet=quiet)
    if schedule_file is not None:
        output.write_outputs({schedule_file: schedule.to_json()})
    if as_json:
        output.print_json(schedule.to_json())
    else:
        render.print_table(lambda ascii_only: schedule_report(schedule, ascii_only=ascii_only))
    if not quiet:
        render.closing_notes(schedule.warnings, [] if schedule_file is None else [schedule_file])


def _schedule_here(
    request: AllocationRequest, alphas_file: Path, estimator: str | None, paper: str | None
) -> ExpertSchedule:
    from alphalloc.alphas import ModelAlphas

    alphas = ModelAlphas.load(alphas_file)
    if estimator not in (None, alphas.analysis.estimator):
        raise InvalidParameterError(
            f"--paper {paper} means estimator {estimator}, but {alphas_file} holds alphas of "
            f"{alphas.analysis.estimator}; analyze the model again with --paper {paper}"
        )
    return request.schedule(alphas)
