"""A chart as a frozen value: what is drawn, without saying how; figure, picture and table are made of the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["line", "points", "bars"]
Numbers = tuple[float | None, ...]

# Told apart on white and on near-black alike: each has a contrast of at least 3 to both (WCAG 1.4.11).
COLOURS = ("#3b7dd8", "#c9701f", "#2f935b", "#a15fc9", "#d04f4f", "#1f8f98", "#8f7f1d", "#c4559b")
GREY = "#7d8590"
SCALE = ("#440154", "#3e4a89", "#26828e", "#35b779", "#b5de2b", "#fde725")  # viridis, low to high


@dataclass(frozen=True)
class Series:
    """One line, cloud of points or row of bars.

    ``x`` is empty where the chart has labels: then ``y[i]`` belongs to ``labels[i]``. None in ``y`` is a gap. ``low``
    and ``high`` are a band around a line and whiskers on bars or points. ``note`` names what they are.
    """

    name: str
    y: Numbers
    x: tuple[float, ...] = ()
    kind: Kind = "line"
    low: Numbers = ()
    high: Numbers = ()
    note: str = ""
    colour: str = COLOURS[0]
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x`` with a name."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """Series over labels (layers) or over numbers. ``key`` is its name in a page; ``summary`` says it in a sentence."""

    key: str
    title: str
    summary: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    labels: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    x_log: bool = False
    y_log: bool = False
    from_zero: bool = False

    def positions(self, series: Series) -> tuple[float, ...]:
        """Return the x of every value of ``series``: its own, or the places of the labels."""
        return series.x or tuple(float(i) for i in range(len(series.y)))


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells: ``values[row][column]`` under ``x_labels[column]`` beside ``y_labels[row]``; None is empty."""

    key: str
    title: str
    summary: str
    x_title: str
    y_title: str
    x_labels: tuple[str, ...]
    y_labels: tuple[str, ...]
    values: tuple[Numbers, ...]
    value_title: str

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value, apart by something even where all are equal."""
        known = [value for row in self.values for value in row if value is not None]
        low, high = min(known, default=0.0), max(known, default=1.0)
        return (low, high) if high > low else (low - 0.5, low + 0.5)


AnyChart = Chart | HeatMap


def natural_height(chart: AnyChart, least: int) -> int:
    """Return the height in pixels that suits ``chart``: ``least``, or what the rows of a map need to be told apart."""
    return max(least, 70 + 12 * len(chart.y_labels)) if isinstance(chart, HeatMap) else least


def colour(position: int) -> str:
    """Return the colour of the series at ``position``; they repeat after eight."""
    return COLOURS[position % len(COLOURS)]


def number(value: float | None, digits: int = 4) -> str:
    """Return ``value`` as people read it: ``digits`` significant ones, no trailing zeros; a dash for None."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{digits}g}"
