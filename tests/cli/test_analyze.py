"""analyze: the table, the documents and the library's answer are one and the same."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import alphalloc
from alphalloc import ExpertSchedule, ModelAlphas

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_table_of_a_real_model(run: Run, minilm: Path) -> None:
    done = run("analyze", minilm, "--experts", "36", "--top-k", "1")
    assert done.returncode == 0, done.stderr
    schedule = alphalloc.allocate(alphalloc.analyze(minilm, cache=False), 36, top_k=1)
    rows = re.findall(r"^ +(\d+) +(\d\.\d{3}) +[█▏▎▍▌▋▊▉]+ +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert rows == [
        (str(row.layer), f"{row.alpha:.3f}", str(row.num_experts), str(row.top_k)) for row in schedule.layers
    ]
    assert "layer   alpha" in done.stdout
    for said in ("estimator xmin_peak_robust", "rule alpha_power (beta 2.5)", "largest_remainder", schedule.id):
        assert said in done.stdout
    assert "36 experts in 6 layers" in done.stdout


def test_documents_are_the_librarys_byte_for_byte(run: Run, minilm: Path, tmp_path: Path) -> None:
    done = run(
        "analyze", minilm, "-o", "new/a.json", "--schedule", "new/s.json", "--json", "--estimator", "xmin_median"
    )
    alphas = alphalloc.analyze(str(minilm), estimator="xmin_median", cache=False)
    schedule = alphalloc.allocate(alphas, 30)
    assert (tmp_path / "new/a.json").read_text() == alphas.to_json()
    assert (tmp_path / "new/s.json").read_text() == schedule.to_json()
    assert json.loads(done.stdout) == {
        "alphas": json.loads(alphas.to_json()),
        "schedule": json.loads(schedule.to_json()),
    }
    assert ModelAlphas.load(tmp_path / "new/a.json") == alphas
    assert ExpertSchedule.load(tmp_path / "new/s.json") == schedule
    assert {matrix["estimator"] for matrix in json.loads(done.stdout)["alphas"]["matrices"]} == {"xmin_median"}
    assert done.stderr.splitlines()[-2:] == ["wrote new/a.json", "wrote new/s.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.json", "s.json"]


def test_every_option_reaches_the_library(run: Run, tiny: Path, tmp_path: Path) -> None:
    options = "--estimator hill_fraction --hill-fraction 0.4 --include *_proj --exclude down_proj --embeddings"
    more = "--layer-pattern layers.{}. --fill median --backend batched --device cpu --workers 1 --no-cache"
    allocation = "--experts 11 --beta 1.5 --rounding min1_largest_remainder --min-experts 2 --max-experts 4 --top-k 3"
    done = run("analyze", tiny, *f"{options} {more} {allocation} --json".split())
    assert done.returncode == 0, done.stderr
    alphas = alphalloc.analyze(
        str(tiny), estimator="hill_fraction", hill_fraction=0.4, include=["*_proj"], exclude=["down_proj"],
        embeddings=True, layer_pattern="layers.{}.", fill="median", backend="batched", device="cpu", workers=1,
        cache=False,
    )  # fmt: skip
    schedule = alphalloc.allocate(
        alphas, 11, beta=1.5, rounding="min1_largest_remainder", min_experts=2, max_experts=4, top_k=3
    )
    printed = json.loads(done.stdout)
    assert ModelAlphas.from_json(json.dumps(printed["alphas"])) == alphas
    assert printed["schedule"]["id"] == schedule.id
    assert {matrix.role for matrix in alphas.matrices} == {"q_proj"}


@pytest.mark.parametrize("rule", ["uniform", "mola_triangle", "pattern:8,2"])
def test_rules(run: Run, tiny: Path, rule: str) -> None:
    done = run("analyze", tiny, "--rule", rule, "--json")
    schedule = alphalloc.allocate(alphalloc.analyze(tiny, cache=False), 20, rule=rule)
    assert json.loads(done.stdout)["schedule"]["id"] == schedule.id


def test_paper_preset(run: Run, minilm: Path) -> None:
    done = run("analyze", minilm, "--paper", "alphalora", "--beta", "2.5", "--json")
    schedule = json.loads(done.stdout)["schedule"]
    assert schedule["analysis"]["estimator"] == "xmin_peak_reference"
    assert (schedule["rounding"], schedule["rule"]) == ("reference", {"name": "alpha_power", "params": {"beta": 2.5}})


def test_quiet_says_nothing_beside_the_result(run: Run, tiny: Path) -> None:
    done = run("analyze", tiny, "-q", "-o", "a.json", "--no-cache")
    assert done.stderr == ""
    assert "20 experts in 4 layers" in done.stdout
    loud = run("analyze", tiny, "--no-cache")
    assert loud.stdout == done.stdout
    assert loud.stderr.startswith("plan: 8 matrices")
    assert "\nanalysing " in loud.stderr


def test_degenerate_matrices(run: Run, degenerate: Path, tmp_path: Path) -> None:
    refused = run("analyze", degenerate, "-o", "a.json", "--schedule", "s.json")
    assert refused.returncode == 2
    assert "layer 3" in refused.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]  # the analysis is kept, no schedule comes of it
    filled = run("analyze", degenerate, "--fill", "median", "--json")
    assert filled.returncode == 0, filled.stderr
    printed = json.loads(filled.stdout, parse_constant=pytest.fail)  # null, never NaN
    matrices = {matrix["name"]: matrix for matrix in printed["alphas"]["matrices"]}
    broken = {name: matrix["status"] for name, matrix in matrices.items() if matrix["alpha"] is None}
    assert broken == {
        "model.layers.1.self_attn.q_proj.weight": "too_few",
        "model.layers.2.mlp.down_proj.weight": "non_finite",
        "model.layers.3.self_attn.q_proj.weight": "flat_spectrum",
        "model.layers.3.mlp.down_proj.weight": "too_few",
    }
    assert all(matrices[name]["reason"] for name in broken)
    assert "note: 4 of 8 matrices have no alpha" in filled.stderr


def test_strict(run: Run, degenerate: Path, tiny: Path, tmp_path: Path) -> None:
    done = run("analyze", degenerate, "--strict", "--fill", "median", "-o", "a.json")
    assert done.returncode == 2
    assert "4 of 8 matrices have no alpha" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert run("analyze", tiny, "--strict").returncode == 0


def test_hostile_names_reach_no_terminal(
    run: Run, save: Callable[[dict[str, np.ndarray]], Path], tiny_llama: dict[str, np.ndarray]
) -> None:
    name = "model.layers.0.\x1b[31m[red]\u202e.weight"
    checkpoint = save({**tiny_llama, name: tiny_llama["model.layers.0.self_attn.q_proj.weight"]})
    for arguments in (("inspect", checkpoint), ("analyze", checkpoint, "--no-cache")):
        done = run(*arguments)
        assert "\x1b" not in done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
    assert r"model.layers.0.\x1b[31m[red]\u202e.weight" in run("inspect", checkpoint).stdout
    printed = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert name in {matrix["name"] for matrix in printed["matrices"]}


BAD = [
    (("--experts", "3"), "3 experts is below 4 layers x min_experts 1 = 4"),
    (("--experts", "9", "--max-experts", "2"), "9 experts is above 4 layers x max_experts 2 = 8"),
    (("--experts", "-4"), "found -4"),
    (("--beta", "nan"), "beta must be a finite number"),
    (("--beta", "inf"), "beta must be a finite number"),
    (("--top-k", "0"), "top_k must be a whole number of at least 1"),
    (("--min-experts", "-1"), "min_experts must be a whole number"),
    (("--min-experts", "3", "--max-experts", "2"), "contradict"),
    (("--rule", "alpha_pover"), "no allocation rule 'alpha_pover'; did you mean 'alpha_power'?"),
    (("--rule", "zzz"), "no allocation rule 'zzz'; known: alpha_power, "),
    (("--rule", "uniform", "--beta", "3"), "rule 'uniform' has no setting 'beta'"),
    (("--rounding", "largest_remainders"), "did you mean 'largest_remainder'?"),
    (("--estimator", "xmin_peek"), "no estimator 'xmin_peek'; did you mean 'xmin_peak'?"),
    (("--hill-fraction", "0.5"), "--hill-fraction belongs to --estimator hill_fraction"),
    (("--estimator", "hill_fraction", "--hill-fraction", "0"), "(0, 1]"),
    (("--paper", "alphalor"), "no paper preset 'alphalor'; did you mean 'alphalora'?"),
    (("--paper", "alphalora", "--beta", "3"), "means beta 2.5, but beta 3.0 was given"),
    (("--paper", "alphalora", "--estimator", "ks"), "means estimator xmin_peak_reference, but estimator ks"),
    (("--include", "nothing*"), "nothing*"),
    (("--layer-pattern", "("), "layer pattern '('"),
    (("--revision", "main"), "only hub ids have revisions"),
    (("-o", "."), "not a regular file"),
    (("-o", "same.json", "--schedule", "./same.json"), "--schedule same.json would overwrite what --output writes"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_refused_before_the_work(
    run: Run, tiny: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = run("analyze", tiny, "--no-cache", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1  # no progress: nothing was analysed
    assert list(tmp_path.iterdir()) == []


def test_impossible_budget_costs_no_analysis(run: Run, smollm: Path) -> None:
    started = time.perf_counter()
    done = run("analyze", smollm, "--no-cache", "--experts", "29")
    assert "below 30 layers" in done.stderr
    assert time.perf_counter() - started < 5  # the analysis takes longer


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.safetensors", None, "no such path"),
        ("empty.safetensors", b"", "empty.safetensors: "),
        ("cut.safetensors", b"\x40\x00\x00\x00\x00\x00\x00\x00{", "cut.safetensors: "),
        ("huge.safetensors", b"\xff\xff\xff\xff\x00\x00\x00\x00{}", "huge.safetensors: "),
        ("text.txt", b"hello", "text.txt"),
        ("code.bin", b"cos\nsystem\n(S'touch owned'\ntR.", "code.bin"),
        ("org/model", None, "HF_HUB_OFFLINE"),
        ("a/b/c/d", None, "no such path"),
        ("../../etc", None, "no such path"),
    ],
)
def test_unreadable_models(run: Run, tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for command in ("analyze", "inspect"):
        done = run(command, name)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "owned").exists()


def test_the_model_is_never_overwritten(run: Run, save: Callable[[dict[str, np.ndarray]], Path], tiny_llama) -> None:
    checkpoint = save(tiny_llama)
    before = checkpoint.read_bytes()
    for model in (checkpoint, checkpoint.parent):
        done = run("analyze", model, "-o", checkpoint)
        assert done.returncode == 2
        assert "would overwrite the input" in done.stderr
    assert checkpoint.read_bytes() == before
