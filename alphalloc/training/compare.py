"""Trains the arms of a comparison over several seeds and evaluates all of them on one test split, once.

In the order that keeps it honest: sizes are counted and compared before anything is trained; every arm and seed is
trained (a finished run is never trained again, a broken one is); only then the test split is opened, which test.json
records with the digest of every adapter. A folder whose test is open trains nothing any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alphalloc.documents import pretty_json, write_atomic
from alphalloc.errors import DatasetError, TrainingError
from alphalloc.training import runs
from alphalloc.training.comparison import ArmResult, Comparison, SeedResult, arm_result, paired_results
from alphalloc.training.comparison_recipe import ComparisonRecipe
from alphalloc.training.data import Example, examples_digest, read_examples, without, words_of
from alphalloc.training.evaluate import check_examples
from alphalloc.training.models import find_model, load_tokenizer
from alphalloc.training.plans import Plan, plan_arms
from alphalloc.training.recipe import Recipe
from alphalloc.training.tokens import template_for

Progress = Callable[[str], None]


def compare_schedules(
    recipe_path: str | os.PathLike[str] | ComparisonRecipe,
    *,
    output: str | os.PathLike[str],
    resume: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Return what the comparison found, and write comparison.json and README.md into ``output``.

    Args:
        recipe_path: a YAML file, or the recipe itself.
        output: the comparison's folder: ``arms/NAME/seed-N/`` for each run.
        resume: go on in a folder that has runs already; False refuses it.
        progress: called with a line of text.

    Raises:
        RecipeError: the recipe makes no sense.
        TrainingError: arms differ by more than 0.5 % in parameters and are not marked ``any_size``; the folder holds
            runs of another recipe, schedule, model or data; the test was opened before all runs were there, or with
            other settings; ``resume`` False on a used folder.
        DatasetError: test (or validation) examples are also trained on, or cannot be asked as the recipe says.
    """
    recipe = recipe_path if isinstance(recipe_path, ComparisonRecipe) else ComparisonRecipe.load(recipe_path)
    folder, say = Path(output), progress or (lambda line: None)
    if not resume and (folder / "arms").exists():
        raise TrainingError(f"{folder}: expected an empty folder, it holds runs; resume them or choose another folder")
    held_out = _held_out(recipe)
    for line in _left_out(recipe):
        say(line)
    plans = plan_arms(recipe, folder, say)
    opened = runs.read_record(folder / "test.json")
    if recipe.tune is not None:
        plans = [_tuned(recipe, plan, folder, held_out["validation"], opened is not None, say) for plan in plans]
    for seed in recipe.seeds:  # seeds outside: when time runs out, all arms have equally many
        for plan in plans:
            _trained(recipe, plan, seed, folder, opened is not None, say)
    return _measure(recipe, plans, folder, held_out["test"], say)


def _held_out(recipe: ComparisonRecipe) -> dict[str, list[Example]]:
    """The test and validation examples: none is trained on, all can be asked. Nothing is evaluated here."""
    test = recipe.test
    found = {"test": read_examples(test.data, name=test.name, split=test.split, limit=test.limit)}
    if recipe.tune is not None:
        found["validation"] = read_examples(recipe.tune.validation)
    first = recipe.training(recipe.arms[0], seed=recipe.seeds[0], output="checked")
    data = first.data
    trained = read_examples(data.train, name=data.name, split=data.split, format=data.format)
    trained = without(trained, data.exclude) if data.exclude else trained
    _check_can_be_asked(recipe, first, trained, found)
    seen = dict.fromkeys(map(words_of, trained), "training")
    for what in ("validation", "test"):
        both = sorted(words_of(e) for e in found.get(what, []) if words_of(e) in seen)
        if both:
            raise DatasetError(
                f"{len(both)} {what} examples are also among the {seen[both[0]]} examples, such as {both[0][:80]!r}; "
                "remove duplicates before splitting, or set test.overlap to drop"
            )
        seen |= {words_of(e): what for e in found.get(what, [])}
    return found


