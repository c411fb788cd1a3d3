"""What a person sees: the table of a schedule on stdout; progress and notes on stderr."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alphalloc.cli.output import print_text
from alphalloc.cli.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alphalloc.analysis import Progress

SECONDS_BETWEEN_LINES = 10.0  # of the progress of a run whose stderr is a file


def print_table(make: Callable[[bool], RenderableType]) -> None:
    """Print ``make(ascii_only)`` to stdout: in a terminal at its width, into a pipe or file as wide as it needs to be.

    No escape sequences without a terminal or with NO_COLOR, bold included.
    """
    from rich.console import Console

    # Drawn in memory first: then one place, print_text, meets full disks and closed pipes.
    page = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace")
    terminal = True if sys.stdout.isatty() else None  # None: FORCE_COLOR may still ask for one
    console = Console(
        file=page, force_terminal=terminal, color_system=_colours(), highlight=False, markup=False, emoji=False
    )
    renderable = make(not console.encoding.lower().startswith("utf"))
    if terminal is None:
        console.width = max(console.measure(renderable, options=console.options.update(max_width=10_000)).maximum, 80)
    console.print(renderable)
    page.seek(0)
    print_text("".join(f"{line.rstrip()}\n" for line in page))


def note(text: str) -> None:
    """Print one line to stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def closing_notes(warnings: Iterable[str], written: Iterable[Path]) -> None:
    """Print to stderr what the reader should know about the result and which files were written."""
    for warning in warnings:
        note(f"note: {warning}")
    for path in written:
        note(f"wrote {path}")


@contextmanager
def progress_display(what: str, *, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Give a callback that shows progress and time left on stderr: a bar in a terminal, else a line now and then."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _live_bar(what) as update:
            yield update
    else:
        yield _lines(what)


@contextmanager
def _live_bar(what: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[matrices]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    )
    with Display(*columns, console=Console(stderr=True, color_system=_colours()), transient=True) as display:
        task = display.add_task(plain(what), total=None, matrices="")

        def update(state: Progress) -> None:
            counts = f"{state.done}/{state.total}"
            display.update(task, total=state.bytes_total, completed=state.bytes_done, matrices=counts)

        yield update


def _colours() -> Literal["auto"] | None:
    return None if os.environ.get("NO_COLOR") else "auto"


def _lines(what: str) -> Callable[[Progress], None]:
    started = shown = time.monotonic()

    def update(state: Progress) -> None:
        nonlocal shown
        now = time.monotonic()
        if state.done == state.total:
            note(f"{what}: {state.total} matrices in {now - started:.1f} s")
        elif now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            left = (now - started) * (state.bytes_total - state.bytes_done) / max(state.bytes_done, 1)
            note(f"{what}: {state.done}/{state.total} matrices, about {left:.0f} s left")

    return update
