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
from alphalloc.cli.text import byte_size, duration, plain

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
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Display(*columns, console=Console(stderr=True, color_system=_colours()), transient=True) as display:
        task = display.add_task(plain(what), total=None, counts="", left="")

        def update(state: Progress) -> None:
            left = _left(state)
            display.update(task, total=state.bytes_total, completed=state.bytes_done, counts=_counts(state), left=left)

        yield update


def _counts(state: Progress) -> str:
    """Matrices, bytes and pace: ``"12/210 matrices (3 cached), 1.0 GiB of 12.1 GiB, 86.0 MiB/s"``."""
    cached = f" ({state.num_cached} cached)" if state.num_cached else ""
    size = f"{byte_size(state.bytes_done)} of {byte_size(state.bytes_total)}"
    rate = f", {byte_size(round(state.bytes_per_second))}/s" if state.bytes_per_second else ""
    return f"{state.done}/{state.total} matrices{cached}, {size}{rate}"


def _left(state: Progress) -> str:
    return "" if state.seconds_left is None else f"about {duration(state.seconds_left)} left"


def _colours() -> Literal["auto"] | None:
    return None if os.environ.get("NO_COLOR") else "auto"


def _lines(what: str) -> Callable[[Progress], None]:
    shown = time.monotonic()

    def update(state: Progress) -> None:
        nonlocal shown
        now = time.monotonic()
        if state.done == state.total:
            cached = f", {state.num_cached} of them cached" if state.num_cached else ""
            note(f"{what}: {state.total} matrices in {state.seconds:.1f} s{cached}")
        elif now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            note(", ".join(filter(None, (f"{what}: {_counts(state)}", _left(state)))))

    return update
