"""allocate's further options: units, ranks, modules, signals, constraints, confidence; against the library."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import alphalloc
from alphalloc import Budget, ExpertSchedule, ModelAlphas, allocate
from alphalloc.allocation import Adapter, ModuleShapes, allocate_ranks, metric_scores

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def alphas_file(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return alphalloc.analyze(tiny, cache=False).save(tmp_path_factory.mktemp("alphas") / "alphas.json")


@pytest.fixture(scope="module")
def alphas(alphas_file: Path) -> ModelAlphas:
    return ModelAlphas.load(alphas_file)


@pytest.fixture
def schedule(run: Run, alphas_file: Path) -> Callable[..., ExpertSchedule]:
    """Return the schedule that the command line prints for these options."""

    def schedule(*options: str | Path) -> ExpertSchedule:
        done = run("allocate", alphas_file, *options, "--json")
        assert done.returncode == 0, done.stderr
        return ExpertSchedule.from_json(done.stdout)

    return schedule


def test_units_of_the_budget(schedule, alphas):
    adapter = Adapter.on(ModuleShapes.of_matrices(alphas.matrices), r=4, target_modules=["q_proj"])
    assert schedule("--experts-per-layer", "2.5").id == allocate(alphas, Budget.experts_per_layer(2.5)).id
    by_parameters = schedule("--parameters", "9000", "-r", "4", "--target-modules", "q_proj")
    assert by_parameters.id == allocate(alphas, Budget.parameters(9000, adapter)).id
    assert by_parameters.adapter.num_parameters <= 9000
    by_size = schedule("--megabytes", "0.018", "--dtype", "float16", "-r", "4", "--target-modules", "q_proj")
    assert by_size.num_experts == by_parameters.num_experts


def test_ranks_modules_and_signals(schedule, alphas, tmp_path):
    ranks = schedule("--ranks-per-layer", "16", "--rank-multiple", "4", "--max-rank", "24")
    assert ranks.id == allocate_ranks(alphas, Budget.ranks_per_layer(16), multiple_of=4, max_rank=24).id
    assert sum(ranks.ranks) == 64
    modules = schedule("--level", "module", "--experts", "24")
    assert modules.id == allocate(alphas, 24, level="module").id
    flattest = schedule("--metric", "stable_rank", "--direction", "lower")
    signal = metric_scores(alphas, "stable_rank", direction="lower")
    assert flattest.id == allocate(signal, Budget.experts_per_layer()).id
    (tmp_path / "fisher.csv").write_text("layer,score\n0,1\n1,2\n2,3\n3,4\n")
    external = schedule("--scores", tmp_path / "fisher.csv", "--rule", "alpha_power", "--beta", "1", "--experts", "20")
    assert external.num_experts == (2, 4, 6, 8)
    assert external.signal.name == "fisher"


def test_constraints_and_parameters_of_a_rule(schedule, alphas, tmp_path):
    (tmp_path / "limits.json").write_text('{"max_experts": {"2": 3}}')
    options = ["--pin", "0=7", "--freeze", "1", "--constraints", tmp_path / "limits.json", "--experts", "20"]
    assert schedule(*options).num_experts == (7, 0, 3, 10)
    assert len(set(schedule("--group", "0,1,2,3").num_experts)) == 1
    gentle = allocate(alphas, 20, rule="linear", params={"eps": 0.1})
    assert schedule("--rule", "linear", "--param", "eps=0.1").id == gentle.id


def test_confidence_is_shown_and_kept(run, schedule, alphas_file, alphas):
    assert (
        schedule("--confidence", "--draws", "50").confidence
        == allocate(alphas, Budget.experts_per_layer(), confidence=True, draws=50).confidence
    )
    table = run("allocate", alphas_file, "--confidence", "--draws", "50").stdout
    assert "5-95 %" in table
    assert "of 50 draws within alpha's own error change the schedule" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--experts", "9", "--parameters", "9"), "found --experts and --parameters; keep one"),
        (("--dtype", "float16"), "--dtype belongs to --megabytes"),
        (("--metric", "stable_rank"), "--metric needs --direction"),
        (("--direction", "lower"), "--direction belongs to"),
        (("--metric", "entropy", "--scores", "x.csv"), "found --metric and --scores"),
        (("--scores", "missing.csv"), "missing.csv: cannot be read"),
        (("--pin", "0"), "expected KEY=VALUE"),
        (("--pin", "0=x"), "expected a number"),
        (("--pin", "9=1"), "'9' names no layer"),
        (("--constraints", "missing.json"), "cannot be read as JSON"),
        (("--min-rank", "4"), "rank bounds and --experts-each need"),
        (("--ranks", "64", "--max-experts", "3"), "--max-experts is not for ranks"),
        (("--ranks", "64", "--confidence"), "--confidence is not for ranks"),
        (("--draws", "5"), "--draws belongs to --confidence"),
        (("--parameters", "10", "-r", "4"), "parameters"),
        (("--target-modules", "nope", "--parameters", "9999"), "no module has the role 'nope'"),
    ],
)
def test_contradictions_are_named(run, alphas_file, options, message):
    done = run("allocate", alphas_file, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def schedules(alphas, tmp_path) -> tuple[Path, Path]:
    return allocate(alphas, 20).save(tmp_path / "a.json"), allocate(alphas, 24).save(tmp_path / "b.json")


def test_export_prints_or_writes(run, schedules, tmp_path):
    printed = run("export", schedules[0], "--to", "peft")
    assert set(json.loads(printed.stdout)) >= {"r", "rank_pattern", "alpha_pattern", "target_modules"}
    run("export", schedules[0], "--to", "peft", "-o", "lora.json")
    assert (tmp_path / "lora.json").read_text() == printed.stdout
    (tmp_path / "mine.yaml").write_text("base_model: x  # keep me\nlora_r: 1\n")
    edited = run("export", schedules[0], "--to", "axolotl", "--into", tmp_path / "mine.yaml").stdout
    assert "# keep me" in edited
    assert "lora_rank_pattern" in edited
    assert (tmp_path / "mine.yaml").read_text().endswith("lora_r: 1\n")


def test_export_checks_the_model(run, schedules, tiny, alphas, tmp_path):
    assert run("export", schedules[0], "--to", "peft", "--model", tiny).returncode == 0
    other = ExpertSchedule.from_counts([2, 2, 2]).save(tmp_path / "three.json")
    done = run("export", other, "--to", "peft", "--model", tiny)
    assert (done.returncode, "3 layers" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "pfet"), "did you mean 'peft'"),
        (("--to", "mixlora"), "--average"),
        (("--to", "peft", "--into", "x.yaml"), "x.yaml: cannot be read"),
        (("--to", "peft", "-r", "0"), "positive whole number"),
    ],
)
def test_export_refuses_by_name(run, schedules, options, message):
    done = run("export", schedules[0], *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_diff_and_validate(run, schedules, alphas_file, tiny, tmp_path):
    assert run("diff", schedules[0], schedules[0]).stdout == "no difference\n"
    assert "20 -> 24 experts;" in run("diff", *schedules).stdout
    assert json.loads(run("diff", *schedules, "--json").stdout)["moved"] == 4
    assert "valid schedule, 20 experts in 4 layers" in run("validate", schedules[0], "--model", tiny).stdout
    assert "valid alphas, 8 matrices in 4 layers" in run("validate", alphas_file).stdout
    (tmp_path / "edited.json").write_text(schedules[0].read_text().replace('"max_top_k": 2', '"max_top_k": 3'))
    done = run("validate", "edited.json")
    assert (done.returncode, "was edited" in done.stderr) == (2, True)
