"""Runs on a tiny model: what they write, that they resume bit for bit, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alphalloc.allocation import ExpertSchedule, ModelRef
from alphalloc.errors import (
    AdapterError,
    AlphallocError,
    CheckpointNotFoundError,
    DatasetError,
    DocumentError,
    MissingExtraError,
    OutputError,
    RecipeError,
    TrainingError,
)
from alphalloc.training.train import load_trained, train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    """The lines without how long their evaluation took."""
    times = ("runtime", "per_second", "preparation_time")
    return [{key: value for key, value in line.items() if not key.endswith(times)} for line in lines(path)]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(tiny: Any, model_folder: str, data_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything on: MoLA's balance loss, evaluation, TensorBoard, the picture."""
    from alphalloc.training.recipe import Recipe

    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = Recipe.of(
        {
            "preset": "mola",
            "model": model_folder,
            "data": {"train": data_file, "template": "plain", "eval_share": 0.2, "completion_only": True},
            "output": str(folder),
            "schedule": {"rule": "alpha_power", "experts": 9},  # MoLA's shapes need four layers
            "adapter": {"r": 2, "target_modules": ["q_proj", "down_proj"]},
            "optim": {"steps": 5, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 0, "learning_rate": 0.01},
            "run": {"log_every": 2, "eval_every": 2, "save_every": 3, "report_to": ["tensorboard"], "device": "cpu"},
        }
    )
    seen = []
    result = train(recipe, progress=lambda p: seen.append((p.doing, p.step, p.steps)))
    assert result.steps == 5
    assert result.eval["eval_loss"] == lines(folder / "log.jsonl")[-1]["eval_loss"]
    assert [step for doing, step, _ in seen if doing == "training"] == [1, 2, 3, 4, 5]
    return folder


def test_a_run_leaves_its_record(finished: Path) -> None:
    card = json.loads((finished / "card.json").read_text())
    assert (card["kind"], card["status"], card["recipe"]["preset"]) == ("TrainingRun", "finished", "mola")
    assert card["versions"].keys() >= {"alphalloc", "python", "torch", "transformers", "peft"}
    assert card["data"]["train"]["examples"] + card["data"]["eval"]["examples"] == 22
    assert len(card["data"]["train"]["sha256"]) == 64
    rows = card["parameters"]["layers"]
    assert [row["num_experts"] for row in rows] == card["schedule"]["num_experts"]
    assert sum(row["parameters"] for row in rows) == card["parameters"]["trainable"] == card["result"]["parameters"]
    assert sum(p.numel() for p in weights(finished).values()) == card["parameters"]["trainable"]
    assert card["schedule"]["id"] == ExpertSchedule.load(finished / "schedule.json").id
    page = (finished / "README.md").read_text()
    assert card["schedule"]["id"] in page
    assert f"{card['parameters']['trainable']:,}" in page
    assert (finished / "routing.svg").read_text().startswith("<?xml")


def test_every_layers_routing_is_logged(finished: Path) -> None:
    schedule = ExpertSchedule.load(finished / "schedule.json")
    routing = lines(finished / "routing.jsonl")
    assert sorted({line["step"] for line in routing}) == [1, 2, 4, 5]
    several = [layer.layer for layer in schedule.layers if layer.num_experts > 1]
    assert {(line["layer"], line["role"]) for line in routing} == {
        (layer, role) for layer in several for role in ("q_proj", "down_proj")
    }
    for line in routing:
        assert sum(line["load"]) == pytest.approx(1)
        assert len(line["load"]) == line["num_experts"] == schedule.num_experts[line["layer"]]
        assert 0 <= line["entropy"] <= 1 + 1e-9
    # Evaluations run the same model and must not count: only the training tokens of the window do.
    tokens = {line["step"]: line["tokens"] for line in routing}
    log = {line["step"]: line for line in lines(finished / "log.jsonl") if "loss" in line}
    assert set(tokens) == set(log)
    assert sum(tokens.values()) < 5 * 4 * 12


def test_the_numbers_reach_tensorboard(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "eval_loss", "routing/entropy/layer_002", "routing/load/layer_002/expert_0"} <= set(tags)
    logged = [line["loss"] for line in lines(finished / "log.jsonl") if "loss" in line]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(logged, rel=1e-6)


def test_the_trained_adapter_loads(finished: Path, tiny: Any) -> None:
    model, tokenizer = load_trained(finished)
    assert tokenizer.decode([5]) == "w5"
    stored = weights(finished)
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if "molora" in name.lower()}
    assert loaded
    assert sum(p.numel() for p in loaded.values()) == sum(p.numel() for p in stored.values())
    with model.disable_adapter():
        plain = tiny.logits(model)
    assert not torch.allclose(tiny.logits(model), plain, atol=1e-3)


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    from alphalloc.training.recipe import Recipe

    recipe = Recipe.load(finished / "recipe.yaml")
    before = (finished / "card.json").read_bytes()
    result = train(recipe, resume=True)
    assert result.folder == finished
    assert result.document() == {**json.loads(before)["result"], "folder": str(finished)}
    assert (finished / "card.json").read_bytes() == before
    with pytest.raises(TrainingError, match="is not empty; resume what is in it, or choose another output"):
        train(recipe)
    with pytest.raises(TrainingError, match="holds a run with optim.learning_rate 0.01, the recipe has 0.02"):
        train(recipe.changed("optim.learning_rate=0.02"), resume=True)


