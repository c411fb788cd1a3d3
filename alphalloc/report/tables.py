"""Every chart as a table, for screen readers, for copying and for those who prefer numbers; and the other tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from alphalloc.alphas import MatrixAlpha, ModelAlphas
from alphalloc.report.charts import AnyChart, Chart, HeatMap, Series, number
from alphalloc.report.model_charts import label


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of text; the first cell of a row names it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def chart_table(chart: AnyChart) -> Table:
    """Return what the chart draws, in numbers."""
    if isinstance(chart, HeatMap):
        columns = zip(*chart.values, strict=True) if chart.values else ()
        rows = tuple((name, *map(number, column)) for name, column in zip(chart.x_labels, columns, strict=False))
        return Table(chart.title, (chart.x_title, *chart.y_labels), rows)
    if chart.labels:
        header = (chart.x_title, *(one.name for one in chart.series))
        rows = tuple((name, *(_cell(series, i) for series in chart.series)) for i, name in enumerate(chart.labels))
        return Table(chart.title, header, rows)
    return _long(chart)


def matrix_table(matrices: Sequence[MatrixAlpha]) -> Table:
    """Return one row a matrix: its place, shape and fit, and what was measured beside it."""
    columns: dict[str, Callable[[MatrixAlpha], str]] = {
        "tensor": lambda m: m.name,
        "layer": lambda m: label(m.stack, m.layer) if m.layer >= 0 else "–",
        "role": lambda m: m.role,
        "shape": lambda m: f"{m.rows} × {m.cols}",
        "alpha": lambda m: number(m.alpha),
        "± sigma": lambda m: number(m.sigma, 2),
        "band": lambda m: "–" if m.stability_band is None else "{:.3f} – {:.3f}".format(*m.stability_band),
        "xmin": lambda m: number(m.xmin),
        "tail": lambda m: f"{m.num_tail} of {m.num_eigs}",
        "KS": lambda m: number(m.ks_distance, 3),
        "spikes": lambda m: number(m.num_spikes),
        "p": lambda m: number(m.gof_p_value, 2),
        "remark": lambda m: m.reason or ("" if m.status == "ok" else m.status),
    }
    kept = {name: [text(m) for m in matrices] for name, text in columns.items()}
    shown = [name for name, cells in kept.items() if any(cell not in ("–", "") for cell in cells)]
    rows = tuple(zip(*(kept[name] for name in shown), strict=True)) if shown else ()
    return Table("Every matrix", tuple(shown), rows)


def skipped_table(alphas: ModelAlphas) -> Table:
    """Return what was left out, one row a reason, with how many tensors and the first of them by name."""
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for tensor in alphas.skipped:
        by_reason.setdefault((tensor.by_design, tensor.reason), []).append(tensor.name)
    rows = tuple(
        (reason, "as intended" if by_design else "unexpected", str(len(names)), ", ".join(names[:4]) + _more(names))
        for (by_design, reason), names in sorted(by_reason.items())
    )
    return Table("Tensors that were left out", ("reason", "meant so", "tensors", "names"), rows)


def to_html(table: Table, *, body_id: str = "") -> str:
    """Return the table as HTML, every cell escaped; ``body_id`` for rows that a script fills in."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in row[1:])}</tr>'
        for row in table.rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">'
        f"<table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody{f' id={body_id}' if body_id else ''}>{body}</tbody></table></div>"
    )


def _cell(series: Series, i: int) -> str:
    text = number(series.y[i])
    low, high = (values[i] if i < len(values) else None for values in (series.low, series.high))
    return text if low is None or high is None else f"{text} ({number(low)} – {number(high)})"


def _long(chart: Chart) -> Table:
    """Columns of y beside a shared x; one row a point of a series where they do not share it."""
    shared = {series.x for series in chart.series}
    if len(shared) == 1:
        xs = chart.series[0].x
        rows = tuple((number(x), *(_cell(series, i) for series in chart.series)) for i, x in enumerate(xs))
        return Table(chart.title, (chart.x_title, *(series.name for series in chart.series)), rows)
    rows = tuple((series.name, number(x), _cell(series, i)) for series in chart.series for i, x in enumerate(series.x))
    return Table(chart.title, ("series", chart.x_title, chart.y_title), rows)


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - 4} more" if len(names) > 4 else ""
