"""The arms of a comparison before any training: each one's size, and its schedule, written down once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.documents import pretty_json, write_atomic
from alphalloc.errors import TrainingError
from alphalloc.training.comparison_recipe import Arm, ComparisonRecipe
from alphalloc.training.models import find_model
from alphalloc.training.recipe import Recipe
from alphalloc.training.runs import read_record
from alphalloc.training.sizes import ArmSize, check_sizes, count_arm

MADE_BY = "schedule-settings.json"  # beside schedule.json: the settings and the base model that it was made by


@dataclass(frozen=True)
class Plan:
    """An arm, ready to be trained: its schedule on disk, its size, and the value tuned for it (None: nothing is)."""

    arm: Arm
    schedule: ExpertSchedule
    schedule_file: Path
    size: ArmSize
    tuned: Any = None


def plan_arms(recipe: ComparisonRecipe, folder: Path, say: Callable[[str], None]) -> list[Plan]:
    """Return the plan of every arm; its schedule is made once, so that a stopped comparison goes on with the same.

    Schedules are written when all sizes are known to be equal. Raises TrainingError when they are not, and when runs
    were begun with a schedule that was made by other settings or from another model.
    """
    plans, made_by = [], []
    for arm in recipe.arms:
        first = recipe.training(arm, seed=recipe.seeds[0], output="checked")
        path = folder / "arms" / arm.name / "schedule.json"
        made_by.append(_made_by(first))
        schedule, size = count_arm(first, arm.name, path if _stands(path, made_by[-1]) else None)
        say(f"{arm.name}: {size.parameters:,} parameters")
        plans.append(Plan(arm, schedule, path, size))
    check_sizes([plan.size for plan in plans], exempt={arm.name for arm in recipe.arms if arm.any_size})
    for plan, settings in zip(plans, made_by, strict=True):
        if not _stands(plan.schedule_file, settings):
            _write(plan, settings)
    return plans


def _made_by(first: Recipe) -> dict[str, Any]:
    """What an arm's schedule depends on: the settings that have an effect, a file's content, and the base model."""
    settings = first.schedule.used()
    if first.schedule.file is not None:
        settings["file"] = ExpertSchedule.load(first.schedule.file).id
    return {"schedule": settings, "model": find_model(first.model, first.revision).reference.fingerprint}


def _stands(path: Path, settings: dict[str, Any]) -> bool:
    """Whether the schedule on disk is the recipe's; one that nothing was trained with yet may be made anew."""
    record = read_record(path.with_name(MADE_BY))
    if not path.exists() or record == settings:
        return path.exists()
    begun = any(path.parent.glob("*/recipe.yaml"))
    if begun and record is not None:
        raise TrainingError(
            f"{path}: expected the schedule of this recipe ({settings['schedule'] or 'all defaults'} of model "
            f"{settings['model']}), the runs here were begun with another ({record.get('schedule') or 'all defaults'} "
            f"of model {record.get('model')}); choose another output folder"
        )
    return begun  # 0.1.0 before this record: its runs have the schedule that lies here, whatever made it


def _write(plan: Plan, settings: dict[str, Any]) -> None:
    """Write the schedule, then what it was made by: a stop in between leaves a schedule that is made anew."""
    plan.schedule_file.parent.mkdir(parents=True, exist_ok=True)
    record = plan.schedule_file.with_name(MADE_BY)
    record.unlink(missing_ok=True)
    plan.schedule.save(plan.schedule_file)
    write_atomic(record, pretty_json(settings))
