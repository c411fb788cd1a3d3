"""``json``, ``yaml``, ``toml`` and ``csv``: the schedule itself."""

from __future__ import annotations

import csv
import io
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import MissingExtraError
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.yaml_text import plain_yaml

COLUMNS = ("stack", "layer", "role", "alpha", "score", "num_experts", "top_k", "rank")


def export_json(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return the schedule document, as ``schedule.save`` writes it."""
    return Export(text=schedule.to_json(), settings=schedule.document())


def export_yaml(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return the schedule document as YAML."""
    document = dict(sorted(schedule.document().items()))
    return Export(text=plain_yaml(document), settings=document)


def export_toml(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return the schedule document as TOML, which has no null: a field without a value is left out.

    Raises MissingExtraError without tomli-w.
    """
    try:
        import tomli_w
    except ImportError as exc:
        raise MissingExtraError("TOML needs tomli-w: pip install 'alphalloc[export]'") from exc
    document = _without_null(dict(sorted(schedule.document().items())))
    return Export(text=tomli_w.dumps(document), settings=document)


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, (list, tuple)) else value


def export_csv(schedule: ExpertSchedule, options: ExportOptions) -> Export:
    """Return one row a layer (or module) with the columns of COLUMNS; empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for slot, entry in zip(schedule.slots, schedule.slot_entries, strict=True):
        writer.writerow(
            [slot.stack, slot.layer, slot.role, entry.alpha, entry.score, entry.num_experts, entry.top_k, entry.rank]
        )
    return Export(text=stream.getvalue())
