"""Recipes of comparisons: what arms may change, and what is refused by name."""

from __future__ import annotations

import pytest

from alphalloc.errors import RecipeError
from alphalloc.training.comparison_recipe import ComparisonRecipe

BASE = {"model": "m", "data": {"train": "d.jsonl"}, "optim": {"steps": 5}, "adapter": {"r": 2}}
ARMS = [{"name": "a"}, {"name": "b", "adapter": {"method": "lora", "lora_ranks": "equal"}}]


def recipe(**changes):
    return ComparisonRecipe.of({"task": "t", "base": BASE, "test": {"data": "t.jsonl"}, "arms": ARMS, **changes})


def tune(key, value):
    return {"key": key, "values": [value, value], "validation": "v.jsonl"}


def test_arms_take_everything_else_from_the_base():
    found = recipe()
    first, second = (found.training(arm, seed=7, output="run") for arm in found.arms)
    assert (first.adapter.method, second.adapter.method) == ("moe", "lora")
    assert first.optim == second.optim
    assert (second.adapter.r, second.seed, second.output) == (2, 7, "run")
    assert found.seeds == (0, 1, 2)


def test_an_arms_file_or_counts_replace_the_schedule_of_the_base():
    base = {**BASE, "schedule": {"rule": "uniform", "experts_per_layer": 3, "top_k": 1}}
    arms = [{"name": "a", "schedule": {"counts": [2, 2]}}, {"name": "b", "schedule": {"file": "s.json"}}, {"name": "c"}]
    found = recipe(base=base, arms=arms)
    used = [found.training(arm, seed=0, output="run").schedule.used() for arm in found.arms]
    assert used == [{"counts": [2, 2], "top_k": 1}, {"file": "s.json"}, base["schedule"]]
    named = recipe(base={**BASE, "schedule": "s.json"})  # the file alone, as in a training recipe
    assert named.training(named.arms[0], seed=0, output="run").schedule.file == "s.json"


def test_a_tuned_value_is_set_in_every_recipe():
    found = recipe(tune={"key": "optim.learning_rate", "values": [1e-4, 1e-3], "validation": "v.jsonl"})
    tuned = [found.training(arm, seed=0, output="run", tuned=1e-3).optim.learning_rate for arm in found.arms]
    assert tuned == [1e-3, 1e-3]
    assert found.training(found.arms[0], seed=0, output="run").optim.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [{"name": "a"}]}, "at least 2"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "two arms have one name"),
        ({"arms": [{"name": "a"}, {"name": "../b"}]}, "expected a name of letters"),
        ({"arms": [{"name": "a"}, {"name": "b", "optim": {"learning_rate": 1.0}}]}, "'b' sets optim; arms differ in"),
        ({"arms": [{"name": "a"}, {"name": "b", "adapter": {"rank": 3}}]}, "arm 'b': no key 'adapter.rank'"),
        ({"seeds": [1, 1]}, "two seeds have one name"),
        ({"seed": [1]}, "no key 'seed'; did you mean 'seeds'"),
        ({"base": {"model": "m"}}, "the key 'data' is missing"),
        ({"tune": tune("schedule.rule", "uniform")}, "tune.key: expected a hyper-parameter"),
        ({"tune": tune("adapter.r", 4)}, "tune.key: expected a hyper-parameter"),
        ({"tune": tune("seed", 1)}, "tune.key: expected a hyper-parameter"),
        ({"tune": tune("optim.learning_rates", 1)}, "no key 'optim.learning_rates'"),
        (
            {
                "base": {**BASE, "schedule": {"counts": [5]}},
                "arms": [{"name": "a", "schedule": {"rule": "uniform"}}, ARMS[1]],
            },
            "arm 'a': schedule.counts says how many experts there are, so schedule.rule would have no effect",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_recipes_are_read_from_yaml(tmp_path):
    path = tmp_path / "comparison.yaml"
    path.write_text(
        "task: t\nbase: {model: m, data: d.jsonl}\ntest: {data: t.jsonl}\narms: [{name: a}, {name: b}]\nseeds: [3]\n"
    )
    assert ComparisonRecipe.load(path).seeds == (3,)
    path.write_text("task: t\narms: 3\n")
    with pytest.raises(RecipeError, match="comparison.yaml"):
        ComparisonRecipe.load(path)
