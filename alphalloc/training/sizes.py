"""How many parameters each arm of a comparison trains, counted on a model without weights, before any training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.allocation.parameters import EQUAL_WITHIN
from alphalloc.errors import TrainingError, UnsupportedCheckpointError
from alphalloc.training.adapters import adapt, parameter_table
from alphalloc.training.models import BaseModel, find_model
from alphalloc.training.recipe import Recipe
from alphalloc.training.schedules import check_depth, schedule_for


@dataclass(frozen=True)
class ArmSize:
    """An arm's trainable parameters."""

    name: str
    parameters: int


def count_arm(recipe: Recipe, name: str, saved: Path | None = None) -> tuple[ExpertSchedule, ArmSize]:
    """Return the schedule of a recipe (the ``saved`` one if there is one) and what its adapter trains.

    Raises as :func:`alphalloc.training.schedules.schedule_for`, and AdapterError when the adapter does not fit.
    """
    base = find_model(recipe.model, recipe.revision)
    if saved is None:
        schedule, _ = schedule_for(recipe.schedule, base)
    else:
        schedule = ExpertSchedule.load(saved)
        check_depth(schedule, base)
    model = adapt(_without_weights(base), recipe.adapter, schedule, seed=0)
    return schedule, ArmSize(name, parameter_table(model).trainable)


def check_sizes(sizes: Sequence[ArmSize], *, exempt: Collection[str] = ()) -> None:
    """Raise TrainingError when an arm's parameters differ from the first one's by more than 0.5 %."""
    first = sizes[0]
    wrong = [
        size
        for size in sizes
        if size.name not in exempt and abs(size.parameters - first.parameters) > EQUAL_WITHIN * first.parameters
    ]
    if wrong:
        found = ", ".join(f"{s.name} {s.parameters:,} ({s.parameters / first.parameters - 1:+.2%})" for s in wrong)
        raise TrainingError(
            f"expected arms within {EQUAL_WITHIN:.1%} of the {first.parameters:,} parameters of {first.name}, got "
            f"{found}; give plain LoRA lora_ranks 'equal', schedules the same budget, or mark the arm any_size: true"
        )


def _without_weights(base: BaseModel) -> Any:
    """The model's modules with parameters of the right shapes and no storage."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base.loads_from, revision=base.revision or "main")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError) as exc:
        raise UnsupportedCheckpointError(
            f"{base.source}: expected a causal language model that transformers can build: {exc}"
        ) from exc