def _check_can_be_asked(
    recipe: ComparisonRecipe, first: Recipe, trained: Sequence[Example], found: dict[str, list[Example]]
) -> None:
    """Raise now what the evaluations would raise after all training: no template, no options, no such pattern."""
    tokenizer = load_tokenizer(find_model(first.model, first.revision))
    template = template_for(trained, first.data.template)
    test = recipe.test
    for examples in found.values():
        check_examples(
            examples, tokenizer, mode=test.mode, template=template, options=test.options, pattern=test.pattern
        )


def _left_out(recipe: ComparisonRecipe) -> tuple[str, ...]:
    """How many examples are not trained on because they are test or validation examples; nothing where none is."""
    data = recipe.training(recipe.arms[0], seed=recipe.seeds[0], output="checked").data
    every = read_examples(data.train, name=data.name, split=data.split, format=data.format, limit=data.limit)
    count = len(every) - len(without(every, data.exclude))
    found = f"{count} of {len(every)} training examples are test or validation examples too: left out."
    return (found,) if count else ()


def _tuned(
    recipe: ComparisonRecipe, plan: Plan, folder: Path, validation: list[Example], opened: bool, say: Progress
) -> Plan:
    """The plan with the value that does best on the validation examples, by the rule of ``TuneSettings``."""
    assert recipe.tune is not None
    scores: dict[str, float] = {}
    for position, value in enumerate(recipe.tune.values):
        run = folder / "arms" / plan.arm.name / f"tune-{position}"
        training = _training(recipe, plan, recipe.seeds[0], run, value)
        runs.ensure_trained(training, run, frozen=opened, say=say)
        found = runs.ensure_evaluated(training, run, "validation", validation, recipe.test, say)
        scores[str(position)] = float(found["accuracy"])
    best = max(range(len(recipe.tune.values)), key=lambda position: scores[str(position)])
    write_atomic(
        folder / "arms" / plan.arm.name / "tuning.json",
        pretty_json({"key": recipe.tune.key, "values": list(recipe.tune.values), "accuracy": scores, "chosen": best}),
    )
    say(f"{plan.arm.name}: {recipe.tune.key} = {recipe.tune.values[best]}")
    return Plan(plan.arm, plan.schedule, plan.schedule_file, plan.size, recipe.tune.values[best])


def _training(recipe: ComparisonRecipe, plan: Plan, seed: int, run: Path, tuned: Any = None) -> Recipe:
    """The recipe of one run: the arm's, with the schedule that was written down."""
    training = recipe.training(plan.arm, seed=seed, output=str(run), tuned=tuned)
    return training.changed(
        schedule={**training.schedule.model_dump(), "file": str(plan.schedule_file), "counts": None}
    )


def _run_folder(folder: Path, arm: str, seed: int) -> Path:
    return folder / "arms" / arm / f"seed-{seed}"


def _trained(recipe: ComparisonRecipe, plan: Plan, seed: int, folder: Path, opened: bool, say: Progress) -> None:
    run = _run_folder(folder, plan.arm.name, seed)
    record = runs.ensure_trained(_training(recipe, plan, seed, run, plan.tuned), run, frozen=opened, say=say)
    if record["parameters"] != plan.size.parameters:
        raise TrainingError(
            f"{run}: expected {plan.size.parameters} trainable parameters as counted before, it trained "
            f"{record['parameters']}; remove the folder and start anew"
        )


