"""The charts as plotly figures: for notebooks, W&B, MLflow (``log_figure``) and the report itself. Needs plotly.

Each function takes saved values (alphas, schedules, a training's folder) and returns a ``plotly.graph_objects.Figure``.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from alphalloc.errors import MissingExtraError
from alphalloc.report import model_charts
from alphalloc.report.charts import GREY, SCALE, AnyChart, Chart, HeatMap, Series, natural_height

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from alphalloc.allocation import ExpertSchedule
    from alphalloc.alphas import MatrixAlpha, ModelAlphas

HEIGHT = 360  # pixels


def alpha_by_layer(alphas: ModelAlphas) -> go.Figure:
    """Return alpha by layer: the mean, its stability band where there is one, a point a role."""
    return figure(model_charts.alpha_by_layer(alphas))


def alpha_by_role(alphas: ModelAlphas) -> go.Figure:
    """Return a heat map of alpha: a column a layer, a row a role."""
    return figure(model_charts.alpha_by_role(alphas))


def experts_by_layer(*schedules: ExpertSchedule) -> go.Figure:
    """Return the experts of each layer, schedules side by side, with their confidence ranges."""
    return figure(model_charts.experts_by_layer(schedules))


def spectrum(matrix: MatrixAlpha) -> go.Figure | None:
    """Return the spectrum of one matrix, log-log, with its fitted tail; None where no histogram was saved."""
    chart = model_charts.spectrum(matrix)
    return None if chart is None else figure(chart)


def estimators(*documents: ModelAlphas) -> go.Figure:
    """Return alpha by layer of several documents of one model, a line each, named by their estimators."""
    return figure(model_charts.estimators(documents, [document.analysis.estimator for document in documents]))


def figure(chart: AnyChart) -> go.Figure:
    """Return any chart as a plotly figure. Raises MissingExtraError without plotly."""
    try:
        import plotly.graph_objects as go
    except ImportError as exc:
        raise MissingExtraError(
            "interactive figures need plotly: pip install 'alphalloc[report]' (or --light: static ones without it)"
        ) from exc
    made = go.Figure(specification(chart))
    made.update_layout(title_text=escape(chart.title), template="plotly_white")
    return made


def specification(chart: AnyChart) -> dict[str, Any]:
    """Return the figure as plotly's JSON: ``data`` and ``layout``, without colours that depend on light or dark."""
    return _heat_map(chart) if isinstance(chart, HeatMap) else _lines_and_bars(chart)


def _lines_and_bars(chart: Chart) -> dict[str, Any]:
    data = [trace for series in chart.series for trace in _traces(chart, series)]
    layout = _layout(chart)
    logarithmic = {"type": "log", "exponentformat": "power"}
    layout["xaxis"] |= logarithmic if chart.x_log else {}
    layout["yaxis"] |= logarithmic if chart.y_log else {}
    layout["yaxis"] |= {"rangemode": "tozero"} if chart.from_zero else {}
    layout["showlegend"] = len(chart.series) > 1
    layout["bargap"] = 0.18
    layout["shapes"] = [
        {
            "type": "line",
            "x0": m.x,
            "x1": m.x,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": GREY, "width": 1.5, "dash": "dash"},
        }
        for m in chart.marks
    ]
    layout["annotations"] = [_annotation(chart, i) for i in range(len(chart.marks))]
    if chart.labels:
        layout["xaxis"] |= _label_axis(chart.labels)
    return {"data": data, "layout": layout}


def _traces(chart: Chart, series: Series) -> list[dict[str, Any]]:
    x = list(chart.positions(series))
    name = escape(series.name)
    trace: dict[str, Any] = {"name": name, "x": x, "y": list(series.y), "hovertemplate": _hover(chart)}
    if chart.labels:
        trace["customdata"] = [escape(text) for text in chart.labels]
    has_range = any(value is not None for value in series.low)
    if series.kind == "bars":
        return [trace | {"type": "bar", "marker": {"color": series.colour}} | _whiskers(series, has_range)]
    trace |= {"type": "scatter", "mode": "markers" if series.kind == "points" else "lines"}
    if series.kind == "points":
        return [trace | {"marker": {"color": series.colour, "size": 6, "opacity": 0.85}} | _whiskers(series, has_range)]
    trace["line"] = {"color": series.colour, "width": 2.5, "dash": "dash" if series.dashed else "solid"}
    if series.dots:
        trace |= {"mode": "lines+markers", "marker": {"size": 5}}
    return ([_band(series, x)] if has_range else []) + [trace]


