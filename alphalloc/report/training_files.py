"""What a training leaves behind, read for its report: a run's card, log and routing; a comparison's document."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alphalloc.documents import MAX_DOCUMENT_BYTES, read_document, read_text
from alphalloc.errors import DocumentError


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class RoutingLine(_Read):
    """One linear at one logged step, as ``routing.jsonl`` has it: ``load`` is each expert's share of all picks."""

    step: int
    layer: int | None
    stack: str = ""
    role: str
    module: str
    num_experts: int = Field(ge=1)
    load: tuple[float, ...]
    entropy: float
    dead: tuple[int, ...] = ()


class Seed(_Read):
    """One training of an arm and its accuracy with its interval."""

    seed: int
    accuracy: float
    low: float
    high: float
    correct: int
    total: int
    seconds: float
    peak_memory: int | None = None
    folder: str


class Arm(_Read):
    """One arm over its seeds; ``interval`` is that of the mean over seeds."""

    name: str
    parameters: int
    accuracy_mean: float
    interval: tuple[float, float] | None = None
    num_experts: tuple[int, ...] = ()
    seeds: tuple[Seed, ...]


class Paired(_Read):
    """``first`` minus ``second``, with its intervals over seeds and over test examples."""

    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None = None
    question_interval: tuple[float, float] | None = None


class ComparisonDocument(_Read):
    """What ``comparison.json`` holds."""

    task: str
    model: str = ""
    steps: int | None = None
    untrained: dict[str, Any] | None = None
    arms: tuple[Arm, ...] = Field(min_length=1)
    paired: tuple[Paired, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run's folder: its card, the numbers it logged (``series[name]`` is steps and values) and its routing."""

    folder: Path
    card: dict[str, Any]
    series: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    routing: tuple[RoutingLine, ...]


def read_run(folder: Path) -> Run:
    """Return the run in ``folder``. Raises DocumentError when it is none, or a file of it is damaged."""
    card = folder / "card.json"
    if not card.is_file():
        raise DocumentError(f"{folder}: expected a training's folder, with a card.json or a comparison.json in it")
    lines = _lines(folder / "log.jsonl")
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                steps, values = series.setdefault(name, ([], []))
                steps.append(float(line.get("step", 0)))
                values.append(float(value))
    routing = folder / "routing.jsonl"
    try:
        routed = tuple(RoutingLine.model_validate(line) for line in _lines(routing))
    except ValidationError as exc:
        raise DocumentError(f"{routing}: {_first(exc)}") from exc
    return Run(
        folder,
        read_document(card, kind="TrainingRun", major=1),
        {name: (tuple(steps), tuple(values)) for name, (steps, values) in series.items()},
        routed,
    )


def read_comparison(folder: Path) -> ComparisonDocument:
    """Return the comparison in ``folder``. Raises DocumentError."""
    path = folder / "comparison.json"
    value = read_document(path, kind="ScheduleComparison", major=1)
    try:
        return ComparisonDocument.model_validate(value)
    except ValidationError as exc:
        raise DocumentError(f"{path}: {_first(exc)}") from exc


def is_comparison(folder: Path) -> bool:
    """Return whether ``folder`` holds a comparison and not a single run."""
    return (folder / "comparison.json").is_file()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; none when it is not there, and without a last line that was never finished."""
    if not path.is_file():
        return []
    try:
        texts = read_text(path, MAX_DOCUMENT_BYTES).split("\n")[:-1]
        found = [json.loads(text) for text in texts if text.strip()]
    except (OSError, ValueError, RecursionError) as exc:
        raise DocumentError(f"{path}: cannot be read as JSON lines: {exc}") from exc
    if not all(isinstance(line, dict) for line in found):
        raise DocumentError(f"{path}: expected one JSON object a line")
    return found


def _first(exc: ValidationError) -> str:
    error = exc.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
