"""``alphalloc crosscheck MODEL``: our fit beside WeightWatcher's and powerlaw's, each difference explained."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from alphalloc.cli import options, output, render
from alphalloc.cli.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alphalloc.analysis.crosscheck import Answer, CrosscheckedMatrix, Verdict


def crosscheck(
    model: options.Model,
    revision: options.Revision = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    layer_pattern: options.LayerPattern = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check the ks fit of every matrix against WeightWatcher and powerlaw (extra: crosscheck)."""
    from alphalloc.analysis.crosscheck import crosscheck as check

    with render.progress_display(f"checking {model[-40:]}", quiet=quiet) as progress:
        found = check(
            model,
            revision=revision,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            layer_pattern=layer_pattern,
            progress=progress,
        )
    if as_json:
        from alphalloc.documents import pretty_json

        output.print_json(pretty_json({"matrices": [asdict(matrix) for matrix in found]}))
    else:
        render.print_table(lambda _: _report(found))


def _report(found: tuple[CrosscheckedMatrix, ...]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("matrix", "ks", "WeightWatcher", "powerlaw", "difference"):
        table.add_column(name, justify="left" if name in ("matrix", "difference") else "right", no_wrap=True)
    for matrix in found:
        reasons = [
            _reason("WeightWatcher", matrix.weightwatcher_verdict),
            _reason("powerlaw", matrix.powerlaw_verdict),
        ]
        ours = "-" if matrix.ours.alpha is None else f"{matrix.ours.alpha:.6f}"
        table.add_row(
            plain(matrix.name),
            ours,
            _alpha(matrix.weightwatcher),
            _alpha(matrix.powerlaw),
            plain("; ".join(reason for reason in reasons if reason)),
        )
    return Group(
        table,
        Text(_summary("WeightWatcher", [m.weightwatcher_verdict for m in found])),
        Text(_summary("powerlaw", [m.powerlaw_verdict for m in found])),
    )


def _alpha(answer: Answer) -> str:
    return "-" if answer.alpha is None else f"{answer.alpha:.6f}"


def _reason(library: str, verdict: Verdict) -> str:
    if verdict.agrees:
        return ""
    return f"{library}: {verdict.reason or 'unexplained'}"


def _summary(library: str, verdicts: list[Verdict]) -> str:
    agreed = sum(verdict.agrees for verdict in verdicts)
    explained = sum(not verdict.agrees and verdict.reason is not None for verdict in verdicts)
    left = len(verdicts) - agreed - explained
    differ = f"{explained} differ for a known reason, {left} unexplained"
    return f"{library}: {agreed} of {len(verdicts)} agree to 1e-6, {differ}"
