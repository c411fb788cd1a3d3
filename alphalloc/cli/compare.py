"""``alphalloc compare A B``: two alpha files, two models, or a WeightWatcher CSV, matrix by matrix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphalloc.cli import options, output, render
from alphalloc.cli.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alphalloc.analysis.compare import AlphaComparison, Pair, Scores

First = Annotated[str, typer.Argument(metavar="A", help="An alphas.json, a model, or a WeightWatcher details CSV.")]
Second = Annotated[str, typer.Argument(metavar="B", help="The same; differences are B - A.")]
Estimator = Annotated[str | None, typer.Option(metavar="E", help="For models: how alpha is fitted.")]
Top = Annotated[int, typer.Option("--top", metavar="N", min=0, help="Matrices to list, those that moved most.")]


def compare(
    first: First,
    second: Second,
    estimator: Estimator = None,
    top: Top = 10,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare the alphas of A and B: differences, rank correlation, what moved."""
    from alphalloc.analysis.compare import compare_alphas

    chosen = None if estimator is None else options.check_estimator(estimator)
    found = compare_alphas(_scores(first, chosen, quiet), _scores(second, chosen, quiet))
    if as_json:
        from alphalloc.documents import pretty_json

        output.print_json(pretty_json({**asdict(found), "mean_difference": found.mean_difference}))
    else:
        render.print_table(lambda _: _report(found, top))
    if not quiet and (found.only_first or found.only_second):
        counts = f"{len(found.only_first)} matrices have an alpha in A alone, {len(found.only_second)} in B alone"
        render.closing_notes([counts], [])


def _scores(source: str, estimator: str | None, quiet: bool) -> Scores:
    from alphalloc.analysis.compare import Scores, read_weightwatcher

    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        return read_weightwatcher(source)
    if suffix == ".json":
        from alphalloc.alphas import ModelAlphas

        return Scores.of(ModelAlphas.load(source), Path(source).name)
    from alphalloc.analysis import analyze

    with render.progress_display(f"analysing {source[-40:]}", quiet=quiet) as progress:
        given: dict[str, Any] = {} if estimator is None else {"estimator": estimator}
        return Scores.of(analyze(source, progress=progress, **given))


def _report(found: AlphaComparison, top: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines = [
        f"A {plain(found.first)} ({plain(found.estimators[0])}), B {plain(found.second)} ({plain(found.estimators[1])})"
    ]
    if found.mean_difference is not None:
        lines.append(f"{len(found.matrices)} matrices in both, mean |B - A| {found.mean_difference:.4f}")
    lines.append(
        f"rank correlation: matrices {_number(found.matrix_correlation)}, layers {_number(found.layer_correlation)}"
    )
    parts: list[RenderableType] = [Text("\n".join(lines)), _table("layer", found.layers)]
    if top:
        parts += [Text("moved most"), _table("matrix", found.moved[:top])]
    return Group(*parts)


def _table(what: str, pairs: tuple[Pair, ...]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in (what, "A", "B", "B - A"):
        table.add_column(name, justify="left" if name == what else "right", no_wrap=True)
    for pair in pairs:
        table.add_row(plain(pair.name), f"{pair.first:.3f}", f"{pair.second:.3f}", f"{pair.difference:+.3f}")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
