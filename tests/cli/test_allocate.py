"""allocate: a schedule from saved alphas, the same as the library's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import alphalloc
from alphalloc import ModelAlphas

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def alphas(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return alphalloc.analyze(tiny, cache=False).save(tmp_path_factory.mktemp("alphas") / "alphas.json")


def test_schedule_is_the_librarys_byte_for_byte(run: Run, alphas: Path, tmp_path: Path) -> None:
    options = "--experts 23 --beta 4 --rounding largest_remainder --min-experts 0 --max-experts 9 --top-k 3"
    done = run("allocate", alphas, *options.split(), "-o", "s.json", "--json")
    expected = alphalloc.allocate(ModelAlphas.load(alphas), 23, beta=4.0, min_experts=0, max_experts=9, top_k=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.to_json()
    assert (tmp_path / "s.json").read_text() == expected.to_json()
    assert done.stderr == "wrote s.json\n"


def test_table_names_the_estimator(run: Run, alphas: Path) -> None:
    done = run("allocate", alphas, "--rule", "mola_triangle")
    assert "estimator xmin_peak_robust, rule mola_triangle, rounding largest_remainder" in done.stdout
    assert "20 experts in 4 layers" in done.stdout


def test_analyze_and_allocate_agree(run: Run, tiny: Path, tmp_path: Path) -> None:
    run("analyze", tiny, "-o", "a.json", "--schedule", "s1.json", "--experts", "31")
    run("allocate", "a.json", "-o", "s2.json", "--experts", "31")
    assert (tmp_path / "s1.json").read_bytes() == (tmp_path / "s2.json").read_bytes()


def test_paper_needs_its_own_alphas(run: Run, alphas: Path, minilm: Path, tmp_path: Path) -> None:
    done = run("allocate", alphas, "--paper", "alphalora")
    assert done.returncode == 2
    assert "means estimator xmin_peak_reference, but" in done.stderr
    alphalloc.analyze(minilm, estimator="xmin_peak_reference", cache=False).save(tmp_path / "p.json")
    assert json.loads(run("allocate", "p.json", "--paper", "alphalora", "--json").stdout)["rounding"] == "reference"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a ModelAlphas document"),
        ("", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"kind": "LoRAExpertSchedule"}', "expected kind 'ModelAlphas'"),
        ('{"kind": "ModelAlphas", "schema_version": "2.0"}', "upgrade alphalloc"),
        ('{"kind": "ModelAlphas", "schema_version": "1.0"}', "not a valid alphas document"),
        ('{"kind": "ModelAlphas", "kind": "ModelAlphas"}', "same key twice"),
        ('{"kind": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_unreadable_documents(run: Run, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    done = run("allocate", "a.json", "-o", "s.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s.json").exists()


def test_bad_options(run: Run, alphas: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--experts", "3"), "below 4 layers"),
        (("--rule", "alpha"), "no allocation rule 'alpha'"),
        (("-o", alphas), "would overwrite the input"),
        (("-o", "/dev/stdout"), "not a regular file"),
    ):
        done = run("allocate", alphas, *options)
        assert (done.returncode, done.stdout) == (2, ""), options
        assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
