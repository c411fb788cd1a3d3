"""Charts as static SVG, without any library: for light reports, for print and for pictures in a README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from alphalloc.report.axes import BOTTOM, CHARACTER, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, short, text_at
from alphalloc.report.charts import SCALE, AnyChart, Chart, HeatMap, Series, natural_height, number

# Colours of a picture that stands alone; in a page its style sheet decides.
STYLE = (
    "<style>svg{--ink:#1f2328;--soft:#59636e;--grid:#d8dee4;--paper:#fff;font:12px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6edf3;--soft:#9aa4af;--grid:#30363d;--paper:#0f1318}}</style>"
)


def picture(chart: AnyChart, *, height: int = HEIGHT) -> str:
    """Return the chart as one ``<svg>`` element, named and described for screen readers, in the page's colours.

    ``height`` is the least; a map of many rows takes more.
    """
    height = natural_height(chart, height)
    return _frame(drawing(chart, height=height), height, chart.title, chart.summary)


def standalone(charts: Sequence[AnyChart], *, height: int = HEIGHT) -> str:
    """Return an SVG document with the charts under one another, their titles above them: for a README.

    It follows the reader's choice of light or dark.
    """
    parts, offset = [STYLE], 0
    for chart in charts:
        parts.append(text_at(LEFT, offset + 22, chart.title, anchor="start", extra=' font-weight="600" font-size="14"'))
        parts.append(f'<g transform="translate(0 {offset + 32})">{drawing(chart, height=height)}</g>')
        offset += height + 40
    described = " ".join(chart.summary for chart in charts)
    body = _frame("".join(parts), offset, "; ".join(chart.title for chart in charts), described)
    return body.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def drawing(chart: AnyChart, *, height: int = HEIGHT) -> str:
    """Return what is inside the ``<svg>`` element."""
    return _heat_map(chart, height) if isinstance(chart, HeatMap) else _lines_and_bars(chart, height)


def scale_colour(share: float) -> str:
    """Return the colour at ``share`` (0 to 1) of the scale from low to high."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    first = min(int(place), len(SCALE) - 2)
    rest = place - first
    pairs = ((int(SCALE[first][i : i + 2], 16), int(SCALE[first + 1][i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * rest):02x}" for a, b in pairs)


def _frame(inside: str, height: float, title: str, summary: str) -> str:
    name = f"{escape(title)}. {escape(summary)}"
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">{inside}</svg>'


def _lines_and_bars(chart: Chart, height: int) -> str:
    legend, rows = _legend(chart)
    top = TOP + 18 * rows
    x, y = _x_axis(chart), _y_axis(chart, top, height)
    if x is None or y is None:
        return text_at(WIDTH / 2, height / 2, "nothing to draw", anchor="middle")
    parts = [legend, _grid(chart, x, y, height)]
    bars = [series for series in chart.series if series.kind == "bars"]
    for series in sorted(chart.series, key=lambda one: one.kind != "bars"):
        if series.kind == "bars":
            parts.append(_bars(chart, series, x, y, bars.index(series), len(bars)))
        else:
            parts.append(_line(chart, series, x, y))
    for i, mark in enumerate(chart.marks):
        if x.low <= mark.x <= x.high:
            place = x.at(mark.x)
            parts.append(
                f'<path d="M{place:.1f} {top}V{height - BOTTOM}" stroke="var(--soft)" stroke-dasharray="4 3"/>'
            )
            near_end = place > WIDTH - 160
            side = -5 if near_end else 5
            anchor = "end" if near_end else "start"
            parts.append(text_at(place + side, top + 11 + 14 * i, mark.name, anchor=anchor))
    return "".join(parts)


def _legend(chart: Chart) -> tuple[str, int]:
    """The names of the series in rows above the plot, and how many rows that took; nothing for a single one."""
    if len(chart.series) < 2 and not any(series.low for series in chart.series):
        return "", 0
    parts, at, row = [], float(LEFT), 0
    for series in chart.series:
        name = (
            f"{series.name} ({series.note})" if any(v is not None for v in series.low) and series.note else series.name
        )
        name = name if len(name) <= 60 else name[:59] + "…"
        width = 22 + CHARACTER * len(name)
        if at + width > WIDTH - RIGHT and at > LEFT:
            at, row = float(LEFT), row + 1
        level = TOP + 18 * row
        parts.append(_swatch(series, at, level) + text_at(at + 16, level + 4, name, anchor="start"))
        at += width
    return "".join(parts), row + 1


def _swatch(series: Series, at: float, level: float) -> str:
    if series.kind == "line":
        dash = ' stroke-dasharray="4 3"' if series.dashed else ""
        return f'<path d="M{at:.1f} {level}h12" stroke="{series.colour}" stroke-width="2.5"{dash}/>'
    if series.kind == "points":
        return f'<circle cx="{at + 6:.1f}" cy="{level}" r="3.5" fill="{series.colour}"/>'
    return f'<rect x="{at + 1:.1f}" y="{level - 5}" width="10" height="10" rx="2" fill="{series.colour}"/>'


def _x_axis(chart: Chart) -> Axis | None:
    if chart.labels:
        return Axis(-0.6, len(chart.labels) - 0.4, LEFT, WIDTH - RIGHT)
    values = [x for series in chart.series for x, y in zip(series.x, series.y, strict=False) if y is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    if chart.x_log:
        return Axis(low / 1.15, high * 1.15, LEFT, WIDTH - RIGHT, log=True)
    room = (high - low or 1.0) * 0.02
    return Axis(low - room, high + room, LEFT, WIDTH - RIGHT)


def _y_axis(chart: Chart, top: float, height: float) -> Axis | None:
    values = [v for series in chart.series for of in (series.y, series.low, series.high) for v in of if v is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    if chart.y_log:
        return Axis(low / 1.6, high * 1.6, height - BOTTOM, top, log=True)
    if chart.from_zero:
        low = min(low, 0.0)
    room = (high - low or abs(high) or 1.0) * 0.06
    return Axis(low if chart.from_zero else low - room, high + room, height - BOTTOM, top)


def _grid(chart: Chart, x: Axis, y: Axis, height: float) -> str:
    bottom = height - BOTTOM
    parts = []
    for value, text in y.ticks():
        level = y.at(value)
        parts.append(f'<path d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}" stroke="var(--grid)"/>')
        parts.append(text_at(LEFT - 8, level + 4, text, anchor="end", soft=True))
    for place, text in _label_ticks(chart.labels, x) if chart.labels else [(x.at(v), t) for v, t in x.ticks()]:
        parts.append(f'<path d="M{place:.1f} {bottom}v4" stroke="var(--soft)"/>')
        parts.append(text_at(place, bottom + 17, text, soft=True))
    parts.append(f'<path d="M{LEFT} {bottom:.1f}H{WIDTH - RIGHT}" stroke="var(--soft)"/>')
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, height - 8, chart.x_title))
    middle = (y.start + y.end) / 2
    parts.append(text_at(14, middle, chart.y_title, extra=f' transform="rotate(-90 14 {middle:.1f})"'))
    return "".join(parts)


def _label_ticks(labels: Sequence[str], x: Axis) -> list[tuple[float, str]]:
    """As many labels as fit beside one another."""
    widest = CHARACTER * max(len(short(text)) for text in labels) + 8
    step = max(1, math.ceil(widest / ((x.end - x.start) / len(labels))))
    step = next(nice for nice in (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, step) if nice >= step)
    return [(x.at(i), short(labels[i])) for i in range(0, len(labels), step)]


def _line(chart: Chart, series: Series, x: Axis, y: Axis) -> str:
    places = [x.at(value) for value in chart.positions(series)]
    levels = [None if value is None else y.at(value) for value in series.y]
    parts = []
    if series.kind == "points":
        parts += [_whisker(series, i, places[i], y) for i in range(len(places))]
    elif any(value is not None for value in series.low):
        parts.append(_band(series, places, y))
    if series.kind == "line":
        path, pen_up = [], True
        for place, level in zip(places, levels, strict=True):
            if level is not None:
                path.append(f"{'M' if pen_up else 'L'}{place:.1f} {level:.1f}")
            pen_up = level is None
        dash = ' stroke-dasharray="5 4"' if series.dashed else ""
        parts.append(
            f'<path d="{"".join(path)}" fill="none" stroke="{series.colour}" stroke-width="2" '
            f'stroke-linejoin="round" stroke-linecap="round"{dash}/>'
        )
    if series.kind == "points" or series.dots:
        size = 5.2 if series.kind == "points" else 4.4
        dots = "".join(
            f"M{place:.1f} {level:.1f}h0" for place, level in zip(places, levels, strict=True) if level is not None
        )
        parts.append(  # a line of no length with round ends is a dot, in a third of the bytes of a circle
            f'<path d="{dots}" stroke="{series.colour}" stroke-width="{size}" stroke-linecap="round" '
            'stroke-opacity=".85"/>'
        )
    return "".join(parts)


def _band(series: Series, places: Sequence[float], y: Axis) -> str:
    known = [
        (place, low, high)
        for place, low, high in zip(places, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    upper = [f"{place:.1f} {y.at(high):.1f}" for place, _, high in known]
    lower = [f"{place:.1f} {y.at(low):.1f}" for place, low, _ in reversed(known)]
    return f'<path d="M{"L".join([*upper, *lower])}Z" fill="{series.colour}" fill-opacity=".22"/>'


def _bars(chart: Chart, series: Series, x: Axis, y: Axis, position: int, among: int) -> str:
    step = (x.end - x.start) / (x.high - x.low)
    width = max(step * 0.82 / among, 0.8)
    parts = []
    for i, value in enumerate(series.y):
        if value is None:
            continue
        left = x.at(i) + (position - among / 2) * width
        level = y.at(value)
        parts.append(
            f'<rect x="{left:.1f}" y="{level:.1f}" width="{width * 0.94:.1f}" height="{max(y.start - level, 0):.1f}"/>'
        )
    whiskers = [_whisker(series, i, x.at(i) + (position + 0.5 - among / 2) * width, y) for i in range(len(series.y))]
    return f'<g fill="{series.colour}">{"".join(parts)}</g>{"".join(whiskers)}'


def _whisker(series: Series, i: int, place: float, y: Axis) -> str:
    low, high = (values[i] if i < len(values) else None for values in (series.low, series.high))
    if low is None or high is None or low == high:
        return ""
    bottom, top = y.at(low), y.at(high)
    return (
        f'<path d="M{place - 2.5:.1f} {top:.1f}h5m-2.5 0V{bottom:.1f}m-2.5 0h5" fill="none" stroke="var(--ink)" '
        'stroke-width="1.2"/>'
    )


def _heat_map(chart: HeatMap, height: int) -> str:
    left = min(24 + CHARACTER * max((len(short(name)) for name in chart.y_labels), default=1), 170.0)
    x = Axis(-0.5, max(len(chart.x_labels), 1) - 0.5, left, WIDTH - 96)
    y = Axis(-0.5, max(len(chart.y_labels), 1) - 0.5, TOP, height - BOTTOM)
    low, high = chart.limits
    wide, tall = (x.end - x.start) / (x.high - x.low), (y.end - y.start) / (y.high - y.low)
    parts = []
    for row, (name, values) in enumerate(zip(chart.y_labels, chart.values, strict=True)):
        cells = "".join(
            f'<rect x="{x.at(column - 0.5):.1f}" y="{y.at(row - 0.5):.1f}" width="{wide + 0.3:.1f}" '
            f'height="{tall:.1f}" fill="{scale_colour((value - low) / (high - low))}"/>'
            for column, value in enumerate(values)
            if value is not None
        )
        parts.append(cells)
        if row % max(1, math.ceil(13 / tall)) == 0:
            parts.append(text_at(left - 8, y.at(row) + 4, short(name), anchor="end"))
    if chart.x_labels:
        parts += [
            text_at(place, height - BOTTOM + 17, text, soft=True) for place, text in _label_ticks(chart.x_labels, x)
        ]
    parts.append(text_at((x.start + x.end) / 2, height - 8, chart.x_title))
    parts.append(_colour_bar(chart, low, high, height - BOTTOM - TOP))
    return "".join(parts)


def _colour_bar(chart: HeatMap, low: float, high: float, height: float) -> str:
    left, steps = WIDTH - 80, 24
    one = height / steps
    bar = "".join(
        f'<rect x="{left}" y="{TOP + height - one * (i + 1):.1f}" width="12" height="{one + 0.4:.1f}" '
        f'fill="{scale_colour((i + 0.5) / steps)}"/>'
        for i in range(steps)
    )
    marks = ((high, TOP + 9.0), ((low + high) / 2, TOP + height / 2 + 4), (low, TOP + height))
    texts = "".join(text_at(left + 18, level, number(value, 3), anchor="start", soft=True) for value, level in marks)
    return bar + texts + text_at(left + 30, TOP + height + 17, chart.value_title)
