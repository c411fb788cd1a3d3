"""Generated requests from the OpenAPI document, by schemathesis, with and without a key: no 5xx, no failed check.

With a key the ids of results are those of a finished analysis and its schedule, so that the results themselves are
asked for; without one they are made up. The short form is 500 cases, `make test-reliability` more than 10,000 over
three seeds. Left out and tried elsewhere: streams of events, which have no end here (test_analyses), with a key DELETE,
which would take the known analysis away, and that a good body is not refused with 422, since what is good depends on
budget and model too (test_bodies).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running_service import RunningService
from safetensors.numpy import save_file

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
SEEDS = (1, 2, 3) if LONG else (1,)
EXAMPLES = 75 if LONG else 25


def cases(report: str) -> int:
    """Return how many cases the report says were made."""
    found = re.search(r"([\d,]+) generated", report)
    assert found, report[-3000:]
    return int(found[1].replace(",", ""))


def finished_work(folder: Path) -> dict[str, str]:
    """Have a service analyse a small model in ``folder`` and return the ids of the analysis and of its schedule."""
    rng = np.random.default_rng(0)
    state = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((48, 40), np.float32) for i in range(3)}
    save_file(state, folder / "model.safetensors")
    with RunningService(folder, model_roots=folder) as service:
        _, analysis = service.json("POST", "/v1/analyses", {"model": {"path": "model.safetensors"}})
        assert service.finished(analysis["id"])["status"] == "succeeded"
        question = {"source": {"analysis_id": analysis["id"]}, "budget": {"per_layer_mean": 5}}
        status, schedule = service.json("POST", "/v1/allocations", question)
        assert status == 201
    return {"ANALYSIS_ID": analysis["id"], "ALLOCATION_ID": schedule["id"]}


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.timeout(3600)
def test_no_generated_request_fails_the_service(tmp_path: Path, keyed: bool, seed: int) -> None:
    settings = {"worker": "false", "rate_limit": "off", "max_queued": 1_000_000}
    known = finished_work(tmp_path) if keyed else {}
    with RunningService(tmp_path, **settings) as service:
        options = [f"--seed={seed}", f"--max-examples={EXAMPLES}", "--workers=1", "--no-color", "--continue-on-failure"]
        options += ["--phases=examples,coverage,fuzzing,stateful" if LONG else "--phases=examples,fuzzing"]
        options += ["--exclude-path-regex=/events$", "--request-timeout=20"]
        if keyed:
            key = service.command("keys", "create", "schemathesis", "--scope", "admin").strip()
            options += ["--header", f"Authorization: Bearer {key}"]
            options += ["--exclude-method=DELETE"]  # or a sequence of requests would delete the known analysis
        else:
            options += ["--exclude-checks=ignored_auth"]  # nothing is asked for where there are no keys
        url = f"http://127.0.0.1:{service.port}"
        # Made when first asked for, and schemathesis waits for it ten seconds only.
        service.request("GET", "/openapi.json", timeout=120)
        configuration = Path(__file__).with_name("schemathesis-known.toml" if keyed else "schemathesis.toml")
        program = [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={configuration}"]
        command = [*program, "run", f"{url}/openapi.json", *options]
        environment = {**os.environ, **known, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=3500
        )
        report = run.stdout + run.stderr
        assert run.returncode == 0, report[-8000:]
        assert cases(report) >= (1_670 if LONG else 250)
        failures = [record for record in service.records() if record.get("status") == 500 or "exception" in record]
        assert not failures
