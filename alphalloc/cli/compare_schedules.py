"""``alphalloc compare-schedules``: does it beat LoRA of the same size? Arms, seeds, intervals, one test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alphalloc.cli import options, output, render

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The comparison.", show_default=False)]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where runs and results go.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Refuse a folder that has runs already, instead of going on.")]


def compare_schedules(
    recipe: RecipeFile,
    folder: Folder = Path("comparison"),
    fresh: Fresh = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train several adapters of equal size over several seeds and compare them on a test that is looked at once."""
    from alphalloc.training.compare import compare_schedules as compare

    found = compare(recipe, output=folder, resume=not fresh, progress=None if quiet else render.note)
    if as_json:
        output.print_json(found.to_json())
    else:
        output.print_text(f"{found.arm_table()}\n\n{found.pair_table()}\n")
    if not quiet:
        render.closing_notes(found.notes, [folder / "comparison.json", folder / "README.md"])
