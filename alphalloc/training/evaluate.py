"""How good is a model on a task: accuracy with Wilson's interval, by likelihood of the options or by generated text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alphalloc.documents import pretty_json
from alphalloc.errors import DatasetError
from alphalloc.training.data import Example
from alphalloc.training.intervals import wilson
from alphalloc.training.tokens import Template, answer_ids, prompt_ids, prompt_text

SCHEMA_VERSION = "1.0"
Mode = Literal["likelihood", "generate"]
Normalisation = Literal["sum", "token", "character"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """One example's outcome.

    Attributes:
        index: its position among the examples.
        task: its task.
        expected: the right answer.
        predicted: what was found; None when the pattern matched nothing in the generated text.
        correct: whether they are the same.
        scores: log-likelihood of every option after normalisation, in the options' order; None for ``generate``.
        text: what was generated; None for ``likelihood``.
    """

    index: int
    task: str
    expected: str
    predicted: str | None
    correct: bool
    scores: tuple[float, ...] | None = None
    text: str | None = None


@dataclass(frozen=True)
class TaskScore:
    """Accuracy of one task with Wilson's 95 % interval."""

    task: str
    accuracy: float
    low: float
    high: float
    correct: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over all examples (``correct / total``) with Wilson's 95 % interval, and the same task by task.

    ``unanswered`` counts the generated texts in which no answer was found; they are wrong answers.
    """

    mode: Mode
    normalisation: Normalisation | None
    accuracy: float
    low: float
    high: float
    correct: int
    total: int
    unanswered: int
    per_task: tuple[TaskScore, ...]
    predictions: tuple[Prediction, ...]

    def plain(self, *, predictions: bool = True) -> dict[str, Any]:
        """Return all of it as plain JSON types, with or without the single predictions."""
        values: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": "Evaluation", **asdict(self)}
        if not predictions:
            del values["predictions"]
        return values

    def to_json(self) -> str:
        """Return the document that is written to files."""
        return pretty_json(self.plain())


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    mode: Mode = "likelihood",
    template: Template = "alpaca",
    options: Sequence[str] | None = None,
    normalisation: Normalisation = "sum",
    pattern: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """Return how many of ``examples`` the model answers rightly.

    Args:
        model: a causal language model, adapted or not; it is put into evaluation mode and back.
        tokenizer: its tokenizer, with a padding token.
        examples: at least one.
        mode: ``likelihood``: the option with the largest log p(option | prompt) wins, the first of equal ones;
            ``generate``: a greedy answer, read by a pattern (as MoLA and AlphaLoRA do).
        template: how prompts are worded; the one that was trained with.
        options: the options of examples that name none.
        normalisation: of the log-likelihood: its ``sum`` over the option's tokens, that by ``token`` (options are not
            punished for their length) or by ``character`` (independent of the tokenizer; lm-eval's acc_norm by
            bytes). ``sum``, because it is the model's own probability; the end token is not part of it.
        pattern: for ``generate``: a regular expression, whose first group is the answer, or a name in ``PATTERNS``.
            None: for each example the pattern that finds the label in its own right answer, else the first line.
        max_new_tokens: for ``generate``. 128, as AlphaLoRA's evaluation.
        batch_size: prompts of a forward pass. Examples of similar length share one.
        progress: called with (done, all).

    Raises:
        DatasetError: no examples; for ``likelihood`` an example without two options or whose answer is not among them.
        TrainingError: ``pattern`` is no regular expression.
    """
    if not examples:
        raise DatasetError("expected examples to evaluate on, found none")
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    from alphalloc.training.head import whole_head

    training = model.training
    model.eval()
    try:
        with whole_head(model):
            if mode == "likelihood":
                found = _by_likelihood(
                    model, tokenizer, examples, template, options, normalisation, batch_size, progress
                )
            else:
                found = _by_generation(
                    model, tokenizer, examples, template, pattern, max_new_tokens, batch_size, progress
                )
    finally:
        model.train(training)
    return summarise(found, mode=mode, normalisation=normalisation if mode == "likelihood" else None)


def check_examples(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    mode: Mode,
    template: Template,
    options: Sequence[str] | None = None,
    pattern: str | None = None,
) -> None:
    """Raise what :func:`evaluate` would raise for ``examples``, without a model."""
    from alphalloc.training.generation import check_pattern

    check_pattern(pattern)
    for index, example in enumerate(examples):
        prompt_text(example, template, tokenizer)
        if mode == "likelihood":
            _options(example, options, index)


def summarise(found: Sequence[Prediction], *, mode: Mode, normalisation: Normalisation | None) -> Evaluation:
    """Return the accuracies of single predictions, tasks in the order of their first example."""
    ordered = sorted(found, key=lambda prediction: prediction.index)
    tasks = dict.fromkeys(prediction.task for prediction in ordered)
    per_task = [_score(task, [p for p in ordered if p.task == task]) for task in tasks]
    whole = _score("", ordered)
    return Evaluation(
        mode=mode,
        normalisation=normalisation,
        accuracy=whole.accuracy,
        low=whole.low,
        high=whole.high,
        correct=whole.correct,
        total=whole.total,
        unanswered=sum(prediction.predicted is None for prediction in ordered),
        per_task=tuple(per_task),
        predictions=tuple(ordered),
    )


def _score(task: str, predictions: Sequence[Prediction]) -> TaskScore:
    correct, total = sum(prediction.correct for prediction in predictions), len(predictions)
    low, high = wilson(correct, total)
    return TaskScore(task, correct / total, low, high, correct, total)


def _by_likelihood(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template,
    common: Sequence[str] | None,
    normalisation: Normalisation,
    batch_size: int,
    progress: Progress | None,
) -> list[Prediction]:
    from alphalloc.training.likelihood import option_scores

    choices = [_options(example, common, index) for index, example in enumerate(examples)]
    prompts = prompt_ids([prompt_text(e, template, tokenizer) for e in examples], tokenizer, template)
    texts = list(dict.fromkeys(text for row, _ in choices for text in row))
    ids_of = dict(zip(texts, answer_ids(texts, tokenizer, end=False), strict=True))
    found = []
    for batch in _batches(prompts, batch_size, progress):
        options = [[ids_of[text] for text in choices[i][0]] for i in batch]
        for i, sums in zip(
            batch, option_scores(model, [prompts[i] for i in batch], options, _pad(tokenizer)), strict=True
        ):
            row, right = choices[i]
            lengths = [_length(text, ids_of[text], normalisation) for text in row]
            scores = tuple(score / length for score, length in zip(sums, lengths, strict=True))
            best = max(range(len(row)), key=scores.__getitem__)
            found.append(Prediction(i, examples[i].task, row[right], row[best], best == right, scores=scores))
    return found


def _by_generation(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template,
    pattern: str | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None,
) -> list[Prediction]:
    from alphalloc.training.generation import check_pattern, extract, generate_texts, pattern_for, same

    asked = check_pattern(pattern)
    prompts = prompt_ids([prompt_text(e, template, tokenizer) for e in examples], tokenizer, template)
    found = []
    for batch in _batches(prompts, batch_size, progress):
        texts = generate_texts(model, tokenizer, [prompts[i] for i in batch], max_new_tokens=max_new_tokens)
        for i, text in zip(batch, texts, strict=True):
            example = examples[i]
            used = asked if pattern is not None else pattern_for(example.answer, example.label)
            answer = extract(text, used)
            right = answer is not None and same(answer, example.label)
            found.append(Prediction(i, example.task, example.label, answer, right, text=text))
    return found


def _options(example: Example, common: Sequence[str] | None, index: int) -> tuple[tuple[str, ...], int]:
    """The example's options and the position of the right one: the text that is learnt, else its label."""
    options = tuple(example.options if example.options is not None else common or ())
    if len(options) < 2 or not all(options):
        raise DatasetError(
            f"example {index} ({example.prompt[:60]!r}): expected two options or more to compare, found "
            f"{list(options)}; give the data a field 'options', pass options, or evaluate by mode 'generate'"
        )
    for answer in (example.answer, example.label):
        if answer in options:
            return options, options.index(answer)
    raise DatasetError(
        f"example {index} ({example.prompt[:60]!r}): expected its answer {example.label!r} among the options "
        f"{list(options)}"
    )


def _length(text: str, ids: Sequence[int], normalisation: Normalisation) -> int:
    if normalisation == "sum":
        return 1
    return len(ids) if normalisation == "token" else len(text)


def _batches(prompts: Sequence[Sequence[int]], size: int, progress: Progress | None) -> Iterator[list[int]]:
    """Positions of the prompts in batches of similar length, the longest first: what does not fit shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if progress is not None:
            progress(min(start + size, len(order)), len(order))


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id or 0)
