"""What a report is made from: saved documents and training folders, told apart by what they say they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alphalloc.allocation import ExpertSchedule
from alphalloc.alphas import ModelAlphas
from alphalloc.documents import MAX_DOCUMENT_BYTES, read_text
from alphalloc.errors import DocumentError


@dataclass(frozen=True)
class Sources:
    """Alphas and schedules in the order they were given, and folders of trainings; ``files`` names the alphas first."""

    alphas: tuple[ModelAlphas, ...]
    schedules: tuple[ExpertSchedule, ...]
    trainings: tuple[Path, ...]
    files: tuple[str, ...]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Return what lies at ``paths``. Raises DocumentError for anything that is no source of a report.

    A folder is a training run or a comparison; a file is an alphas document or a schedule. One report is of one model
    or of one training: alphas and trainings are not mixed, and schedules alone have no report.
    """
    alphas: dict[str, ModelAlphas] = {}
    schedules: dict[str, ExpertSchedule] = {}
    trainings = [path for path in paths if path.is_dir()]
    for path in paths:
        if path in trainings:
            continue
        kind = _kind(path)
        if kind == "ModelAlphas":
            alphas[str(path)] = ModelAlphas.load(path)
        elif kind == "LoRAExpertSchedule":
            schedules[str(path)] = ExpertSchedule.load(path)
        else:
            raise DocumentError(f"{path}: expected an alphas document or a schedule, found kind {kind!r}")
    if trainings and (alphas or schedules):
        raise DocumentError("a report is of a model or of a training; give documents or folders, not both")
    if len(trainings) > 1:
        raise DocumentError(
            "one training or comparison makes one report; several runs are compared by their comparison folder"
        )
    if schedules and not alphas:
        raise DocumentError("a report needs the alphas: give alphas.json before the schedules (alphalloc analyze -o)")
    if not (alphas or trainings):
        raise DocumentError("expected an alphas document, or the folder of a training or comparison")
    return Sources(tuple(alphas.values()), tuple(schedules.values()), tuple(trainings), (*alphas, *schedules))


def _kind(path: Path) -> object:
    try:
        value = json.loads(read_text(path, MAX_DOCUMENT_BYTES))
    except (OSError, ValueError, RecursionError) as exc:
        raise DocumentError(f"{path}: cannot be read as a JSON document: {exc}") from exc
    return value.get("kind") if isinstance(value, dict) else None
