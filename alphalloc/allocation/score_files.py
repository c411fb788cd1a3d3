"""Reads scores that another program wrote: CSV or JSON, one a layer or one a module.

CSV: a header with ``layer`` and ``score``, and ``stack`` and ``role`` if they are needed. JSON: a list of numbers
(layer 0 first), a list of objects with the same fields, or an object whose ``scores`` is one of these and that may
say ``name`` and ``direction``. Layers count from 0 in each stack, without gaps.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphalloc.allocation.parts import Direction
from alphalloc.allocation.references import LayerRef
from alphalloc.allocation.signals import SignalScores, external_scores
from alphalloc.allocation.slots import Slot
from alphalloc.documents import read_text
from alphalloc.errors import InvalidScoresError

MAX_BYTES = 16 * 2**20  # chosen here: a million scores with names
FIELDS = ("layer", "score", "stack", "role")


def read_scores(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    direction: Direction | None = None,
    expected: Sequence[LayerRef] | None = None,
) -> SignalScores:
    """Return the scores in the file at ``path``.

    ``name`` and ``direction`` ("higher" gets more, or "lower") win over what the file says; without either they are the
    file's name and "higher". ``expected`` are the layers of the model that the scores are for.

    Raises InvalidScoresError, naming the file and the line or layer, when the file cannot be read, when a layer is
    missing, unknown or there twice, or when a score is not a finite number.
    """
    source = Path(path)
    rows, said = _rows(_text(source), source)
    scores: dict[Slot, float] = {}
    for where, row in rows:
        slot = _slot(row, f"{source}: {where}")
        if slot in scores:
            raise InvalidScoresError(f"{source}: {where}: layer {slot} is there twice")
        scores[slot] = _score(row.get("score"), f"{source}: {where}")
    if not scores:
        raise InvalidScoresError(f"{source}: expected one score a layer, found none")
    _check_layers(scores, expected, source)
    return external_scores(
        scores,
        name=name or str(said.get("name") or source.stem),
        direction=direction or said.get("direction") or "higher",
        source=source.name,
    )


Rows = list[tuple[str, Mapping[str, Any]]]


def _text(source: Path) -> str:
    try:
        return read_text(source, MAX_BYTES)
    except (OSError, ValueError) as exc:
        raise InvalidScoresError(f"{source}: cannot be read as scores: {exc}") from exc


def _rows(text: str, source: Path) -> tuple[Rows, Mapping[str, Any]]:
    if text.lstrip()[:1] in ("[", "{"):
        return _json_rows(text, source)
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [field.strip() for field in reader.fieldnames or ()]
    _check_fields(header, f"{source}: header")
    reader.fieldnames = header
    try:
        rows: Rows = [(f"line {reader.line_num}", row) for row in reader]
    except csv.Error as exc:
        raise InvalidScoresError(f"{source}: not a CSV file: {exc}") from exc
    for where, row in rows:
        if None in row or None in row.values():  # too many values, or too few
            raise InvalidScoresError(f"{source}: {where}: expected {len(header)} values, as in the header")
    return rows, {}


def _json_rows(text: str, source: Path) -> tuple[Rows, Mapping[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidScoresError(f"{source}: not valid JSON: {exc}") from exc
    said = value if isinstance(value, dict) else {}
    scores = said.get("scores") if isinstance(value, dict) else value
    if not isinstance(scores, list):
        raise InvalidScoresError(f"{source}: expected a list of scores, or an object with the list 'scores'")
    rows: Rows = []
    for position, item in enumerate(scores):
        where = f"entry {position}"
        row = item if isinstance(item, dict) else {"layer": position, "score": item}
        _check_fields([str(key) for key in row], f"{source}: {where}")
        rows.append((where, row))
    return rows, said


def _check_fields(fields: Iterable[str], where: str) -> None:
    names = list(fields)
    missing = [name for name in ("layer", "score") if name not in names]
    if missing:
        raise InvalidScoresError(
            f"{where}: expected {missing[0]!r} among the fields, found {', '.join(names) or 'none'}"
        )
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise InvalidScoresError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")


def _slot(row: Mapping[str, Any], where: str) -> Slot:
    value = row.get("layer")
    text = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidScoresError(f"{where}: layer must be a whole number from 0, found {value!r}")
    stack, role = row.get("stack") or "", row.get("role") or None
    if not isinstance(stack, str) or not isinstance(role, (str, type(None))):
        raise InvalidScoresError(f"{where}: stack and role must be text, found {stack!r} and {role!r}")
    return Slot(int(text), stack.strip(), role.strip() if role else None)


def _score(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidScoresError(f"{where}: score must be a finite number, found {value!r}")
    return number


def _check_layers(scores: Mapping[Slot, float], expected: Sequence[LayerRef] | None, source: Path) -> None:
    roles = {slot.role is None for slot in scores}
    if len(roles) > 1:
        raise InvalidScoresError(f"{source}: some scores have a role and some have none; give all of them one")
    found = {(slot.stack, slot.layer) for slot in scores}
    if expected is not None:
        wanted = {(ref.stack, ref.layer) for ref in expected}
    else:
        deepest: dict[str, int] = {}
        for stack, layer in found:
            deepest[stack] = max(layer, deepest.get(stack, 0))
        if sum(deepest.values()) > 100 * len(found):  # a gap that large is a wrong number, not a list of layers
            raise InvalidScoresError(
                f"{source}: layers are missing: {len(found)} scores, layers up to {max(deepest.values())}"
            )
        wanted = {(stack, layer) for stack, last in deepest.items() for layer in range(last + 1)}
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        stack, layer = missing[0]
        raise InvalidScoresError(f"{source}: layer {Slot(layer, stack)} has no score ({len(missing)} missing)")
    if extra:
        stack, layer = extra[0]
        raise InvalidScoresError(f"{source}: layer {Slot(layer, stack)} is not one of the model's {len(wanted)} layers")
