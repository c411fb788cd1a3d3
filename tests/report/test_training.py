"""Reports of trainings: what a run and a comparison leave behind, as charts that can be checked by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alphalloc.errors import DocumentError
from alphalloc.report import training_charts, training_html
from alphalloc.report.similarity import expert_similarity
from alphalloc.report.training_files import RoutingLine, read_comparison, read_run
from alphalloc.training.comparison import Comparison, SeedResult, arm_result, paired_results

EVIL = "<script>alert(1)</script>"
EXPERTS = 3


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def routed(step: int, layer: int, load: list[float], entropy: float, role: str = "q_proj") -> dict[str, object]:
    module = f"model.layers.{layer}.self_attn.{role}"
    return {
        "step": step, "layer": layer, "stack": "model.layers", "role": role, "module": module,
        "num_experts": len(load), "load": load, "entropy": entropy, "dead": [i for i, x in enumerate(load) if x == 0],
    }  # fmt: skip


def write_run(folder: Path, *, name: str = "made-up/model", loss: float = 2.0) -> Path:
    """A run's folder of two layers, two logged steps, and an adapter of three experts."""
    (folder / "adapter").mkdir(parents=True)
    card = {
        "kind": "TrainingRun", "schema_version": "1.0", "status": "finished", "model": {"id": name},
        "recipe": {"adapter": {"method": "moe", "r": 2}, "run": {"seed": 7}}, "parameters": {"trainable": 1234567},
        "result": {
            "steps": 20, "train_loss": 1.5, "eval": {"eval_loss": 1.25}, "seconds": 12.5, "peak_memory": 2_000_000_000,
        },
        "versions": {"alphalloc": "0.1.0"}, "commit": None,
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))
    lines(folder / "log.jsonl", [
        {"step": 10, "loss": loss, "learning_rate": 1e-3}, {"step": 10, "eval_loss": 1.9},
        {"step": 20, "loss": loss / 2}, {"step": 20, "loss": None},
    ])  # fmt: skip
    lines(folder / "routing.jsonl", [
        routed(10, 0, [0.5, 0.25, 0.25], 0.9), routed(10, 1, [1.0, 0.0, 0.0], 0.0),
        routed(20, 0, [0.2, 0.4, 0.4], 0.8), routed(20, 1, [0.6, 0.4, 0.0], 0.5),
        routed(20, 1, [0.0, 0.0, 1.0], 0.1, role="v_proj"), routed(20, 1, [1.0], 0.0, role="o_proj"),
    ])  # fmt: skip
    dice = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.alphalloc_molora_adapters"
        tensors[f"{stem}.experts_a.weight"] = dice.normal(size=(2 * EXPERTS, 5)).astype(np.float32)
        tensors[f"{stem}.experts_b.weight"] = dice.normal(size=(4, 2 * EXPERTS)).astype(np.float32)
        if layer == 0:  # the other shares this one's router
            tensors[f"{stem}.router.weight"] = np.zeros((EXPERTS, 5), dtype=np.float32)
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def write_comparison(folder: Path) -> Comparison:
    def seed(number: int, right: str, arm: str) -> SeedResult:
        share = right.count("1") / len(right)
        where = write_run(folder / "arms" / arm / f"seed-{number}", loss=2.0 + number)
        return SeedResult(
            number, share, share - 0.1, share + 0.1, right.count("1"), len(right), 3.0, 2.5, 10**9, 1.0,
            str(where.relative_to(folder)), right,
        )  # fmt: skip

    fields = {"reference": 100, "parameters": 100, "any_size": False, "schedule": "al_0", "tuned": None}
    arms = (
        arm_result("uniform", [seed(0, "1100", "a"), seed(1, "1000", "a")], num_experts=(2, 2), **fields),
        arm_result(EVIL, [seed(0, "1110", "b"), seed(1, "1011", "b")], num_experts=(1, 3), **fields),
    )
    found = Comparison(
        task="made-up task", model="made-up/model", steps=20, batch_size=4, test={"examples": 4, "mode": "likelihood"},
        untrained={"accuracy": 0.25, "low": 0.1, "high": 0.5}, arms=arms, paired=paired_results(arms),
        notes=("a note",), environment={},
    )  # fmt: skip
    (folder / "comparison.json").write_text(found.to_json())
    return found


def test_a_run_is_read_as_it_was_logged(run_folder):
    run = read_run(run_folder)
    assert run.series["loss"] == ((10.0, 20.0), (2.0, 1.0))
    assert run.series["eval_loss"] == ((10.0,), (1.9,))
    assert len(run.routing) == 6
    chart = training_charts.loss([("run", run)])
    assert [(one.name, one.x, one.y) for one in chart.series] == [
        ("run, training", (10.0, 20.0), (2.0, 1.0)),
        ("run, evaluation", (10.0,), (1.9,)),
    ]


def test_entropy_and_load_by_layer_over_time(run_folder):
    routing = read_run(run_folder).routing
    entropy = training_charts.entropy(routing)
    assert (entropy.x_labels, entropy.y_labels) == (("10", "20"), ("0", "1"))
    assert entropy.values == ((0.9, 0.8), (0.0, pytest.approx(0.3)))  # the linear with one expert routes nothing
    heaviest = training_charts.heaviest(routing)
    assert heaviest.values == (
        (pytest.approx(1.5), pytest.approx(1.2)),
        (pytest.approx(3.0), pytest.approx((1.8 + 3.0) / 2)),
    )
    load = training_charts.load(routing)
    assert load.values[1] == pytest.approx((0.9, 0.6, 1.5))
    assert "2 experts" not in load.summary
    assert "3 experts of all linears are dead" in load.summary


