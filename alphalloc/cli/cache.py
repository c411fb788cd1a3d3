"""``alphalloc cache``: what the spectra cache holds, and making it smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alphalloc.cli import options, output
from alphalloc.cli.text import byte_size, plain

app = typer.Typer(
    name="cache",
    help="Look at the spectra kept on disk, or make them fewer.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path | None, typer.Option("--folder", metavar="FOLDER", help="Another cache than the user's own.")]
Max = Annotated[
    str | None, typer.Option("--max", metavar="SIZE", help="Keep at most this much, such as 500MiB; 0 empties it.")
]


@app.command("info")
def info(folder: Folder = None, as_json: options.AsJson = False) -> None:
    """Print where the cache lies and what it holds."""
    from alphalloc.analysis.cache import SpectraCache
    from alphalloc.documents import pretty_json

    found = SpectraCache(folder).info()
    if as_json:
        values = {"folder": str(found.folder), "num_spectra": found.num_spectra, "nbytes": found.nbytes}
        output.print_json(pretty_json(values | {"num_files": found.num_files, "max_bytes": found.max_bytes}))
        return
    output.print_text(
        f"{plain(str(found.folder))}: {found.num_spectra} spectra, {byte_size(found.nbytes)} of at most "
        f"{byte_size(found.max_bytes)}; hashes of {found.num_files} files\n"
    )


@app.command("prune")
def prune(maximum: Max = None, folder: Folder = None) -> None:
    """Delete the spectra used longest ago, and what killed runs left behind.

    Without --max down to the bound that every analysis keeps. What goes is computed again when it is needed.
    """
    from alphalloc.analysis.cache import SpectraCache
    from alphalloc.analysis.memory import memory_budget

    bound = None if maximum is None else 0 if maximum.strip() in ("0", "0B") else memory_budget(maximum)
    gone, freed = SpectraCache(folder).prune(bound)
    output.print_text(f"deleted {gone} spectra, {byte_size(freed)}\n")