MOELORA = {"balance": "switch", "contrastive": "moelora", "contrastive_start_step": 2}


@pytest.mark.parametrize("adapter", [MOELORA, {"balance": "mola"}, {"method": "lora"}], ids=["moelora", "mola", "lora"])
def test_a_run_stopped_and_resumed_is_the_run_not_stopped(adapter: dict[str, Any], recipe: Any, tmp_path: Path) -> None:
    # 22 examples, 4 a step: 6 steps an epoch. Dropout, and a stop in the middle of the second epoch.
    texts = ["optim.steps=9", "run.save_every=4", "optim.warmup_steps=2", "optim.micro_batch_size=2"]
    adapter = {"dropout": 0.2, "r": 2, **adapter}
    straight = recipe(*texts, adapter=adapter, output=str(tmp_path / "straight"))
    stopped = recipe(*texts, adapter=adapter, output=str(tmp_path / "stopped"))
    whole = train(straight)

    def stop(progress: Any) -> None:
        if progress.doing == "training" and progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=stop)
    torch.rand(3)  # whatever another run drew in between
    result = train(stopped, resume=True)
    assert (result.resumed_from, result.steps) == (4, 9)
    assert same(weights(whole.folder), weights(result.folder))
    for name in ("log.jsonl", "routing.jsonl"):
        if (whole.folder / name).exists() or adapter.get("method") != "lora":
            assert lines(whole.folder / name) == lines(result.folder / name)


@pytest.mark.parametrize("steps", [6, 8], ids=["in an epoch", "at its end"])
def test_a_run_stopped_after_its_last_step_takes_no_other(steps: int, recipe: Any, tmp_path: Path) -> None:
    from alphalloc.training.runs import ensure_trained

    # 16 examples, 4 a step: 4 steps an epoch; 4 more to evaluate on at the end.
    texts = [f"optim.steps={steps}", "run.save_every=2", "run.keep=1", "optim.lr_scheduler=constant", "data.limit=20"]
    texts += ["data.eval_share=0.2", "run.log_every=4"]
    whole = train(recipe(*texts, output=str(tmp_path / "straight")))
    stopped = recipe(*texts, output=str(tmp_path / "stopped"))

    def stop(progress: Any) -> None:
        if progress.doing == "evaluating":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=stop)
    record = ensure_trained(stopped, tmp_path / "stopped", frozen=False, say=lambda line: None)
    assert (record["steps"], record["train_loss"], record["cpu_seconds"]) == (steps, whole.train_loss, None)
    for _ in range(2):
        assert same(weights(whole.folder), weights(tmp_path / "stopped"))
        card = json.loads((tmp_path / "stopped" / "card.json").read_text())
        assert (card["result"]["eval"], card["result"]["resumed_from"]) == (whole.eval, steps)
        for name in ("log.jsonl", "routing.jsonl"):
            assert untimed(whole.folder / name) == untimed(tmp_path / "stopped" / name)
        # As if it had been killed after that evaluation, before the card: not logged twice.
        (tmp_path / "stopped" / "card.json").write_text(json.dumps({**card, "status": "running"}))
        train(stopped, resume=True)


