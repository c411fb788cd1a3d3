"""Rows in the form a client accepts: JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from alphalloc.errors import MissingExtraError

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


def acceptable(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the media type of ``offered`` that an Accept header prefers (RFC 9110, 12.5.1); None when none will do.

    Of equally welcome ones the first; without a header the first.
    """
    if not accept or not accept.strip():
        return offered[0]
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    best: tuple[float, str] | None = None
    for media in offered:
        quality = _quality(media, ranges)
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, media)
    return None if best is None else best[1]


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return the rows as CSV with a head line; a missing value is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def as_parquet(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return the rows as a Parquet file. Raises MissingExtraError without pyarrow."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as exc:
        raise MissingExtraError("Parquet needs pyarrow on the service's machine: pip install pyarrow") from exc
    data = {name: [row[at] for row in rows] for at, name in enumerate(columns)}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(data), sink)
    return sink.getvalue()


def _range(text: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = min(1.0, max(0.0, float(value)))
            except ValueError:
                quality = 1.0
    return media, quality


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that covers ``media``; 0 when none does."""
    for wanted in (media, media.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == wanted:
                return quality
    return 0.0