def test_many_steps_are_thinned_to_the_first_the_last_and_some_between():
    routing = [RoutingLine(**routed(step, 0, [0.5, 0.5], 1.0)) for step in range(1, 501)]
    labels = training_charts.entropy(routing).x_labels
    assert len(labels) == training_charts.MAX_STEPS
    assert (labels[0], labels[-1]) == ("1", "500")


def test_the_similarity_is_the_cosine_of_the_updates_written_out(run_folder):
    from safetensors.numpy import load_file

    found = {one.module: one for one in expert_similarity(run_folder / "adapter", {
        "model.layers.1.self_attn.q_proj": EXPERTS,
    })}  # fmt: skip
    tensors = load_file(run_folder / "adapter" / "adapter_model.safetensors")
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.alphalloc_molora_adapters"
        a, b = tensors[f"{stem}.experts_a.weight"], tensors[f"{stem}.experts_b.weight"]
        updates = [(b[:, 2 * e : 2 * e + 2] @ a[2 * e : 2 * e + 2]).ravel() for e in range(EXPERTS)]
        cosines = [
            updates[i] @ updates[j] / (np.linalg.norm(updates[i]) * np.linalg.norm(updates[j]))
            for i in range(EXPERTS)
            for j in range(i + 1, EXPERTS)
        ]
        one = found[f"model.layers.{layer}.self_attn.q_proj"]
        assert one.mean == pytest.approx(np.mean(cosines), rel=1e-5)
        assert one.largest == pytest.approx(max(cosines), rel=1e-5)


def test_equal_experts_are_alike_and_untrained_ones_unknown(tmp_path):
    stem = "base_model.model.m.alphalloc_molora_adapters"
    a, b = np.ones((2, 3), dtype=np.float32), np.ones((3, 2), dtype=np.float32)
    tensors = {f"{stem}.experts_a.weight": a, f"{stem}.router.weight": np.zeros((2, 3), dtype=np.float32)}
    save_file({**tensors, f"{stem}.experts_b.weight": b}, tmp_path / "adapter_model.safetensors")
    assert expert_similarity(tmp_path)[0].mean == pytest.approx(1.0)
    save_file({**tensors, f"{stem}.experts_b.weight": 0 * b}, tmp_path / "adapter_model.safetensors")
    assert expert_similarity(tmp_path)[0].mean is None
    assert expert_similarity(tmp_path / "elsewhere") == ()


@pytest.mark.parametrize("light", [True, False])
def test_the_report_of_a_run(run_folder, light):
    page = training_html(run_folder, light=light)
    for words in ("Loss by step", "Entropy of the experts", "The most used expert", "Similarity between experts"):
        assert words in page
    assert "1,234,567" in page
    assert re.search(r"eval loss</dt>\s*<dd>1\.25<", page)
    assert f"alphalloc report {run_folder}{' --light' if light else ''} -o report.html" in page
    assert ("<script" in page) is not light


def test_the_report_of_a_comparison(tmp_path):
    comparison = write_comparison(tmp_path)
    found = read_comparison(tmp_path)
    chart = training_charts.accuracy(found.arms, 0.25)
    mean = chart.series[0]
    assert mean.y == (0.375, 0.75)
    assert (mean.low[0], mean.high[0]) == tuple(comparison.arms[0].interval)
    assert [one.y for one in chart.series[1:3]] == [(0.5, 0.75), (0.25, 0.75)]
    assert chart.series[3].y == (0.25, 0.25)
    page = training_html(tmp_path, light=True)
    assert page.count("Loss by step") >= 1
    assert EVIL not in page
    assert "a note" in page
    assert "-0.375; not told apart" in page
    experts = training_charts.experts_by_arm(found.arms)
    assert [one.y for one in experts.series] == [(2.0, 2.0), (1.0, 3.0)]


def test_one_seed_has_the_interval_of_the_examples(tmp_path):
    arm = read_comparison_of_one(tmp_path)
    bars = training_charts.accuracy([arm]).series
    assert len(bars) == 1
    assert (bars[0].low, bars[0].high, bars[0].note) == ((0.4,), (0.6,), "95 % over test examples")


def read_comparison_of_one(folder: Path):
    write_comparison(folder)
    arm = read_comparison(folder).arms[0]
    return arm.model_copy(update={"seeds": arm.seeds[:1], "interval": None})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("card.json", '{"kind": "other"}', "expected kind 'TrainingRun', found 'other'"),
        ("log.jsonl", "[1]\n", "expected one JSON object a line"),
        ("log.jsonl", "{]\n", "cannot be read as JSON lines"),
        ("routing.jsonl", '{"step": 1}\n', "routing.jsonl: layer: Field required"),
    ],
)
def test_damaged_files_are_named(run_folder, name, text, message):
    (run_folder / name).write_text(text)
    with pytest.raises(DocumentError, match=message):
        training_html(run_folder, light=True)


def test_a_line_that_was_never_finished_is_left_out(run_folder):
    with (run_folder / "log.jsonl").open("a") as stream:
        stream.write('{"step": 30, "lo')
    assert read_run(run_folder).series["loss"][0] == (10.0, 20.0)


def test_a_comparison_reads_no_run_outside_its_folder(tmp_path):
    write_run(tmp_path / "outside", loss=99.0)
    inside = tmp_path / "inside"
    write_comparison(inside)
    document = json.loads((inside / "comparison.json").read_text())
    for arm in document["arms"]:
        for seed in arm["seeds"]:
            seed["folder"] = "../outside"
    (inside / "comparison.json").write_text(json.dumps(document))
    assert "Loss by step" not in training_html(inside, light=True)


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "log.jsonl").unlink()
    (folder / "routing.jsonl").unlink()
    assert "Nothing was logged in this folder yet." in training_html(folder, light=True)
