"""Generated requests from the OpenAPI document, by schemathesis, with and without a key: no 5xx, no failed check.

The short form is a few hundred cases; `make test-reliability` runs more than 10,000 over three seeds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running_service import RunningService

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
SEEDS = (1, 2, 3) if LONG else (1,)
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 60 if LONG else 8


def cases(report: str) -> int:
    """Return how many cases the report says were made."""
    found = re.search(r"([\d,]+) generated", report)
    assert found, report[-3000:]
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.timeout(3600)
def test_no_generated_request_fails_the_service(tmp_path: Path, keyed: bool, seed: int) -> None:
    settings = {"worker": "false", "rate_limit": "off", "max_queued": 1_000_000}
    with RunningService(tmp_path, **settings) as service:
        options = [f"--seed={seed}", f"--max-examples={EXAMPLES}", "--workers=1", "--no-color", "--continue-on-failure"]
        options += ["--phases=examples,coverage,fuzzing,stateful" if LONG else "--phases=examples,fuzzing"]
        options += ["--exclude-path-regex=/events$", "--request-timeout=20"]
        if keyed:
            key = service.command("keys", "create", "schemathesis", "--scope", "admin").strip()
            options += ["--header", f"Authorization: Bearer {key}"]
        else:
            options += ["--exclude-checks=ignored_auth"]  # nothing is asked for where there are no keys
        url = f"http://127.0.0.1:{service.port}"
        # Made when first asked for, and schemathesis waits for it ten seconds only.
        service.request("GET", "/openapi.json", timeout=120)
        program = [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={CONFIGURATION}"]
        command = [*program, "run", f"{url}/openapi.json", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=3500
        )
        report = run.stdout + run.stderr
        assert run.returncode == 0, report[-8000:]
        assert cases(report) >= (1_700 if LONG else 60)
        failures = [record for record in service.records() if record.get("status") == 500 or "exception" in record]
        assert not failures
