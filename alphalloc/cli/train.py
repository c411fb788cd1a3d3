"""``alphalloc train``: an adapter trained by a recipe, or by a few options in its place."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphalloc.cli import options, output, render
from alphalloc.cli.text import byte_size, duration
from alphalloc.errors import RecipeError

if TYPE_CHECKING:
    from alphalloc.training.callbacks import TrainProgress
    from alphalloc.training.recipe import Recipe
    from alphalloc.training.train import TrainResult

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE.yaml] [KEY=VALUE]...", help="A recipe, and keys to set in it, such as optim.steps=60."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Folder, hub id or .gguf file to train on.")
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="A .jsonl file, a folder or hub id of a data set.")
]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", metavar="FILE", help="A saved schedule.  [default: made from the model's spectrum]"),
]
Preset = Annotated[str | None, typer.Option(metavar="NAME", help="A paper's settings: alphalora, mola or moelora.")]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="FOLDER", help="The run's folder.")]
Steps = Annotated[int | None, typer.Option(metavar="N", min=1, help="Optimizer steps.")]
Seed = Annotated[int | None, typer.Option(metavar="N", min=0, help="Seed of everything random.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on at the last complete checkpoint; start if there is none.")
]


def train(
    arguments: Arguments = None,
    model: ModelOption = None,
    schedule: Schedule = None,
    data: Data = None,
    preset: Preset = None,
    folder: Output = None,
    steps: Steps = None,
    seed: Seed = None,
    resume: Resume = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a MoE-LoRA or LoRA adapter. What the options say wins over the recipe."""
    named = {
        "model": model,
        "data.train": data,
        "schedule.file": schedule,
        "preset": preset,
        "output": folder,
        "optim.steps": steps,
        "seed": seed,
    }
    recipe = read_recipe(list(arguments or ()), {name: value for name, value in named.items() if value is not None})

    from alphalloc.training.train import train as train_recipe

    leads = os.environ.get("RANK", "0") == "0"  # of processes that train together one speaks
    result = train_recipe(recipe, resume=resume, progress=None if quiet or not leads else Lines())
    if not leads:
        return
    if as_json:
        output.print_json(json.dumps(result.document()))
    else:
        output.print_text(_summary(result))
    if not quiet:
        render.closing_notes(result.warnings, [result.folder / "adapter", result.folder / "card.json"])


def read_recipe(arguments: list[str], named: dict[str, Any]) -> Recipe:
    """Return the recipe of a file and ``key=value`` texts, or of the latter alone; ``named`` wins over both."""
    from alphalloc.training.recipe import Recipe
    from alphalloc.training.recipe_keys import with_overrides

    file = arguments.pop(0) if arguments and "=" not in arguments[0] else None
    named_texts = [f"{key}={json.dumps(value)}" for key, value in named.items()]
    if file is not None:
        return Recipe.load(Path(file), [*arguments, *named_texts])
    values = with_overrides({}, [*arguments, *named_texts])
    if "model" not in values or "data" not in values:
        raise RecipeError("expected a recipe file, or --model and --data")
    return Recipe.of(values, where="the options")


class Lines:
    """Progress as lines on stderr: what begins, then a step now and then with the time that is left."""

    def __init__(self) -> None:
        self._doing = ""
        self._shown = 0.0
        self._first: tuple[int, float] | None = None

    def __call__(self, progress: TrainProgress) -> None:
        """Print a line if there is something new, at most every ten seconds."""
        now = time.monotonic()
        if progress.doing != self._doing:
            self._doing, self._shown, self._first = progress.doing, now, None
            if progress.step == 0:
                render.note(f"{progress.doing} ...")
                return
        if progress.doing != "training":
            return
        self._first = self._first or (progress.step - 1, now)
        last = progress.step == progress.steps
        if not last and now - self._shown < render.SECONDS_BETWEEN_LINES and progress.step != 1:
            return
        self._shown = now
        done, since = progress.step - self._first[0], now - self._first[1]
        left = since / max(done - 1, 1) * (progress.steps - progress.step)
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        ahead = "" if last or done < 2 else f", {duration(left)} left"
        print(f"step {progress.step} of {progress.steps}{loss}{ahead}", file=sys.stderr, flush=True)


def _summary(result: TrainResult) -> str:
    facts = [
        ("adapter", str(result.folder / "adapter")),
        ("schedule", result.schedule_id),
        ("trainable parameters", f"{result.parameters:,}"),
        ("steps", f"{result.steps}" + (f", resumed at {result.resumed_from}" if result.resumed_from else "")),
        ("training loss", "none logged" if result.train_loss is None else f"{result.train_loss:.4f}"),
        *((name.replace("_", " "), f"{value:.4f}") for name, value in result.eval.items()),
        ("time", duration(result.seconds)),
        ("peak memory", byte_size(result.peak_memory)),
    ]
    width = max(len(name) for name, _ in facts)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in facts)
