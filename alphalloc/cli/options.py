"""Options that several subcommands share, and what they mean together.

Every allocation option is None until given: only what the user wrote is passed on, so that the defaults live in one
place, the signature of ``alphalloc.allocate``, and a contradiction with ``--paper`` can be told from a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphalloc.cli.text import did_you_mean
from alphalloc.errors import InvalidParameterError, UnknownEstimatorError, UnknownRoundingError, UnknownRuleError

if TYPE_CHECKING:
    from alphalloc.allocation import ExpertSchedule, LayerScores

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A folder, a .safetensors, .gguf or .bin file, or a hub id.", show_default=False
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub model.")]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only matrices whose tensor name, module path or role matches. Repeatable."),
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave these matrices out. Repeatable.")]
LayerPattern = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="Where the block index stands in tensor names, if not found by itself."),
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What matrices may take, such as 8GiB.  [default: 80 % of what is free]"),
]
Workers = Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads.  [default: one a core]")]
Embeddings = Annotated[bool, typer.Option("--embeddings", help="Take embeddings and the output head in as well.")]
KeepFused = Annotated[bool, typer.Option("--keep-fused", help="Keep fused q, k, v and gate, up together.")]
Base = Annotated[str | None, typer.Option(metavar="MODEL", help="Subtract this model: what a fine-tuning changed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]

Experts = Annotated[int | None, typer.Option(metavar="N", help="Experts of all layers in sum.  [default: 5 x layers]")]
RuleName = Annotated[str | None, typer.Option("--rule", metavar="R", help="Allocation rule.  [default: alpha_power]")]
Beta = Annotated[float | None, typer.Option(metavar="B", help="Exponent of alpha_power.  [default: 2.5]")]
Rounding = Annotated[str | None, typer.Option(metavar="R", help="Rounding.  [default: largest_remainder]")]
MinExperts = Annotated[int | None, typer.Option(metavar="N", help="Fewest experts of a layer.  [default: 1]")]
MaxExperts = Annotated[int | None, typer.Option(metavar="N", help="Most experts of a layer.  [default: no limit]")]
TopK = Annotated[int | None, typer.Option(metavar="K", help="Experts a token is sent to, at most.  [default: 2]")]
Paper = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="All settings as released with a paper: alphalora. Refuses other values."),
]
ScheduleOutput = Annotated[Path | None, typer.Option("--schedule", metavar="FILE", help="Write the schedule here.")]


@dataclass(frozen=True)
class AllocationOptions:
    """What the user asked of the allocation; None where nothing was said."""

    experts: int | None = None
    rule: str | None = None
    beta: float | None = None
    rounding: str | None = None
    min_experts: int | None = None
    max_experts: int | None = None
    top_k: int | None = None

    def checked(self) -> AllocationOptions:
        """Return self after looking the names up. Raises UnknownRuleError and UnknownRoundingError."""
        from alphalloc.allocation import ROUNDINGS, RULES

        rule = "" if self.rule is None else self.rule.partition(":")[0]  # "pattern:8,6,4,2" carries its settings
        if self.rule is not None and rule not in RULES:
            raise UnknownRuleError(f"no allocation rule {rule!r}{did_you_mean(rule, RULES)}")
        if self.rounding is not None and self.rounding not in ROUNDINGS:
            raise UnknownRoundingError(f"no rounding {self.rounding!r}{did_you_mean(self.rounding, ROUNDINGS)}")
        return self

    def allocate(self, scores: LayerScores | Sequence[float]) -> ExpertSchedule:
        """Return the schedule of ``scores``; the budget defaults to five experts a layer."""
        from alphalloc.allocation import Budget, allocate

        budget = Budget.experts_per_layer() if self.experts is None else self.experts
        return allocate(scores, budget, **self.given())

    def given(self) -> dict[str, Any]:
        """Return the keywords of ``allocate`` that were given; the budget is not one of them."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "experts"}
        return {name: value for name, value in values.items() if value is not None}

    def rehearse(self, num_layers: int) -> None:
        """Raise now what ``allocate`` would refuse later whatever the alphas of the ``num_layers`` layers are.

        Scores of 1 stand in for them (1 to any power is 1), so a budget that cannot fit fails before the analysis and
        not after it. Rounding ``reference`` is left out: what it refuses depends on the alphas.
        """
        rounding = None if self.rounding == "reference" else self.rounding
        replace(self, rounding=rounding).allocate([1.0] * num_layers)


def with_paper(
    options: AllocationOptions, estimator: str | None, paper: str | None
) -> tuple[AllocationOptions, str | None]:
    """Return ``options`` and ``estimator`` completed by the preset ``paper``.

    An option that was given and differs from the preset is refused: a run named after a paper is that paper's.
    Raises InvalidParameterError.
    """
    if paper is None:
        return options, estimator
    from alphalloc.allocation import PAPERS

    if paper not in PAPERS:
        raise InvalidParameterError(f"no paper preset {paper!r}{did_you_mean(paper, PAPERS)}")
    preset: Mapping[str, Any] = PAPERS[paper]
    given = {field.name: getattr(options, field.name) for field in fields(options)} | {"estimator": estimator}
    for name, value in preset.items():
        if given[name] is not None and given[name] != value:
            raise InvalidParameterError(
                f"--paper {paper} means {name} {value}, but {name} {given[name]} was given; drop one of the two"
            )
        given[name] = value
    chosen = given.pop("estimator")
    return AllocationOptions(**given), chosen


def check_estimator(name: str) -> str:
    """Return ``name`` if an estimator of that name exists. Raises UnknownEstimatorError with the closest one."""
    from alphalloc.fits import FITS

    if name not in FITS:
        raise UnknownEstimatorError(f"no estimator {name!r}{did_you_mean(name, FITS)}")
    return name
