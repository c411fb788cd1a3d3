"""``alphalloc evaluate``: accuracy of a trained run, or of any model, on examples with known answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphalloc.cli import options, output, render
from alphalloc.errors import SettingsError

if TYPE_CHECKING:
    from alphalloc.training.evaluate import Evaluation
    from alphalloc.training.tokens import Template as Wording

Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="A folder of alphalloc train, or a model (folder, hub id, .gguf file).",
        show_default=False,
    ),
]
Data = Annotated[str, typer.Option("--data", metavar="DATA", help="A .jsonl file, a folder or hub id of a data set.")]
Adapter = Annotated[Path | None, typer.Option(metavar="FOLDER", help="An adapter to put on the model.")]
Mode = Annotated[str, typer.Option(metavar="M", help="likelihood of the options, or generate and read the text.")]
Template = Annotated[
    str | None,
    typer.Option(metavar="T", help="alpaca, plain or chat.  [default: the run's; chat for conversations; alpaca]"),
]
Choices = Annotated[
    str | None, typer.Option("--options", metavar="A,B,..", help="Answers to choose from, where the data name none.")
]
Normalisation = Annotated[str, typer.Option(metavar="N", help="Of log-likelihoods: sum, token or character.")]
Pattern = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Finds the answer in generated text: letter, words, correct, or an expression."),
]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to generate at most.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts of a forward pass.")]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="The first N examples only.")]
Split = Annotated[str, typer.Option(metavar="NAME", help="Split of a hub data set.")]
SaveTo = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write every prediction here, as JSON.")
]

CHOICES = {
    "--mode": ("likelihood", "generate"),
    "--template": ("alpaca", "plain", "chat"),
    "--normalisation": ("sum", "token", "character"),
}


def evaluate(
    target: Target,
    data: Data,
    adapter: Adapter = None,
    mode: Mode = "likelihood",
    template: Template = None,
    choices: Choices = None,
    normalisation: Normalisation = "sum",
    pattern: Pattern = None,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    split: Split = "test",
    save_to: SaveTo = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a trained run or a model; accuracies come with Wilson's 95 % interval."""
    for option, value in (("--mode", mode), ("--template", template), ("--normalisation", normalisation)):
        if value is not None and value not in CHOICES[option]:
            raise SettingsError(f"{option}: expected one of {', '.join(CHOICES[option])}, got {value!r}")
    output.check_outputs({"--output": save_to}, inputs=[data])

    from alphalloc.training.data import read_examples
    from alphalloc.training.evaluate import evaluate as evaluate_model
    from alphalloc.training.tokens import template_for

    examples = read_examples(data, split=split, limit=limit)
    model, tokenizer, trained_with = _load(target, adapter)
    worded = template or template_for(examples, trained_with or "alpaca")
    found = evaluate_model(
        model,
        tokenizer,
        examples,
        mode=mode,  # type: ignore[arg-type]  # checked above
        template=worded,  # type: ignore[arg-type]  # checked above
        options=None if choices is None else tuple(choice.strip() for choice in choices.split(",")),
        normalisation=normalisation,  # type: ignore[arg-type]  # checked above
        pattern=pattern,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=None if quiet else Lines(),
    )
    if save_to is not None:
        output.write_outputs({save_to: found.to_json()})
    if as_json:
        from alphalloc.documents import pretty_json

        output.print_json(pretty_json(found.plain(predictions=False)))
    else:
        output.print_text(table(found))
    if not quiet:
        notes = (
            [f"{found.unanswered} answers were not found in the text; they count as wrong"] if found.unanswered else []
        )
        render.closing_notes(notes, [] if save_to is None else [save_to])


def table(found: Evaluation) -> str:
    """Return one line a task, and one for all where there are several."""
    rows = [(score.task, score) for score in found.per_task]
    if len(rows) > 1:
        rows.append(("all", found))  # type: ignore[arg-type]  # it has the fields of a score that are shown
    width = max(len("task"), *(len(name) for name, _ in rows))
    lines = [f"{'task':{width}}  accuracy  95 % (Wilson)     correct"]
    lines += [
        f"{name:{width}}  {score.accuracy:8.3f}  [{score.low:.3f}, {score.high:.3f}]  "
        f"{score.correct:>4} of {score.total}"
        for name, score in rows
    ]
    return "\n".join(lines) + "\n"


class Lines:
    """Progress as a line on stderr now and then."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Print how many examples are done, at most every ten seconds."""
        now = time.monotonic()
        if now - self._shown >= render.SECONDS_BETWEEN_LINES:
            self._shown = now
            render.note(f"evaluating: {done} of {total} examples")


def _load(target: str, adapter: Path | None) -> tuple[Any, Any, Wording | None]:
    """Model, tokenizer, and the template that a run was trained with (None for a model)."""
    from alphalloc.training.runs import load_model_with, trained_template
    from alphalloc.training.train import load_trained

    run = Path(target)
    if (run / "recipe.yaml").is_file():
        if adapter is not None:
            raise SettingsError(f"--adapter: {target} is a run with an adapter of its own; name the model instead")
        from alphalloc.training.recipe import Recipe

        model, tokenizer = load_trained(run)
        return model, tokenizer, trained_template(Recipe.load(run / "recipe.yaml"), run)
    model, tokenizer = load_model_with(target, adapter)
    return model, tokenizer, None
