"""Training examples that are test examples too: refused, or left out of training and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alphalloc.errors import DatasetError, RecipeError
from alphalloc.training.compare import compare_schedules
from alphalloc.training.comparison_recipe import ComparisonRecipe
from alphalloc.training.data import read_examples
from alphalloc.training.steps import read_data


@pytest.fixture
def values(recipe: Any, tmp_path: Path) -> dict[str, Any]:
    """A comparison whose test holds two of the 22 training questions, one of them worded in capitals."""
    base = recipe("optim.steps=1").plain()
    asked = [example.prompt for example in read_examples(base["data"]["train"])][:2]
    rows = [{"instruction": text, "output": "w5"} for text in (asked[0].upper(), asked[1], "w9 w9 w9 w9 w9")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "parity",
        "base": {key: value for key, value in base.items() if key not in ("output", "seed", "preset")},
        "test": {"data": str(tmp_path / "test.jsonl"), "options": ["w5", "w6"], "overlap": "drop"},
        "seeds": [0],
        "untrained": False,
        "arms": [{"name": "first"}, {"name": "second", "adapter": {"balance": "mola"}}],
    }


def test_examples_of_the_test_are_not_trained_on_and_counted(values: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    found = compare_schedules(ComparisonRecipe.of(values), output=tmp_path / "out", progress=said.append)
    line = "2 of 22 training examples are test or validation examples too: left out."
    assert line in said
    assert line in found.notes
    assert line in (tmp_path / "out" / "README.md").read_text()
    card = json.loads((tmp_path / "out" / "arms" / "first" / "seed-0" / "card.json").read_text())
    assert card["data"]["train"]["examples"] == 20


def test_they_are_refused_unless_asked_to_drop_them(values: dict[str, Any], tmp_path: Path) -> None:
    refusing = {**values, "test": {**values["test"], "overlap": "refuse"}}
    with pytest.raises(DatasetError, match="2 test examples are also among the training .* test.overlap to drop"):
        compare_schedules(ComparisonRecipe.of(refusing), output=tmp_path / "out")
    with pytest.raises(RecipeError, match="overlap drop needs test data in a file"):
        ComparisonRecipe.of({**values, "test": {**values["test"], "data": "some/data"}})


def test_excluding_everything_leaves_nothing_to_train_on(recipe: Any) -> None:
    one = recipe()
    with pytest.raises(DatasetError, match="every training example is among those of data.exclude"):
        read_data(one.changed(data={"exclude": [one.data.train]}).data, seed=0)
