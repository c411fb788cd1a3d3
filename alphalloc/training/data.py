"""Instruction data and conversations: from files, saved data sets and hub ids to a list of examples.

Two forms are read. Instructions, one JSON object a line, with ``instruction``, optional ``input``, and ``output``
(what is learnt) and/or ``answer`` (the short right answer), as MoLA's and Alpaca's files have; ``options`` and ``task``
may stand beside them for evaluation. Conversations: ``messages``, a list of ``role`` and ``content``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alphalloc.documents import canonical_json
from alphalloc.errors import DatasetError, MissingExtraError

FORMATS = ("auto", "instruction", "messages")
ROLES = ("system", "user", "assistant", "tool")
FILES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        prompt: the instruction; of a conversation, what stands before the last answer, without a template.
        input: the instruction's input, empty without one.
        answer: the text to learn: ``output``, else ``answer``; of a conversation its last turn.
        label: the short right answer: ``answer``, else ``output``.
        options: the answers to choose from; None where the data name none.
        messages: the conversation; None for instructions.
        task: the data's own name of the task, else the file's name.
    """

    prompt: str
    answer: str
    label: str = ""
    input: str = ""
    options: tuple[str, ...] | None = None
    messages: tuple[Message, ...] | None = None
    task: str = ""


def read_examples(
    source: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    format: str = "auto",
    limit: int | None = None,
) -> list[Example]:
    """Return the examples of ``source``, in its order; rows without a prompt or an answer are left out.

    Args:
        source: a ``.jsonl`` or ``.json`` (a list) file, gzipped or not, a folder saved or readable by ``datasets``, or
            a hub id.
        name: configuration of a hub data set.
        split: of a hub data set or folder.
        format: ``instruction``, ``messages``, or ``auto``: by the fields of the first row.
        limit: read no more rows than this.

    Raises:
        DatasetError: no such source, not JSON, a row without the fields needed (its number is said), or nothing left.
        MissingExtraError: a folder or hub id without the ``datasets`` library.
    """
    if format not in FORMATS:
        raise DatasetError(f"expected a format among {', '.join(FORMATS)}, got {format!r}")
    rows = islice(_rows(source, name, split), limit)
    task = Path(source).name.partition(".")[0]
    examples, empty = [], 0
    for number, row in enumerate(rows, start=1):
        example = _example(row, format, task, f"{source}, row {number}")
        if example.prompt.strip() and example.answer.strip():
            examples.append(example)
        else:
            empty += 1
    if not examples:
        found = f"{empty} rows, none with both a prompt and an answer" if empty else "no rows"
        raise DatasetError(f"{source}: expected at least one example, found {found}")
    return examples


def examples_digest(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of the examples' content: the same for a file and its gzipped copy."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(canonical_json(asdict(example)).encode("utf-8") + b"\n")
    return digest.hexdigest()


def words_of(example: Example) -> str:
    """Return what tells two questions apart: the words of prompt and input, in whatever case and spacing."""
    return " ".join(f"{example.prompt} {example.input}".split()).casefold()


def without(examples: list[Example], sources: Iterable[str | Path]) -> list[Example]:
    """Return the examples whose question is in none of the files ``sources``. Raises DatasetError when none is left."""
    seen = {words_of(example) for source in sources for example in read_examples(source)}
    kept = [example for example in examples if words_of(example) not in seen]
    if not kept:
        raise DatasetError("every training example is among those of data.exclude; leave some to train on")
    return kept


def split_off(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return (training, held-out) examples: ``share`` of them, at least one if any, chosen by ``seed``."""
    if not share:
        return examples, []
    import random

    count = max(1, round(share * len(examples)))
    if count >= len(examples):
        raise DatasetError(f"a share of {share} leaves nothing of {len(examples)} examples to train on")
    held_out = set(random.Random(seed).sample(range(len(examples)), count))
    return (
        [example for i, example in enumerate(examples) if i not in held_out],
        [example for i, example in enumerate(examples) if i in held_out],
    )


def _rows(source: str | Path, name: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    path = Path(source)
    if path.is_file() or str(source).endswith(FILES):
        yield from _file_rows(path)
    else:
        yield from _dataset_rows(source, name, split)


def _file_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            if path.name.removesuffix(".gz").endswith(".json"):
                yield from _list_of_rows(path, json.load(stream))
                return
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _object(json.loads(line), f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as exc:
        raise DatasetError(f"{path}: cannot be read: {exc}") from exc
    except ValueError as exc:
        raise DatasetError(f"{path}: expected JSON, one object a line, in UTF-8: {exc}") from exc


def _list_of_rows(path: Path, value: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise DatasetError(f"{path}: expected a JSON list of objects, found {type(value).__name__}; or name it .jsonl")
    for number, row in enumerate(value, start=1):
        yield _object(row, f"{path}, row {number}")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DatasetError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _dataset_rows(source: str | Path, name: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as exc:
        raise MissingExtraError(
            f"{source}: data sets other than .jsonl files need the datasets library: pip install 'alphalloc[train]'"
        ) from exc
    path = Path(source)
    try:
        if (path / "dataset_dict.json").exists():
            found: Any = datasets.load_from_disk(str(path))[split]
        elif (path / "dataset_info.json").exists():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(source), name, split=split)
    except Exception as exc:  # the library raises whatever the hub, pyarrow or its own builders do
        raise DatasetError(
            f"{source}: expected a .jsonl file, a folder of data or a hub data set with a split {split!r}: {exc}"
        ) from exc
    yield from found


def _example(row: Mapping[str, Any], format: str, task: str, where: str) -> Example:
    chat = "messages" in row if format == "auto" else format == "messages"
    task = str(row.get("task") or task)
    return _conversation(row, task, where) if chat else _instruction(row, task, where)


def _instruction(row: Mapping[str, Any], task: str, where: str) -> Example:
    if "instruction" not in row or not {"output", "answer"} & set(row):
        raise DatasetError(
            f"{where}: expected the fields 'instruction' and 'output' (or 'answer'), or 'messages'; "
            f"found {', '.join(map(str, row)) or 'none'}"
        )
    output, answer = _text(row, "output", where), _text(row, "answer", where)
    options = row.get("options")
    if options is not None and not (isinstance(options, list | tuple) and all(isinstance(o, str) for o in options)):
        raise DatasetError(f"{where}: expected 'options' to be a list of texts, found {options!r}")
    return Example(
        prompt=_text(row, "instruction", where),
        input=_text(row, "input", where),
        answer=output or answer,
        label=answer or output,
        options=None if options is None else tuple(options),
        task=task,
    )


def _conversation(row: Mapping[str, Any], task: str, where: str) -> Example:
    turns = row.get("messages")
    if not isinstance(turns, list | tuple) or not all(isinstance(t, Mapping) for t in turns):
        raise DatasetError(f"{where}: expected 'messages' to be a list of role and content, found {turns!r}")
    messages = tuple(Message(_text(turn, "role", where), _text(turn, "content", where)) for turn in turns)
    wrong = [message.role for message in messages if message.role not in ROLES]
    if wrong:
        raise DatasetError(f"{where}: expected roles among {', '.join(ROLES)}, found {wrong[0]!r}")
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "nothing"
        raise DatasetError(f"{where}: expected the last message to be the assistant's, found {last}")
    before = "\n".join(message.content for message in messages[:-1])
    answer = messages[-1].content
    return Example(prompt=before, answer=answer, label=answer, messages=messages, task=task)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DatasetError(f"{where}: expected {field!r} to be text, found {type(value).__name__}")
    return str(value)
