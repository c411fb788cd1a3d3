"""What a person sees: the table of a schedule on stdout; progress and notes on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alphalloc.cli.output import print_text
from alphalloc.cli.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from alphalloc.allocation import ExpertSchedule
    from alphalloc.analysis import Progress

BAR_WIDTH = 24
SECONDS_BETWEEN_LINES = 10.0  # of the progress of a run whose stderr is a file
_EIGHTHS = " ▏▎▍▌▋▊▉"


def schedule_table(schedule: ExpertSchedule, *, ascii_only: bool = False) -> Table:
    """Return the table layer, alpha, bar, experts, top_k; the caption names estimator, rule, budget and rounding.

    A bar is as long as alpha - 1, the largest filling ``BAR_WIDTH``: 1 is the smallest exponent a fit can have.
    """
    from rich import box
    from rich.table import Table

    title = plain(schedule.model.id) if schedule.model else "schedule"
    table = Table(
        title=title, caption=_caption(schedule), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("alpha", justify="right", no_wrap=True)
    table.add_column("alpha - 1", no_wrap=True, min_width=BAR_WIDTH)
    table.add_column("experts", justify="right", no_wrap=True)
    table.add_column("top_k", justify="right", no_wrap=True)
    largest = max((layer.alpha - 1 for layer in schedule.layers if layer.alpha is not None), default=0.0)
    for layer in schedule.layers:
        name = f"{plain(layer.stack)} {layer.layer}" if layer.stack else str(layer.layer)
        alpha = "-" if layer.alpha is None else f"{layer.alpha:.3f}"
        length = 0.0 if layer.alpha is None or largest <= 0 else (layer.alpha - 1) / largest
        table.add_row(name, alpha, bar(length, ascii_only=ascii_only), str(layer.num_experts), str(layer.top_k))
    return table


def bar(share: float, *, width: int = BAR_WIDTH, ascii_only: bool = False) -> str:
    """Return a bar that fills ``share`` (clamped to 0..1) of ``width`` characters, to an eighth of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def print_table(make: Callable[[bool], RenderableType]) -> None:
    """Print ``make(ascii_only)`` to stdout: in a terminal at its width, into a pipe or file as wide as it needs to be.

    Colour follows rich: none without a terminal or with NO_COLOR.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    renderable = make(ascii_only)
    if not console.is_terminal:
        console.width = max(console.measure(renderable, options=console.options.update(max_width=10_000)).maximum, 80)
    with console.capture() as captured:
        console.print(renderable)
    lines = (line.rstrip() for line in captured.get().splitlines())
    print_text("\n".join(lines) + "\n")


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
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(plain(what), total=None, matrices="")

        def update(state: Progress) -> None:
            counts = f"{state.done}/{state.total}"
            display.update(task, total=state.bytes_total, completed=state.bytes_done, matrices=counts)

        yield update


def _lines(what: str) -> Callable[[Progress], None]:
    started = shown = time.monotonic()

    def update(state: Progress) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < SECONDS_BETWEEN_LINES and state.done < state.total:
            return
        shown = now
        left = (now - started) * (state.bytes_total - state.bytes_done) / max(state.bytes_done, 1)
        note(f"{what}: {state.done}/{state.total} matrices, {now - started:.0f} s, about {left:.0f} s left")

    return update


def _caption(schedule: ExpertSchedule) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in schedule.rule.params.items())
    rule = f"{schedule.rule.name} ({settings})" if settings else schedule.rule.name
    estimator = schedule.analysis.estimator if schedule.analysis else "unknown (alphas given by hand)"
    totals = schedule.totals
    return (
        f"estimator {plain(estimator)}, rule {plain(rule)}, rounding {plain(schedule.rounding)}\n"
        f"{totals.num_experts} experts in {totals.num_layers} layers, {totals.fewest_experts} to {totals.most_experts} "
        f"a layer; schedule {schedule.id}"
    )
