"""Reading examples: every accepted form, the same digest for the same content, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.errors import DatasetError
from alphalloc.training.data import Example, Message, examples_digest, read_examples, split_off

ROWS: list[dict[str, Any]] = [
    {"instruction": "Is it?", "input": "", "output": "Answer: yes.", "answer": "yes", "options": ["yes", "no"]},
    {"instruction": "Add", "input": "1 2", "output": "3", "task": "sums"},
    {"instruction": "Count", "answer": 4},
]
WANTED = [
    Example("Is it?", "Answer: yes.", "yes", options=("yes", "no"), task="some"),
    Example("Add", "3", "3", input="1 2", task="sums"),
    Example("Count", "4", "4", task="some"),
]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_instructions_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    plain = jsonl(tmp_path / "some.jsonl", ROWS)
    packed = tmp_path / "some.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    listed = tmp_path / "some.json"
    listed.write_text(json.dumps(ROWS))
    assert read_examples(plain) == read_examples(packed) == read_examples(listed) == WANTED
    assert read_examples(plain, limit=2) == WANTED[:2]
    assert examples_digest(read_examples(plain)) == examples_digest(read_examples(packed))
    assert examples_digest(WANTED) != examples_digest(WANTED[::-1])


def test_conversations_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    (found,) = read_examples(jsonl(tmp_path / "chat.jsonl", [{"messages": turns}]))
    assert found.messages == (Message("user", "hello"), Message("assistant", "hi"))
    assert (found.prompt, found.answer, found.label, found.task) == ("hello", "hi", "hi", "chat")


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"instruction": row["instruction"], "output": "x"} for row in ROWS])
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert [e.prompt for e in read_examples(tmp_path / "one")] == ["Is it?", "Add", "Count"]
    assert [e.prompt for e in read_examples(tmp_path / "two", split="test")] == ["Is it?"]
    with pytest.raises(DatasetError, match="a hub data set with a split 'dev'"):
        read_examples(tmp_path / "two", split="dev")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "q", "output": "a"}], r"row 1: expected the fields 'instruction' and 'output'.*found question"),
        ([ROWS[0], {"instruction": "no answer"}], r"row 2: expected the fields"),
        ([{"instruction": "  ", "output": "a"}, {"instruction": "q", "output": ""}], "found 2 rows, none with both"),
        ([], "expected at least one example, found no rows"),
        ([["a"]], "line 1: expected a JSON object, found list"),
        ([{"instruction": ["a"], "output": "b"}], "expected 'instruction' to be text, found list"),
        ([{"instruction": "a", "output": "b", "options": "yes"}], "expected 'options' to be a list of texts"),
        ([{"messages": "hi"}], "expected 'messages' to be a list of role and content"),
        ([{"messages": [{"role": "robot", "content": "x"}]}], "expected roles among .*found 'robot'"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "last message to be the assistant's, found user"),
    ],
)
def test_bad_rows_are_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read_examples(jsonl(tmp_path / "bad.jsonl", rows))


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing.jsonl: cannot be read"):
        read_examples(tmp_path / "missing.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"instruction": "a"\n')
    with pytest.raises(DatasetError, match="expected JSON, one object a line"):
        read_examples(broken)
    broken.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DatasetError, match="in UTF-8"):
        read_examples(broken)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_examples(cut)
    with pytest.raises(DatasetError, match="expected a format among auto, instruction, messages, got 'parquet'"):
        read_examples(cut, format="parquet")


@given(st.integers(2, 60), st.floats(0.01, 0.9), st.integers(0, 2**32 - 1))
def test_a_split_loses_nothing_and_is_the_seeds(count: int, share: float, seed: int) -> None:
    examples = [Example(str(i), "a") for i in range(count)]
    if max(1, round(share * count)) >= count:
        with pytest.raises(DatasetError, match="leaves nothing"):
            split_off(examples, share, seed)
        return
    train, held_out = split_off(examples, share, seed)
    assert len(held_out) == max(1, round(share * count))
    assert sorted(train + held_out, key=lambda e: int(e.prompt)) == examples
    assert (train, held_out) == split_off(examples, share, seed)
