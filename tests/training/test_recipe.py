"""Recipes: what they default to, what a preset puts in its place, and what is said of a key that does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.errors import RecipeError
from alphalloc.training.presets import PRESETS
from alphalloc.training.recipe import Recipe
from alphalloc.training.recipe_keys import dotted_keys

LEAST = {"model": "m", "data": "d.jsonl"}


def test_model_and_data_are_enough() -> None:
    recipe = Recipe.of(LEAST)
    assert recipe.data.train == "d.jsonl"
    assert (recipe.adapter.r, recipe.adapter.lora_alpha, recipe.optim.learning_rate) == (8, 16, 3e-4)
    assert recipe.schedule.needs_analysis


def test_a_recipe_comes_back_from_its_own_yaml(tmp_path: Path) -> None:
    for preset in (None, *PRESETS):
        recipe = Recipe.of({**LEAST, "preset": preset, "optim": {"steps": 5}, "adapter": {"target_modules": ["on"]}})
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.to_yaml())
        assert Recipe.load(path) == recipe


def test_the_published_presets() -> None:
    alphalora = Recipe.of({**LEAST, "preset": "alphalora"})
    assert (alphalora.schedule.estimator, alphalora.schedule.beta, alphalora.schedule.rounding) == (
        "xmin_peak_reference",
        2.5,
        "reference",
    )
    assert (alphalora.optim.batch_size, alphalora.optim.micro_batch_size, alphalora.optim.warmup_steps) == (128, 8, 100)
    assert (alphalora.adapter.balance, alphalora.data.completion_only, alphalora.seed) == ("none", False, 10)
    mola = Recipe.of({**LEAST, "preset": "mola"})
    assert (mola.schedule.rule, mola.adapter.balance, mola.adapter.balance_coef) == (
        "mola_inverted_triangle",
        "mola",
        1e-3,
    )
    assert not mola.schedule.needs_analysis
    assert (alphalora.optim.epochs, mola.optim.epochs) == (20, 10)
    moelora = Recipe.of({**LEAST, "preset": "moelora"})
    assert (moelora.adapter.r, moelora.adapter.contrastive, moelora.adapter.contrastive_coef) == (4, "moelora", 1e-2)
    assert moelora.schedule.experts_per_layer == 8
    assert moelora.adapter.target_modules == ("q_proj", "v_proj")


def test_what_the_recipe_says_wins_over_its_preset() -> None:
    recipe = Recipe.of({**LEAST, "preset": "mola", "optim": {"steps": 7}, "adapter": {"balance": "none"}})
    assert (recipe.optim.steps, recipe.optim.epochs, recipe.adapter.balance) == (7, None, "none")
    assert recipe.optim.batch_size == 128


def test_a_file_or_counts_replace_the_schedule_of_a_preset_and_of_a_recipe_file(tmp_path: Path) -> None:
    with_counts = Recipe.of({**LEAST, "preset": "alphalora", "schedule": {"counts": [2, 3]}})
    assert with_counts.schedule.used() == {"counts": [2, 3]}
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: d.jsonl\nschedule: {rule: uniform, experts_per_layer: 3, top_k: 1}\n")
    assert Recipe.load(path, ["schedule.file=s.json"]).schedule.used() == {"file": "s.json"}
    assert Recipe.load(path, ["schedule.counts=[1]"]).schedule.used() == {"counts": [1], "top_k": 1}
    assert Recipe.load(path, ["schedule.experts=9"]).schedule.used() == {
        "rule": "uniform", "experts_per_layer": 3, "experts": 9, "top_k": 1
    }  # fmt: skip


def test_overrides_are_set_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: d.jsonl\noptim:\n  epochs: 2  # mine\n")
    recipe = Recipe.load(path, ["optim.steps=60", "data.cutoff=64", "model=org/other", "schedule.counts=[1, 2]"])
    assert (recipe.optim.steps, recipe.optim.epochs, recipe.data.train, recipe.data.cutoff) == (60, None, "d.jsonl", 64)
    assert (recipe.model, recipe.schedule.counts) == ("org/other", (1, 2))
    assert recipe.changed("seed=3").seed == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1}, "no key 'lerning_rate'; did you mean 'optim.learning_rate'\\?"),
        ({"optim": {"lerning_rate": 1}}, "no key 'optim.lerning_rate'; did you mean 'optim.learning_rate'\\?"),
        ({"adapter": {"cutoff": 9}}, "no key 'adapter.cutoff'; did you mean 'data.cutoff'\\?"),
        ({"adapter": {"zzz": 9}}, "no key 'adapter.zzz'; there are: method, r, lora_alpha"),
        ({"preset": "alfalora"}, "no preset 'alfalora'; did you mean 'alphalora'\\?"),
        ({"adapter": {"r": 0}}, "adapter.r: input should be greater than or equal to 1, found 0"),
        ({"optim": {"learning_rate": float("nan")}}, "optim.learning_rate: .* found nan"),
        ({"optim": {"steps": 3, "epochs": 2}}, "steps and epochs both say how long to train"),
        ({"optim": {"batch_size": 6, "micro_batch_size": 4}}, "batch_size 6 is not a multiple of micro_batch_size 4"),
        ({"schedule": {"file": "s.json", "counts": [1]}}, "file and counts both say"),
        (
            {"schedule": {"file": "s.json", "rule": "uniform"}},
            "schedule.file says .* schedule.rule would have no effect",
        ),
        (
            {"schedule": {"counts": [1], "top_k": 1, "experts": 3}},
            "schedule.counts says .* schedule.experts would have",
        ),
        ({"model": " "}, "model: expected a folder, a hub id or a .gguf file"),
        ({"data": {}}, "the key 'data.train' is missing"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.of({**LEAST, **values})


def test_bad_files_and_overrides_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        Recipe.load(path)
    path.write_text("model: [\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.load(path)
    path.write_text("model: a\nmodel: b\ndata: d\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.load(path)
    path.write_text("- a\n")
    with pytest.raises(RecipeError, match="expected a mapping of settings, found list"):
        Recipe.load(path)
    path.write_text("model: a\ndata: d\n")
    with pytest.raises(RecipeError, match="expected key=value such as optim.learning_rate=1e-4, got 'steps'"):
        Recipe.load(path, ["steps"])


@given(st.sampled_from(sorted(key for key, section in dotted_keys(Recipe).items() if section is None)), st.data())
def test_a_misspelt_key_is_answered_with_itself(key: str, data: st.DataObject) -> None:
    word = key.rpartition(".")[2]
    if len(word) < 6:
        return
    position = data.draw(st.integers(0, len(word) - 1))
    wrong = key.rpartition(".")[0] + "." * ("." in key) + word[:position] + "q" + word[position + 1 :]
    tree: Any = 1
    for part in reversed(wrong.split(".")):
        tree = {part: tree}
    if wrong in dotted_keys(Recipe):
        return
    base: dict[str, Any] = {"model": "m", "data": {"train": "d"}}
    top = next(iter(tree))
    values = {**base, top: {**base.get(top, {}), **tree[top]} if isinstance(tree[top], dict) else tree[top]}
    if not {"model", "data"} <= set(values):
        return
    with pytest.raises(RecipeError, match="did you mean"):
        Recipe.of(values)
