"""The folder of a run: whether it is new, to be resumed, or finished, decided before anything expensive."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphalloc.documents import write_atomic
from alphalloc.errors import OutputError, TrainingError
from alphalloc.training.card import read_card
from alphalloc.training.checkpoints import Checkpoint, complete_checkpoints, remove_incomplete
from alphalloc.training.recipe import Recipe

# What may differ between a run and its continuation: none of it changes a trained number, and the batches of an
# evaluation change its loss by rounding alone.
FREE = ("output", "run.report_to", "run.picture", "run.workers", "run.keep", "run.save_every", "run.eval_batch_size")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; ``checkpoint`` is where it goes on, ``finished`` the card of a run with nothing left to do."""

    path: Path
    checkpoint: Checkpoint | None = None
    finished: dict[str, Any] | None = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Where the trained adapter is."""
        return self.path / "adapter"


def open_run(recipe: Recipe, *, resume: bool) -> RunFolder:
    """Return what is in the folder of ``recipe.output``; nothing is written yet.

    Raises:
        TrainingError: it holds something and ``resume`` was not asked for, or it holds another recipe's run.
        OutputError: it cannot be read.
    """
    path = Path(recipe.output)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            return _continued(path, recipe, resume=resume)
    except OSError as exc:
        raise OutputError(f"{path}: the run's folder cannot be read: {exc.strerror or exc}") from exc
    return RunFolder(path)


def make_folder(folder: RunFolder, recipe: Recipe) -> None:
    """Make the folder with the recipe in it, and remove what killed saves left behind. Raises OutputError."""
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomic(folder.path / "recipe.yaml", recipe.to_yaml())
    except OSError as exc:
        raise OutputError(f"{folder.path}: the run's folder cannot be written: {exc.strerror or exc}") from exc
    remove_incomplete(folder.checkpoints)
    for left in folder.path.glob(".adapter-*"):
        shutil.rmtree(left, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Put a finished folder in the place of ``target``: whoever looks sees the old one, none, or the new one whole."""
    if target.exists():
        shutil.rmtree(target)
    os.rename(folder, target)


def scratch_beside(target: Path) -> Path:
    """Return a new hidden folder on the same disk as ``target``."""
    return Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))


def _continued(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    if not resume:
        raise TrainingError(f"{path} is not empty; resume what is in it, or choose another output")
    if not path.is_dir() or not (path / "recipe.yaml").is_file():
        raise TrainingError(f"{path} holds no run to resume; choose another output")
    _same_recipe(Recipe.load(path / "recipe.yaml"), recipe, path)
    card = read_card(path)
    if card is not None and card["status"] == "finished" and (path / "adapter").is_dir():
        return RunFolder(path, finished=card)
    complete = complete_checkpoints(path / "checkpoints")
    return RunFolder(path, checkpoint=complete[-1] if complete else None)


def _same_recipe(before: Recipe, now: Recipe, path: Path) -> None:
    old, new = _flat(before.plain()), _flat(now.plain())
    used = {f"schedule.{key}" for recipe in (before, now) for key in recipe.schedule.used()}
    idle = {key for key in old if key.startswith("schedule.")} - used  # what stands beside a file has no effect
    for key in old:
        if key not in FREE and key not in idle and old[key] != new.get(key):
            raise TrainingError(
                f"{path} holds a run with {key} {old[key]!r}, the recipe has {new.get(key)!r}; resume with the same "
                "recipe or choose another output"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
