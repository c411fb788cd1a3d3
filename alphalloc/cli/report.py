"""``alphalloc report FILES``: alphas and schedules, or a training, as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alphalloc.cli import options, output, render
from alphalloc.errors import InvalidParameterError

if TYPE_CHECKING:
    from alphalloc.report.sources import Sources

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILES", help="alphas.json [more alphas] [schedule.json ...], or a training's folder."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.html", help="Write the page here.")]
Light = Annotated[bool, typer.Option("--light", help="Static pictures, no script; needs no plotly.")]
Picture = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE.svg", help="Write alpha and experts by layer as a picture.")
]


def report(
    files: Files,
    page_file: Output = None,
    light: Light = False,
    picture: Picture = None,
    quiet: options.Quiet = False,
) -> None:
    """Show what saved alphas and schedules say, or how a training went: charts, tables and words in one file.

    Nothing is computed from weights; charts of spectra need alphas of `analyze --histograms`. Without -o the page goes
    to stdout.
    """
    if light and picture is not None and page_file is None:
        raise InvalidParameterError(
            "--light is about the page, --picture writes no page; drop --light or give -o as well"
        )
    output.check_outputs({"--output": page_file, "--picture": picture}, inputs=files)

    from alphalloc.report.sources import read_sources

    sources = read_sources(files)
    written: dict[Path, str] = {}
    if picture is not None:
        written[picture] = _picture(sources)
    if page_file is not None or picture is None:
        page = _page(sources, light=light)
        if page_file is None:
            output.print_text(page, encoding="utf-8")
        else:
            written[page_file] = page
    output.write_outputs(written)
    if not quiet:
        render.closing_notes([], list(written))


def _page(sources: Sources, *, light: bool) -> str:
    from alphalloc.report import report_html, training_html

    if sources.trainings:
        return training_html(sources.trainings[0], light=light)
    first, *others = sources.alphas
    return report_html(first, sources.schedules, others=others, light=light, files=sources.files)


def _picture(sources: Sources) -> str:
    from alphalloc.report import picture_svg

    if not sources.alphas:
        raise InvalidParameterError("--picture draws alphas and experts by layer; give an alphas document")
    return picture_svg(sources.alphas[0], sources.schedules)
