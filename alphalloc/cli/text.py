"""Text from outside made safe for a terminal: names come from checkpoints, and a checkpoint may be hostile."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_LINE = 4000  # chosen here: an error that lists the tensor names of an unknown model still fits


def plain(text: str) -> str:
    """Return ``text`` with what is not printable spelled out (the escape character becomes ``\\x1b``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """Return ``text`` on one line: white space joined, the rest as :func:`plain`, cut after ``MAX_LINE`` characters."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 3] + "..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or all names when none is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def byte_size(count: int) -> str:
    """Return ``count`` bytes in the largest binary unit that keeps it at 1 or more, such as ``"1.5 MiB"``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration(seconds: float) -> str:
    """Return ``seconds`` in the largest unit that keeps two digits, such as ``"45 s"``, ``"12 min"`` or ``"3.5 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
