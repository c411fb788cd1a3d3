"""What the fuzzers found, kept; and that they run: their long form is a part of `make test-reliability`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alphalloc import ModelAlphas
from alphalloc.allocation import ExpertSchedule, allocate
from alphalloc.errors import DocumentError

FUZZERS = sorted(Path(__file__).parent.glob("fuzz_*.py"))
LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))


@pytest.mark.parametrize("change", [{"a\ud800": 1}, {"rule": "\ud800"}, {"warnings": ["\udcc2"]}])
@pytest.mark.parametrize("escaped", [True, False])
def test_half_a_character_is_refused(change: dict[str, Any], escaped: bool) -> None:
    document = json.loads(allocate([2.1, 2.9], 8).to_json())
    with pytest.raises(DocumentError, match="lone surrogate"):
        ExpertSchedule.from_json(json.dumps({**document, **change}, ensure_ascii=escaped))
    alphas = {"kind": "ModelAlphas", "schema_version": "1.0", **change}
    with pytest.raises(DocumentError, match="lone surrogate"):
        ModelAlphas.from_json(json.dumps(alphas, ensure_ascii=escaped))


@pytest.mark.parametrize("number", ["1e316", "-1e999", "1" * 400 + ".0"])
def test_a_number_beyond_float64_is_refused(number: str) -> None:
    document = allocate([2.1, 2.9], 8).to_json()
    for text in (document.replace('"beta": 2.5', f'"beta": {number}'), document.replace('"alpha_power"', number)):
        assert number in text
        for restamp in (False, True):
            with pytest.raises(DocumentError, match="beyond the range of float64"):
                ExpertSchedule.from_json(text, restamp=restamp)


def test_whole_characters_are_taken() -> None:
    document = allocate([2.1, 2.9], 8).to_json()
    escaped = document.replace('"kind"', '"note": "\\ud83d\\ude00", "kind"', 1)
    assert ExpertSchedule.from_json(escaped).num_experts == ExpertSchedule.from_json(document).num_experts


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda path: path.stem)
@pytest.mark.timeout(900)
def test_fuzzing_finds_nothing(fuzzer: Path) -> None:
    """Ten minutes each within 1 GiB in the long form; a few hundred inputs in the short one."""
    pytest.importorskip("atheris", reason="atheris has no build for this platform")
    limits = ["-max_total_time=600", "-rss_limit_mb=1024"] if LONG else ["-runs=300", "-rss_limit_mb=1024"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(fuzzer), *limits, "-seed=1"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "Done " in run.stderr