def _whiskers(series: Series, has_range: bool) -> dict[str, Any]:
    if not has_range:
        return {}
    both = [
        (0.0, 0.0) if None in (y, low, high) else (high - y, y - low)  # type: ignore[operator]  # none of them is None
        for y, low, high in zip(series.y, series.low, series.high, strict=True)
    ]
    up, down = zip(*both, strict=True)
    errors = {"type": "data", "symmetric": False, "array": list(up), "arrayminus": list(down)}
    return {"error_y": {**errors, "thickness": 1.2, "width": 3}}


def _band(series: Series, x: list[float]) -> dict[str, Any]:
    """A filled outline: there along the high end, back along the low one."""
    known = [
        (place, low, high)
        for place, low, high in zip(x, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(series.note),
        "x": [place for place, _, _ in known] + [place for place, _, _ in reversed(known)],
        "y": [high for _, _, high in known] + [low for _, low, _ in reversed(known)],
        "fill": "toself",
        "fillcolor": _transparent(series.colour),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"


def _hover(chart: Chart) -> str:
    where = f"{chart.x_title} %{{customdata}}" if chart.labels else f"{chart.x_title} %{{x:.4g}}"
    return f"{where}<br>{chart.y_title} %{{y:.4g}}"


def _annotation(chart: Chart, position: int) -> dict[str, Any]:
    mark = chart.marks[position]
    place = math.log10(mark.x) if chart.x_log else mark.x  # plotly places annotations on log axes by the logarithm
    low = {"y": 1 - 0.07 * position, "yref": "paper", "xanchor": "left", "showarrow": False}
    return {"x": place, "text": escape(mark.name), **low}


def _heat_map(chart: HeatMap) -> dict[str, Any]:
    low, high = chart.limits
    rows = len(chart.y_labels)
    every = 1 if rows <= 24 else 2 if rows <= 48 else 4
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in chart.values],
        "x": list(range(len(chart.x_labels))),
        "y": list(range(len(chart.y_labels))),
        "zmin": low,
        "zmax": high,
        "colorscale": [[i / (len(SCALE) - 1), colour] for i, colour in enumerate(SCALE)],
        "colorbar": {"title": {"text": escape(chart.value_title)}, "thickness": 12, "outlinewidth": 0},
        "customdata": [[[escape(y), escape(x)] for x in chart.x_labels] for y in chart.y_labels],
        "hovertemplate": "%{customdata[0]}, "
        f"{chart.x_title} %{{customdata[1]}}<br>{chart.value_title} %{{z:.4g}}<extra></extra>",
        "hoverongaps": False,
        "xgap": 1 if len(chart.x_labels) <= 48 else 0,
        "ygap": 1 if rows <= 24 else 0,
    }
    layout = _layout(chart)
    layout["xaxis"] |= {**_label_axis(chart.x_labels), "showgrid": False}
    layout["yaxis"] |= {
        "tickvals": list(range(0, rows, every)),
        "ticktext": [escape(text) for text in chart.y_labels[::every]],
        "range": [rows - 0.5, -0.5],
        "showgrid": False,
    }
    return {"data": [trace], "layout": layout}


def _layout(chart: AnyChart) -> dict[str, Any]:
    return {
        "height": natural_height(chart, HEIGHT),
        "margin": {"l": 64, "r": 16, "t": 40, "b": 48},
        "xaxis": {"title": {"text": escape(chart.x_title)}, "zeroline": False},
        "yaxis": {"title": {"text": escape(chart.y_title)}, "zeroline": False, "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"namelength": -1},
    }


def _label_axis(labels: tuple[str, ...]) -> dict[str, Any]:
    """Ticks at the labels, thinned to about thirty."""
    step = max(1, -(-len(labels) // 30))
    places = list(range(0, len(labels), step))
    return {
        "tickvals": places,
        "ticktext": [escape(labels[i]) for i in places],
        "range": [-0.6, len(labels) - 0.4],
    }