def test_a_seed_is_a_run(recipe: Any, tmp_path: Path) -> None:
    runs = [
        train(recipe("optim.steps=2", f"seed={s}", output=str(tmp_path / n))) for n, s in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert same(weights(runs[0].folder), weights(runs[1].folder))
    assert not same(weights(runs[0].folder), weights(runs[2].folder))


def test_conversations_and_gradient_checkpointing_train(recipe: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    result = train(recipe(f"data.train={path}", "optim.gradient_checkpointing=true", "optim.steps=3"))
    losses = [line["loss"] for line in lines(result.folder / "log.jsonl")]
    assert losses[-1] < losses[0]
    assert json.loads((result.folder / "card.json").read_text())["data"]["template"] == "chat"  # though not asked for


def test_conversations_among_instructions_need_the_chat_template(recipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    turns = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    rows = [{"messages": turns}, {"instruction": "w3 w4", "output": "w5"}, {"instruction": "w7", "output": "w6"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = recipe(f"data.train={path}", "optim.steps=1")
    refused(mixed, DatasetError, "1 of 3 examples are conversations, the others instructions; set the template 'chat'")
    train(mixed.changed("data.template=chat"))


# What is refused -------------------------------------------------------------------------------------------------


def refused(recipe: Any, error: type[AlphallocError], message: str) -> None:
    with pytest.raises(error, match=message):
        train(recipe)
    assert not Path(recipe.output).exists(), "nothing half-made is left"


def test_a_schedule_of_another_depth_is_refused(recipe: Any, tmp_path: Path) -> None:
    path = ExpertSchedule.from_counts([2, 2]).save(tmp_path / "two.json")
    refused(recipe(schedule={"file": str(path), "counts": None}), TrainingError, "a schedule of 3 layers .* with 2")
    refused(recipe("schedule.counts=[1, 2, 3, 4]"), TrainingError, "a schedule of 3 layers .* with 4")


def test_a_schedule_of_another_model_is_said_loudly(recipe: Any, tmp_path: Path) -> None:
    other = ModelRef(id="another", fingerprint="sha256:" + "0" * 64, num_layers=3)
    path = ExpertSchedule.from_counts([2, 1, 2], model=other).save(tmp_path / "other.json")
    result = train(recipe("optim.steps=1", schedule={"file": str(path), "counts": None}))
    assert "was made from another" in result.warnings[0]
    assert "Warning: schedule" in (result.folder / "README.md").read_text()


def test_an_adapter_of_another_base_model_is_refused(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(recipe().model, base)
    mine = recipe("optim.steps=2", "run.save_every=1", model=str(base))

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(mine, progress=stop)
    tiny.llama(inner=64).save_pretrained(base)
    with pytest.raises(TrainingError, match="was begun with another base model"):
        train(mine, resume=True)
    done = train(recipe("optim.steps=1", model=str(base), output=str(tmp_path / "done")))
    tiny.llama().save_pretrained(base)
    with pytest.raises(AdapterError, match="the adapter was trained on base .* restore the base model"):
        load_trained(done.folder)


def test_other_bad_input_is_refused_before_anything_is_made(recipe: Any, tmp_path: Path) -> None:
    refused(recipe("data.cutoff=4"), DatasetError, "none of 22 examples is left to train on: 22 are longer")
    refused(recipe("data.overlong=error", "data.cutoff=9"), DatasetError, "of 22 examples are longer than the cutoff")
    refused(recipe("data.train=nothing.jsonl"), DatasetError, "nothing.jsonl: cannot be read")
    refused(recipe("model=./nothing"), CheckpointNotFoundError, "no such path")
    refused(recipe(schedule={"file": "nothing.json", "counts": None}), DocumentError, "nothing.json")
    refused(recipe("run.fsdp=true"), RecipeError, "run.fsdp shards a model over CUDA devices")
    refused(recipe("run.dtype=float16"), RecipeError, "float16 trains on CUDA only")
    refused(recipe("optim.lr_scheduler=linea"), RecipeError, "transformers refuses the recipe: .*linea")
    with pytest.raises(AdapterError, match="match no linear of the model"):
        train(recipe('adapter.target_modules=["q_prj"]', output=str(tmp_path / "other")))


def test_a_missing_library_is_named(recipe: Any) -> None:
    import importlib.util

    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    refused(recipe('run.report_to=["wandb"]'), MissingExtraError, "asks for wandb, which is not installed: pip install")


def test_a_picture_that_cannot_be_drawn_is_refused_before_and_loses_nothing_after(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = recipe("run.picture=true", "optim.steps=2")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
        refused(mine, MissingExtraError, "run.picture needs matplotlib: pip install")

    def take_its_place(progress: Any) -> None:
        (Path(mine.output) / "routing.svg").mkdir(exist_ok=True)

    with pytest.raises(OutputError, match="cannot be written"):
        train(mine, progress=lambda p: take_its_place(p) if p.step == 2 else None)
    assert json.loads((Path(mine.output) / "card.json").read_text())["status"] == "finished"
    assert train(mine, resume=True).steps == 2


def test_a_trained_model_loads_where_its_run_was_and_a_broken_adapter_is_named(recipe: Any) -> None:
    run = train(recipe("optim.steps=1", "run.device=auto")).folder
    model, _ = load_trained(run)
    assert {p.device.type for p in model.parameters()} == {"cuda" if torch.cuda.is_available() else "cpu"}
    file = run / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="adapter: expected an adapter for"):
        load_trained(run)


def test_overlong_examples_are_said(recipe: Any) -> None:
    result = train(recipe("data.cutoff=9", "optim.steps=1"))
    count = json.loads((result.folder / "card.json").read_text())["data"]["train"]["overlong"]
    assert 0 < count < 22
    assert result.warnings == (f"{count} of 22 examples are longer than 9 tokens and were left out",)


def test_a_loss_that_is_no_number_ends_the_run(recipe: Any, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainingError, match="the loss is nan at step 1; lower optim.learning_rate"):
        train(recipe(model=str(tmp_path / "broken")))
