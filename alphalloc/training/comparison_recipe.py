"""The recipe of a comparison: one training recipe for all, the arms that differ from it, the seeds, and the test."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from alphalloc.errors import RecipeError
from alphalloc.training.data import FILES
from alphalloc.training.recipe import Positive, Recipe, Section, spelled_out
from alphalloc.training.recipe_keys import explain, layered

ARM_SECTIONS = ("schedule", "adapter")  # in which arms may differ; all else is the same for all of them
# What a tuned key must not change: what an arm is and its size (schedules are made once), the examples, the seeds.
NOT_TUNED = (
    "model", "revision", "preset", "seed", "output", "schedule", "data.train", "data.eval", "data.eval_share",
    "data.name", "data.exclude", "data.split", "data.eval_split", "data.format", "data.template", "data.limit",
    "adapter.method", "adapter.r", "adapter.target_modules", "adapter.lora_ranks", "adapter.share_router",
    "adapter.rank_mode",
)  # fmt: skip


class Arm(Section):
    """One way to spend the parameters.

    Attributes:
        name: letters, digits and ``._-``: its folder and its row.
        schedule, adapter: what differs from ``base``; a schedule's file or counts replace that of ``base``.
        any_size: it is known to have another number of parameters; its row says so. Otherwise that is an error.
    """

    name: str
    schedule: dict[str, Any] = Field(default_factory=dict)
    adapter: dict[str, Any] = Field(default_factory=dict)
    any_size: bool = False

    @field_validator("name")
    @classmethod
    def _a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError("expected a name of letters, digits and '._-' (it becomes a folder)")
        return name


class TestSettings(Section):
    """What is measured in the end.

    Attributes:
        data: the test examples: read as training data are, evaluated on once, after all training.
        split, name: of a hub data set.
        limit: the first examples only.
        overlap: where training examples are test (or validation) examples too: ``refuse`` the comparison, or ``drop``
            them from training and say how many. For ``drop`` the held-out data are files.
        options: the answers to choose from, where the examples name none.
        mode, normalisation, pattern, max_new_tokens, batch_size: as of :func:`alphalloc.training.evaluate.evaluate`.
    """

    data: str
    split: str = "test"
    name: str | None = None
    limit: Positive | None = None
    overlap: Literal["refuse", "drop"] = "refuse"
    options: tuple[str, ...] | None = None
    mode: Literal["likelihood", "generate"] = "likelihood"
    normalisation: Literal["sum", "token", "character"] = "sum"
    pattern: str | None = None
    max_new_tokens: Positive = 128
    batch_size: Positive = 16

    @model_validator(mode="after")
    def _drops_by_files(self) -> TestSettings:
        if self.overlap == "drop" and not self.data.endswith(FILES):
            raise ValueError(f"overlap drop needs test data in a file ({', '.join(FILES)}), got {self.data!r}")
        return self


class TuneSettings(Section):
    """How one hyper-parameter is chosen, for every arm by the same rule.

    Every arm is trained with every value, with the first seed. The value with the highest accuracy on the validation
    examples wins, the earlier of equal ones. Then all seeds are trained with it, the first one anew.

    Attributes:
        key: of the training recipe, such as ``optim.learning_rate``; none of ``NOT_TUNED``.
        values: at least two.
        validation: examples, none of which is in the training or test data.
    """

    key: str
    values: Annotated[tuple[Any, ...], Field(min_length=2)]
    validation: str

    @field_validator("key")
    @classmethod
    def _leaves_the_arms(cls, key: str) -> str:
        if any(key == name or key.startswith(f"{name}.") for name in NOT_TUNED) or "." not in key:
            raise ValueError(
                "expected a hyper-parameter such as optim.learning_rate; schedule, size and examples of an arm stay as "
                "they are"
            )
        return key


class ComparisonRecipe(Section):
    """A comparison of arms.

    Attributes:
        task: what it is called in the results.
        base: a training recipe (without ``output`` and ``seed``); its schedule and adapter are the arms' defaults.
        test: see there.
        arms: two or more; the first is what sizes are compared with.
        seeds: each arm is trained once with each. 0, 1, 2: the papers' tables have three runs (arXiv 2402.08562).
        tune: None: all arms have the hyper-parameters of ``base``.
        untrained: whether the model without any adapter is evaluated too.
    """

    task: str
    base: dict[str, Any]
    test: TestSettings
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0, 1, 2)
    tune: TuneSettings | None = None
    untrained: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> ComparisonRecipe:
        for what, names in (("arms", [arm.name for arm in self.arms]), ("seeds", list(self.seeds))):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have one name: {names}")
        return self

    @classmethod
    def of(cls, values: dict[str, Any], *, where: str = "the comparison") -> ComparisonRecipe:
        """Return the recipe of plain ``values``; every arm's training recipe is checked too.

        Raises RecipeError for a key that does not exist, a value out of range, or an arm that changes more than its
        schedule and adapter: hyper-parameters are the same for all, or tuned for all.
        """
        arms = values.get("arms")
        for arm in arms if isinstance(arms, list | tuple) else ():
            other = set(arm) & set(Recipe.model_fields) - {*ARM_SECTIONS} if isinstance(arm, dict) else set()
            if other:
                raise RecipeError(
                    f"{where}: arm {arm.get('name')!r} sets {', '.join(sorted(other))}; arms differ in schedule and "
                    "adapter alone, everything else stands in base (or is tuned for all by tune)"
                )
        try:
            recipe = cls.model_validate(values)
        except ValidationError as exc:
            raise RecipeError(f"{where}: {explain(exc, cls)}") from exc
        for arm in recipe.arms:
            for tuned in (None,) if recipe.tune is None else recipe.tune.values:
                recipe.training(arm, seed=recipe.seeds[0], output="checked", tuned=tuned)
        return recipe

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ComparisonRecipe:
        """Return the comparison in a YAML file; errors as :meth:`of`."""
        from alphalloc.training.recipe_files import read_yaml

        return cls.of(read_yaml(Path(path)), where=str(path))

    def training(self, arm: Arm, *, seed: int, output: str, tuned: Any = None) -> Recipe:
        """Return the training recipe of one arm and seed; ``tuned`` is the value of the tuned key, None for none."""
        arm_values = {"schedule": arm.schedule, "adapter": arm.adapter, "seed": seed, "output": output}
        recipe = Recipe.of(layered(spelled_out(self.base), arm_values), where=f"arm {arm.name!r}")
        if self.test.overlap == "drop":
            held_out = [self.test.data, *(() if self.tune is None else (self.tune.validation,))]
            recipe = recipe.changed(data={"exclude": [*recipe.data.exclude, *held_out]})
        if self.tune is None or tuned is None:
            return recipe
        import json

        return recipe.changed(f"{self.tune.key}={json.dumps(tuned)}")
