"""``alphalloc diff A B``: what two schedules do differently."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphalloc.cli import options, output, render
from alphalloc.cli.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alphalloc.allocation import ScheduleDiff

First = Annotated[Path, typer.Argument(metavar="A.json", help="A schedule.", show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B.json", help="Another schedule.", show_default=False)]


def diff(first: First, second: Second, as_json: options.AsJson = False) -> None:
    """Show which layers (or modules) and which settings differ between two schedules."""
    from alphalloc.allocation import ExpertSchedule, diff_schedules
    from alphalloc.documents import pretty_json

    found = diff_schedules(ExpertSchedule.load(first), ExpertSchedule.load(second))
    if as_json:
        output.print_json(pretty_json(_document(found)))
    elif found.same_allocation and not found.settings:
        output.print_text("no difference\n")
    else:
        render.print_table(lambda _: _report(found))


def _document(found: ScheduleDiff) -> dict[str, Any]:
    changed = [dataclasses.asdict(slot) for slot in found.changed]
    return {"changed": changed, "settings": found.settings, "moved": found.moved}


def _report(found: ScheduleDiff) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("layer", "experts", "top_k", "rank"):
        table.add_column(heading, justify="right", no_wrap=True)
    for slot in found.changed:
        numbers = (_pair(pair) for pair in (slot.experts, slot.top_k, slot.rank))
        table.add_row(plain(str(slot.slot).replace(".", " ")), *numbers)
    settings = [f"{name}: {_brief(old)} -> {_brief(new)}" for name, (old, new) in found.settings.items()]
    before, after = (sum(slot.experts[side] or 0 for slot in found.slots) for side in (0, 1))
    moved = f"{before} -> {after} experts; {len(found.changed)} of {len(found.slots)} places differ"
    return Group(*([table] if found.changed else []), Text("\n".join([moved, *settings])))


def _brief(setting: Any) -> str:
    """Return a setting without the punctuation of a dictionary."""
    if isinstance(setting, dict):
        return plain(" ".join(f"{name} {value}" for name, value in setting.items() if value is not None))
    return plain(str(setting))


def _pair(values: tuple[int | None, int | None]) -> str:
    first, second = ("-" if value is None else str(value) for value in values)
    return first if first == second else f"{first} -> {second}"