def _measure(
    recipe: ComparisonRecipe, plans: Sequence[Plan], folder: Path, test: list[Example], say: Progress
) -> Comparison:
    """Open the test split, evaluate every run once, and write down what was found."""
    digest = examples_digest(test)
    adapters = {
        f"{plan.arm.name}/seed-{seed}": runs.adapter_digest(_run_folder(folder, plan.arm.name, seed))
        for plan in plans
        for seed in recipe.seeds
    }
    runs.open_test(folder / "test.json", digest, len(test), adapters, recipe.test)
    reference = plans[0].size.parameters
    arms = tuple(_measured(recipe, plan, folder, test, reference, say) for plan in plans)
    first_run = _run_folder(folder, plans[0].arm.name, recipe.seeds[0])
    first = _training(recipe, plans[0], recipe.seeds[0], first_run)
    untrained = runs.ensure_untrained(first, first_run, folder, test, recipe.test, say) if recipe.untrained else None
    settings = recipe.test.model_dump(mode="json", include={"mode", "normalisation"})
    comparison = Comparison(
        task=recipe.task,
        model=Path(first.model).name,
        steps=runs.finished_record(first_run)["steps"],
        batch_size=first.optim.batch_size,
        test={"sha256": digest, "examples": len(test), **settings},
        untrained=untrained,
        arms=arms,
        paired=paired_results(arms),
        notes=(*_left_out(recipe), *_notes(recipe, arms)),
        environment=runs.environment(),
    )
    write_atomic(folder / "comparison.json", comparison.to_json())
    write_atomic(folder / "README.md", comparison.markdown())
    return comparison


def _measured(
    recipe: ComparisonRecipe, plan: Plan, folder: Path, test: list[Example], reference: int, say: Progress
) -> ArmResult:
    """One arm's runs on the test split; ``reference`` is the size that its own is compared with."""
    results = []
    for seed in recipe.seeds:
        run = _run_folder(folder, plan.arm.name, seed)
        training = _training(recipe, plan, seed, run, plan.tuned)
        found = runs.ensure_evaluated(training, run, "test", test, recipe.test, say)
        results.append(_seed_result(seed, run.relative_to(folder), runs.finished_record(run), found))
    return arm_result(
        plan.arm.name,
        results,
        reference=reference,
        parameters=plan.size.parameters,
        any_size=plan.arm.any_size,
        schedule=plan.schedule.id,
        num_experts=tuple(layer.num_experts for layer in plan.schedule.layers),
        tuned=plan.tuned,
    )


def _seed_result(seed: int, run: Path, trained: dict[str, Any], found: dict[str, Any]) -> SeedResult:
    return SeedResult(
        seed=seed,
        accuracy=found["accuracy"],
        low=found["low"],
        high=found["high"],
        correct=found["correct"],
        total=found["total"],
        seconds=trained["seconds"],
        cpu_seconds=trained.get("cpu_seconds"),
        peak_memory=trained["peak_memory"],
        train_loss=trained["train_loss"],
        folder=run.as_posix(),
        right="".join("1" if p["correct"] else "0" for p in found["predictions"]),
    )


def _notes(recipe: ComparisonRecipe, arms: Sequence[ArmResult]) -> tuple[str, ...]:
    """What a reader must know to read the tables."""
    equal = [arm for arm in arms if not arm.any_size]
    sizes = (
        f"Parameters of the arms differ by at most {max(abs(arm.size_difference) for arm in equal):.3%} from the first"
        f"{'' if len(equal) == len(arms) else ', those marked as of any size excepted'}."
        if equal
        else "All arms are marked as of any size: their parameters differ as the table says."
    )
    tuned = (
        "All arms have the same hyper-parameters; none was tuned on these data."
        if recipe.tune is None
        else f"{recipe.tune.key} was chosen for every arm among {list(recipe.tune.values)} by accuracy on validation "
        "examples, with the first seed; the test examples had no part in it."
    )
    intervals = (
        f"Intervals over {len(recipe.seeds)} seeds are Student's; those over test examples keep the seeds fixed. One "
        "of no width over few seeds is a coincidence, not certainty."
    )
    return (
        sizes,
        tuned,
        "The test split was opened once, after all training.",
        intervals,
    )
