"""The papers' tasks (MoLA, arXiv 2402.08562; AlphaLoRA, arXiv 2410.10054) from a folder of JSON lines, on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alphalloc.documents import write_atomic
from alphalloc.training.compare import compare_schedules
from alphalloc.training.comparison_recipe import ComparisonRecipe
from alphalloc.training.data import read_examples
from alphalloc.training.recipe_files import read_yaml
from alphalloc.training.recipe_keys import with_overrides

HERE = Path(__file__).parent
MODEL = "meta-llama/Llama-2-7b-hf"  # of MoLA's first table
ENDINGS = (".jsonl", ".jsonl.gz")
HELD_OUT = ("test", "validation")  # CoLA, RTE and CommonsenseQA have no public test answers: there it is validation
NOT_MEASURED = "not measured: the papers' tasks need a GPU, and torch sees no CUDA device here"


@dataclass(frozen=True)
class Task:
    """One task: its name, the examples that are trained on and those that are asked once."""

    name: str
    train: Path
    held_out: Path


def tasks(folder: Path) -> list[Task]:
    """The tasks in ``folder``: ``NAME.train.jsonl`` beside ``NAME.test.jsonl``, else ``NAME.validation.jsonl``.

    Each may end in ``.gz``; a line is an object with ``instruction``, ``output`` and ``answer``, as MoLA's. Files are
    read in place. Raises SystemExit where there is none, or one without a held-out file; DatasetError for other lines.
    """
    found = []
    for train in sorted(path for ending in ENDINGS for path in folder.glob(f"*.train{ending}")):
        name = train.name.partition(".train.jsonl")[0]
        held_out = [folder / f"{name}.{what}{ending}" for what in HELD_OUT for ending in ENDINGS]
        there = [path for path in held_out if path.is_file()]
        if not there:
            raise SystemExit(f"{train}: expected {name}.test.jsonl or {name}.validation.jsonl beside it")
        for path in (train, there[0]):
            read_examples(path, format="instruction")
        found.append(Task(name, train, there[0]))
    if not found:
        raise SystemExit(f"{folder}: expected files NAME.train.jsonl and NAME.test.jsonl (or .validation), also .gz")
    return found


def papers_recipe(task: Task, model: str, changes: list[str]) -> ComparisonRecipe:
    """The comparison of one task; ``changes`` are ``key=value`` of papers.yaml."""
    path = HERE / "papers.yaml"
    values = with_overrides(read_yaml(path), changes)
    values["task"] = task.name
    values["base"] = {**values["base"], "model": model}
    values["base"]["data"] = {**values["base"].get("data", {}), "train": str(task.train)}
    values["test"] = {**values["test"], "data": str(task.held_out)}
    return ComparisonRecipe.of(values, where=str(path))


def measure(folder: Path, model: str, work: Path, changes: list[str], say: Callable[[str], None]) -> str | None:
    """Compare the arms on every task and return the tables as Markdown; None, and nothing done, without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    recipes = [papers_recipe(task, model, changes) for task in tasks(folder)]
    pages = []
    for recipe in recipes:
        found = compare_schedules(recipe, output=work / recipe.task, progress=say)
        write_atomic(HERE / f"papers-{recipe.task}.json", found.to_json())
        pages.append(found.markdown())
        write_atomic(HERE / "papers.md", "\n".join(pages))
    return "\n".join(pages)
