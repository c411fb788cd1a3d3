"""Checkpoints that survive a kill or a full disk: one counts only when its list of files was written after them.

The trainer writes ``checkpoint-N`` file by file; ``complete.json`` with every file's size comes last, flushed and
renamed into place. Older checkpoints go only after that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphalloc.documents import pretty_json, write_atomic

MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-([0-9]{1,12})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, its optimizer step, and what was noted beside it."""

    folder: Path
    step: int
    notes: dict[str, Any]


def mark_complete(folder: Path, notes: dict[str, Any]) -> None:
    """Flush every file of a checkpoint to disk and write its marker. Raises OSError as the disk does."""
    sizes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_atomic(folder / MARKER, pretty_json({"files": sizes, "notes": notes}))


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Return the complete checkpoints in ``root``, oldest first."""
    found = [checkpoint for path in _folders(root) if (checkpoint := _read(path)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def remove_incomplete(root: Path) -> int:
    """Remove what a killed save left behind and return how many folders that were."""
    left = [path for path in _folders(root) if _read(path) is None]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def keep_newest(root: Path, count: int) -> None:
    """Remove all but the ``count`` newest complete checkpoints; a marker goes before its files."""
    for checkpoint in complete_checkpoints(root)[:-count]:
        (checkpoint.folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(checkpoint.folder, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    return [path for path in root.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]


def _read(folder: Path) -> Checkpoint | None:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in marker["files"].items())
        notes = dict(marker["notes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Checkpoint(folder, int(folder.name.partition("-")[2]), notes) if whole else None
