"""A schedule as a person sees it: a row a layer (or module), and the columns it has something to say in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from alphalloc.cli.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from alphalloc.allocation import ExpertSchedule

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


def schedule_report(schedule: ExpertSchedule, *, ascii_only: bool = False) -> RenderableType:
    """Return the model's name, the table of layers, and lines that name estimator, rule, rounding, budget and id."""
    from rich.console import Group
    from rich.text import Text

    title = plain(schedule.model.id) if schedule.model else "schedule"
    caption = "\n".join(_caption(schedule))
    return Group(Text(title, style="bold"), schedule_table(schedule, ascii_only=ascii_only), Text(caption))


def schedule_table(schedule: ExpertSchedule, *, ascii_only: bool = False) -> Table:
    """Return the table layer, alpha (or the signal), bar, experts, top_k; rank and range where the schedule has them.

    The bar of an alpha is as long as alpha - 1, the largest filling ``BAR_WIDTH``: 1 is the smallest exponent a fit can
    have. That of another signal is as long as the score itself.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    columns = _columns(schedule, ascii_only)
    for heading, _ in columns:
        bars = heading == _bar_heading(schedule)
        table.add_column(
            heading, justify="left" if bars else "right", no_wrap=True, min_width=BAR_WIDTH if bars else None
        )
    for row in range(len(schedule.slots)):
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def bar(share: float, *, width: int = BAR_WIDTH, ascii_only: bool = False) -> str:
    """Return a bar that fills ``share`` (clamped to 0..1) of ``width`` characters, to an eighth of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _columns(schedule: ExpertSchedule, ascii_only: bool) -> list[tuple[str, Callable[[int], str]]]:
    entries: Any = schedule.slot_entries
    values = _values(schedule)
    lengths = _lengths(values, 0.0 if schedule.signal else 1.0)
    columns: list[tuple[str, Callable[[int], str]]] = [
        ("layer", lambda i: plain(str(schedule.slots[i]).replace(".", " "))),
        (plain(schedule.signal.name) if schedule.signal else "alpha", lambda i: _number(values[i])),
        (_bar_heading(schedule), lambda i: bar(lengths[i], ascii_only=ascii_only)),
        ("experts", lambda i: str(entries[i].num_experts)),
    ]
    confidence = schedule.confidence
    if confidence is not None:
        columns.append(("5-95 %", lambda i: f"{confidence.ranges[i].low}-{confidence.ranges[i].high}"))
    columns.append(("top_k", lambda i: str(entries[i].top_k)))
    if any(entry.rank is not None for entry in entries):
        columns.append(("rank", lambda i: _whole(entries[i].rank)))
    return columns


def _values(schedule: ExpertSchedule) -> list[float | None]:
    return [entry.score if schedule.signal else entry.alpha for entry in schedule.slot_entries]


def _lengths(values: list[float | None], start: float) -> list[float]:
    largest = max((value - start for value in values if value is not None), default=0.0)
    return [0.0 if value is None or largest <= 0 else (value - start) / largest for value in values]


def _bar_heading(schedule: ExpertSchedule) -> str:
    return f"{plain(schedule.signal.direction)} gets more" if schedule.signal else "alpha - 1"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3e}"


def _whole(value: int | None) -> str:
    return "-" if value is None else str(value)


def _caption(schedule: ExpertSchedule) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in schedule.rule.params.items())
    rule = f"{schedule.rule.name} ({settings})" if settings else schedule.rule.name
    estimator = schedule.analysis.estimator if schedule.analysis else "unknown (alphas given by hand)"
    totals, ranks = schedule.totals, [layer.rank for layer in schedule.layers if layer.rank is not None]
    signal = schedule.signal
    spread = f"{totals.fewest_experts} to {totals.most_experts} a layer"
    lines = [
        (
            f"estimator {plain(estimator)}"
            if signal is None
            else f"signal {plain(signal.name)} ({signal.direction} gets more)"
        )
        + f", rule {plain(rule)}, rounding {plain(schedule.rounding)}",
        f"{totals.num_experts} experts in {totals.num_layers} layers, {spread}; schedule {schedule.id}",
    ]
    if ranks:
        lines.append(f"ranks {min(ranks)} to {max(ranks)}, {sum(ranks)} in sum")
    if schedule.adapter is not None:
        adapter = schedule.adapter
        lines.append(
            f"{adapter.num_parameters:,} trainable parameters on {plain(', '.join(adapter.target_modules))} "
            f"({adapter.mola_parameters:,} with a router everywhere, as MoLA counts)"
        )
    if schedule.confidence is not None:
        lines.append(
            f"{schedule.confidence.changed:.0%} of {schedule.confidence.draws} draws within alpha's own error change "
            "the schedule"
        )
    return lines
