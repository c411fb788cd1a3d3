"""Where values lie in a picture: axes, round ticks, and the text beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
CHARACTER = 6.9  # mean width of one at 12 px; SVG cannot measure text


@dataclass(frozen=True)
class Axis:
    """Where values lie between two pixels; ``log`` for a logarithmic one."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of ``value``."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return self.start + (self._scaled(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return some round values within, with their text."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def text_at(x: float, y: float, text: str, *, anchor: str = "middle", soft: bool = False, extra: str = "") -> str:
    """Return ``text`` at a place, escaped; ``soft`` for what is less important, ``extra`` attributes as they are."""
    ink = "var(--soft)" if soft else "var(--ink)"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink}"{extra}>{escape(text)}</text>'


def short(name: str) -> str:
    """Return the name, or what fits of it beside an axis."""
    return name if len(name) <= 22 else name[:21] + "…"


def _ticks(low: float, high: float, wanted: int = 6) -> list[tuple[float, str]]:
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [
        (i * step, f"{i * step:.{digits}f}" if abs(i * step) < 1e7 else f"{i * step:g}") for i in range(first, last + 1)
    ]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:  # within two decades: 1, 2 and 5 of each
        values = [nice * 10.0**power for power in range(first - 1, last + 1) for nice in (1, 2, 5)]
        return [(value, f"{value:g}") for value in values if low <= value <= high]
    step = max(1, math.ceil((last - first + 1) / 8))
    return [(10.0**power, _power_text(power)) for power in range(first, last + 1, step)]


def _power_text(power: int) -> str:
    if -2 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
