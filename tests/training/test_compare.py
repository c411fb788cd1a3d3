"""A comparison end to end on a tiny model: equal sizes, one test, resumed and broken runs, tables."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import DatasetError, RecipeError, TrainingError
from alphalloc.training.compare import compare_schedules
from alphalloc.training.comparison import SeedResult, arm_result, paired_results
from alphalloc.training.comparison_recipe import ComparisonRecipe
from alphalloc.training.intervals import wilson
from alphalloc.training.plans import plan_arms
from alphalloc.training.recipe import Recipe
from alphalloc.training.runs import ensure_trained


@pytest.fixture(scope="module")
def values(tiny, tmp_path_factory, request):
    """Two arms of five steps and one seed; the answer depends on the first word."""
    folder = tmp_path_factory.mktemp("comparison")
    model = folder / "model"
    tiny.llama().save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    texts = list(dict.fromkeys(tiny.sentences(60)))
    rows = [{"instruction": t, "output": "w5" if int(t.split()[0][1:]) % 2 else "w6", "task": "parity"} for t in texts]
    parts = {"test": rows[:12], "validation": rows[12:20], "train": rows[20:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "task": "parity",
        "base": {
            "model": str(model),
            "data": {"train": str(folder / "train.jsonl"), "template": "plain"},
            "schedule": {"counts": [5, 5, 5]},
            "adapter": {"r": 4, "lora_alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]},
            "optim": {"steps": 5, "batch_size": 4, "learning_rate": 0.01},
            "run": {"log_every": 1, "picture": False, "device": "cpu"},
        },
        "test": {"data": str(folder / "test.jsonl"), "options": ["w5", "w6"], "batch_size": 4},
        "seeds": [0],
        "arms": [{"name": "uniform"}, {"name": "lora", "adapter": {"method": "lora", "lora_ranks": "equal"}}],
    }


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    """(folder, what was found, the lines that were said) of one whole comparison."""
    folder, said = tmp_path_factory.mktemp("finished") / "out", []
    return folder, compare_schedules(ComparisonRecipe.of(values), output=folder, progress=said.append), said


def test_a_comparison_trains_evaluates_and_writes_its_record(finished):
    folder, found, _ = finished
    document = json.loads((folder / "comparison.json").read_text())
    assert document == json.loads(found.to_json())
    assert (document["kind"], document["task"], document["steps"]) == ("ScheduleComparison", "parity", 5)
    assert [arm["name"] for arm in document["arms"]] == ["uniform", "lora"]
    for arm in document["arms"]:
        assert abs(arm["size_difference"]) <= 0.005
        seed = arm["seeds"][0]
        test = json.loads((folder / seed["folder"] / "test.json").read_text())
        assert seed["correct"] == sum(p["correct"] for p in test["predictions"]) == seed["right"].count("1")
        assert (seed["low"], seed["high"]) == pytest.approx(wilson(seed["correct"], 12))
        assert arm["interval"] is None  # one seed
        assert arm["parameters"] == json.loads((folder / seed["folder"] / "finished.json").read_text())["parameters"]
    assert document["untrained"]["total"] == 12
    assert "| uniform |" in (folder / "README.md").read_text()
    assert f"{found.arms[1].parameters:,}" in found.arm_table()


def test_finished_runs_are_neither_trained_nor_evaluated_again(finished, values):
    folder, found, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/seed-0/*") if path.name != "README.md"}
    said: list[str] = []
    again = compare_schedules(ComparisonRecipe.of(values), output=folder, progress=said.append)
    assert again == found
    assert not [line for line in said if "training" in line or "evaluating" in line]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_test_is_opened_after_all_training_and_never_for_another_run(finished, values, tmp_path):
    folder, _, said = finished
    last_training = max(i for i, line in enumerate(said) if "training" in line)
    assert last_training < min(i for i, line in enumerate(said) if "evaluating" in line)
    opened = json.loads((folder / "test.json").read_text())
    assert set(opened["adapters"]) == {"uniform/seed-0", "lora/seed-0"}
    with pytest.raises(TrainingError, match=r"seed-1: there is no finished run here and the test split is open"):
        compare_schedules(ComparisonRecipe.of({**values, "seeds": [0, 1]}), output=folder)
    shorter = {**values, "test": {**values["test"], "limit": 6}}
    with pytest.raises(TrainingError, match="it was another split"):
        compare_schedules(ComparisonRecipe.of(shorter), output=folder)
    assert not (folder / "arms" / "uniform" / "seed-1").exists()


def test_a_broken_run_is_trained_anew_and_gives_the_same(finished, values, tmp_path):
    folder, found, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("test.json", "comparison.json"):
        (copy / name).unlink()
    broken, stopped = copy / "arms" / "uniform" / "seed-0", copy / "arms" / "lora" / "seed-0"
    (broken / "test.json").unlink()
    with open(broken / "adapter" / "adapter_model.safetensors", "ab") as stream:
        stream.write(b"\0")  # changed after it was trained
    shutil.rmtree(stopped)
    said: list[str] = []
    again = compare_schedules(ComparisonRecipe.of(values), output=copy, progress=said.append)
    assert any(re.search("uniform/seed-0: the adapter is not the one that was trained", line) for line in said)
    assert [arm.seeds[0].right for arm in again.arms] == [arm.seeds[0].right for arm in found.arms]
    assert [arm.seeds[0].train_loss for arm in again.arms] == [arm.seeds[0].train_loss for arm in found.arms]


def test_runs_of_another_recipe_are_not_mixed_in(finished, values):
    folder, _, _ = finished
    other = {**values, "base": {**values["base"], "optim": {"steps": 6, "batch_size": 4}}}
    with pytest.raises(TrainingError, match="it was trained by another"):
        compare_schedules(ComparisonRecipe.of(other), output=folder)
    with pytest.raises(TrainingError, match="expected an empty folder"):
        compare_schedules(ComparisonRecipe.of(values), output=folder, resume=False)


@pytest.mark.parametrize(
    "schedule", [{"counts": [1, 2, 12]}, {"rule": "uniform", "experts_per_layer": 6}], ids=["counts", "rule"]
)
def test_a_changed_schedule_is_not_taken_for_the_one_that_was_trained(finished, values, schedule):
    folder, _, _ = finished
    changed = {**values, "base": {**values["base"], "schedule": schedule}}
    with pytest.raises(TrainingError, match="uniform/schedule.json: .* the runs here were begun with another"):
        compare_schedules(ComparisonRecipe.of(changed), output=folder)


def test_a_schedule_that_nothing_was_trained_with_is_made_anew(values, tmp_path):
    def counts(*first):
        arms = [{"name": "a", "schedule": {"counts": first}}, {"name": "b", "schedule": {"counts": [5, 5, 5]}}]
        plans = plan_arms(ComparisonRecipe.of({**values, "arms": arms}), tmp_path, lambda line: None)
        assert ExpertSchedule.load(plans[0].schedule_file) == plans[0].schedule
        return plans[0].schedule.num_experts

    with pytest.raises(TrainingError, match="expected arms within"):
        counts(6, 5, 5)
    assert not list(tmp_path.rglob("schedule.json"))
    assert counts(4, 5, 6) == (4, 5, 6)
    assert counts(5, 4, 6) == (5, 4, 6)


@pytest.mark.parametrize("recorded", [True, False], ids=["now", "before"])
def test_accuracies_of_other_settings_are_refused_and_older_records_stand(finished, values, recorded, tmp_path):
    folder, found, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in [*copy.glob("**/*.json")] * (not recorded):  # as written before these were recorded
        if path.name == "schedule-settings.json":
            path.unlink()
        elif path.name in ("finished.json", "test.json", "untrained.json"):
            kept = json.loads(path.read_text())
            newer = ("settings", "base_model", "training_data")
            path.write_text(json.dumps({key: value for key, value in kept.items() if key not in newer}))
    assert compare_schedules(ComparisonRecipe.of(values), output=copy) == found
    changes = {"mode": "generate", "normalisation": "token"}
    if recorded:
        changes |= {"options": ["w5", "w6", "w7"], "max_new_tokens": 3, "pattern": "w."}
    for key, value in changes.items():
        changed = ComparisonRecipe.of({**values, "test": {**values["test"], key: value}})
        with pytest.raises(TrainingError, match=f"test.json: made with test.{key}"):
            compare_schedules(changed, output=copy)
    other = ComparisonRecipe.of({**values, "test": {**values["test"], "normalisation": "character"}})
    (copy / "test.json").unlink()  # the runs' own records say it too
    with pytest.raises(TrainingError, match="seed-0/test.json: made with test.normalisation 'sum'"):
        compare_schedules(other, output=copy)


def test_a_run_of_other_data_or_of_another_model_is_not_finished(finished, values, tiny, tmp_path):
    folder, _, _ = finished
    data, model, run = Path(values["base"]["data"]["train"]), Path(values["base"]["model"]), folder / "arms/lora/seed-0"
    whole, recipe = data.read_text(), Recipe.load(run / "recipe.yaml")
    shutil.copytree(model, tmp_path / "model")

    def ensure():
        return ensure_trained(recipe, run, frozen=True, say=lambda line: None)

    assert ensure() == json.loads((run / "finished.json").read_text())
    try:
        data.write_text("".join(whole.splitlines(keepends=True)[:8]))
        with pytest.raises(TrainingError, match="expected a run on training data .* restore it, or choose another"):
            ensure()
        data.write_text(whole)
        tiny.llama(inner=64).save_pretrained(model)
        with pytest.raises(TrainingError, match="expected a run on base model .* restore it, or choose another"):
            ensure()
        with pytest.raises(TrainingError, match="uniform/schedule.json: .* begun with another .* of model"):
            compare_schedules(ComparisonRecipe.of(values), output=folder)
    finally:
        data.write_text(whole)
        shutil.copytree(tmp_path / "model", model, dirs_exist_ok=True)


def test_conversations_are_compared_and_evaluated_by_the_chat_template(values, model_folder, tmp_path, capsys):
    from alphalloc.cli import main

    def conversation(line):
        row = json.loads(line)
        roles = {"user": row["instruction"], "assistant": row["output"]}
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in roles.items()]}) + "\n"

    for name in ("train.jsonl", "test.jsonl"):
        lines = Path(values["test"]["data"]).with_name(name).read_text().splitlines()
        (tmp_path / name).write_text("".join(map(conversation, lines)))
    base = {**values["base"], "data": {"train": str(tmp_path / "train.jsonl")}, "optim": {"steps": 1, "batch_size": 4}}
    chats = {
        **values,
        "base": {**base, "model": model_folder},
        "test": {**values["test"], "data": str(tmp_path / "test.jsonl")},
        "arms": [{"name": "a", "any_size": True}, {"name": "b", "any_size": True, "adapter": {"method": "lora"}}],
    }
    for wrong, message in (
        ({"base": base}, "the tokenizer has no chat template"),
        ({"test": {"data": chats["test"]["data"]}}, "expected two options or more"),
    ):
        with pytest.raises(DatasetError, match=message):
            compare_schedules(ComparisonRecipe.of({**chats, **wrong}), output=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()  # nothing was trained for it
    found = compare_schedules(ComparisonRecipe.of(chats), output=tmp_path / "out")
    assert "All arms are marked as of any size" in found.notes[0]
    run = tmp_path / "out" / found.arms[0].seeds[0].folder
    asked = ["--data", chats["test"]["data"], "--options", "w5,w6", "--json", "--quiet"]
    assert main(["evaluate", str(run), *asked]) == 0
    assert json.loads(capsys.readouterr().out)["correct"] == found.arms[0].seeds[0].correct
    assert main(["evaluate", model_folder, *asked]) == 0
    assert json.loads(capsys.readouterr().out)["correct"] == found.untrained["correct"]


def test_unequal_sizes_are_refused_before_any_training(values, tmp_path):
    arms = [{"name": "five"}, {"name": "six", "schedule": {"counts": [6, 5, 5]}}]
    with pytest.raises(TrainingError, match=r"expected arms within 0.5% of the [\d,]+ parameters of five, got six"):
        compare_schedules(ComparisonRecipe.of({**values, "arms": arms}), output=tmp_path)
    assert not list(tmp_path.rglob("adapter"))


def test_an_arm_of_equal_total_rank_says_its_size(values, tmp_path):
    from alphalloc.training.sizes import check_sizes, count_arm

    recipe = ComparisonRecipe.of(
        {
            **values,
            "arms": [values["arms"][0], {"name": "rank", "adapter": {"method": "lora", "lora_ranks": "schedule"}}],
        }
    )
    sizes = [count_arm(recipe.training(arm, seed=0, output="x"), arm.name)[1] for arm in recipe.arms]
    assert sizes[1].parameters < sizes[0].parameters  # it has no routers
    assert sizes[0].parameters - sizes[1].parameters == 3 * 5 * (32 + 48)  # E * in of q and down, three layers
    with pytest.raises(TrainingError, match="any_size"):
        check_sizes(sizes)
    check_sizes(sizes, exempt={"rank"})


def test_examples_must_not_be_trained_and_tested_on(values, tmp_path):
    train = json.loads(Path(values["base"]["data"]["train"]).read_text().splitlines()[0])
    leaked = tmp_path / "leaked.jsonl"
    leaked.write_text(json.dumps({**train, "instruction": f"  {train['instruction']} "}) + "\n")
    with pytest.raises(DatasetError, match="1 test examples are also among the training examples"):
        compare_schedules(
            ComparisonRecipe.of({**values, "test": {**values["test"], "data": str(leaked)}}), output=tmp_path / "out"
        )


def test_tuning_takes_the_best_on_validation_for_every_arm(values, tmp_path):
    folder = tmp_path / "out"
    validation = values["test"]["data"].replace("test.jsonl", "validation.jsonl")
    tune = {"key": "optim.learning_rate", "values": [1e-8, 0.03], "validation": validation}
    short = {
        **values,
        "base": {**values["base"], "optim": {"steps": 2, "batch_size": 4}},
        "tune": tune,
        "untrained": False,
    }
    found = compare_schedules(ComparisonRecipe.of(short), output=folder)
    for arm in found.arms:
        record = json.loads((folder / "arms" / arm.name / "tuning.json").read_text())
        best = max(range(2), key=lambda position: record["accuracy"][str(position)])
        assert arm.tuned == tune["values"][best] == tune["values"][record["chosen"]]
    assert "validation" in found.notes[1]
    assert list(json.loads((folder / "test.json").read_text())["adapters"]) == ["lora/seed-0", "uniform/seed-0"]


def test_the_command_prints_the_tables(finished, values, capsys):
    from alphalloc.cli import main

    folder, found, _ = finished
    recipe = folder.parent / "comparison.yaml"
    recipe.write_text(json.dumps(values))  # YAML holds JSON
    assert main(["compare-schedules", str(recipe), "-o", str(folder), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(found.arm_table())
    recipe.write_text(json.dumps({**values, "arm": []}))
    assert main(["compare-schedules", str(recipe), "-o", str(folder)]) == 2
    assert "did you mean 'arms'" in capsys.readouterr().err


def test_the_evaluate_command_reads_a_run(finished, values, capsys, tmp_path):
    from alphalloc.cli import main

    folder, found, _ = finished
    run = folder / found.arms[0].seeds[0].folder
    saved = tmp_path / "evaluation.json"
    asked = ["evaluate", str(run), "--data", values["test"]["data"], "--options", "w5,w6", "--quiet"]
    assert main([*asked, "-o", str(saved)]) == 0
    assert f"{found.arms[0].accuracy_mean:.3f}" in capsys.readouterr().out
    assert json.loads(saved.read_text())["correct"] == found.arms[0].seeds[0].correct
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["per_task"][0]["task"] == "parity"
    assert main([*asked, "--mode", "guess"]) == 2
    assert "--mode: expected one of likelihood, generate" in capsys.readouterr().err


def seeds(rights):
    """Results of seeds 0, 1, .. from texts of ones and zeros."""
    return [
        SeedResult(
            i, r.count("1") / len(r), *wilson(r.count("1"), len(r)), r.count("1"), len(r), 1.0, 1.0, None, None, "f", r
        )
        for i, r in enumerate(rights)
    ]


def test_differences_are_paired_by_seed_and_by_question():
    fields = {"any_size": False, "schedule": "al_", "num_experts": (1,), "tuned": None}
    first = arm_result("a", seeds(["1111", "1110", "1100"]), reference=10, parameters=10, **fields)
    second = arm_result("b", seeds(["1110", "1100", "1000"]), reference=10, parameters=11, **fields)
    assert first.accuracy_mean == pytest.approx(0.75)
    assert second.size_difference == pytest.approx(0.1)
    pair = paired_results([first, second])[0]
    assert pair.difference == pytest.approx(0.25)
    assert pair.interval == pytest.approx([0.25, 0.25])  # a quarter for every seed
    by_question = [0, 1 / 3, 1 / 3, 1 / 3]
    half = 3.182446 * (sum((x - 0.25) ** 2 for x in by_question) / 3 / 4) ** 0.5  # t with 3 degrees of freedom
    assert pair.question_interval == pytest.approx([0.25 - half, 0.25 + half], abs=1e-6)
    assert pair.resolved == (0.25 - half > 0)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read"):
        compare_schedules(tmp_path / "none.yaml", output=tmp_path)
