"""Every hostile checkpoint as a job: the job fails by name, in its own process, and the service goes on.

How each is made, and what the reader says, stands in tests/checkpoint/test_hostile.py. The short form sends one of each
kind, `make test-reliability` all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from running_service import RunningService
from safetensors.numpy import save_file

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
SHORT = ("cut in the data", "pickle with code", "zip bomb", "FIFO")


def _hostile() -> ModuleType:
    path = Path(__file__).parents[1] / "checkpoint" / "test_hostile.py"
    spec = importlib.util.spec_from_file_location("hostile_checkpoints", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pickles name their classes by it
    spec.loader.exec_module(module)
    return module


FILES: dict[str, Any] = _hostile().FILES


def fine(path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((64, 48)).astype(np.float32) for i in range(2)}
    save_file(state, path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("service"), model_roots=models, job_memory_bytes=2**31) as service:
        yield service
        assert "Traceback" not in service.log


def ended(service: RunningService, path: str) -> dict[str, Any]:
    status, analysis = service.json("POST", "/v1/analyses", {"model": {"path": path}})
    assert status == 202, analysis
    return service.finished(analysis["id"])


@pytest.mark.parametrize("case", [case for case in FILES if LONG or case in SHORT])
@pytest.mark.timeout(120)
def test_a_hostile_checkpoint_is_a_failed_job(service: RunningService, models: Path, case: str) -> None:
    name, make, error, _ = FILES[case]
    folder = models / case.replace(" ", "-").replace("^", "")
    folder.mkdir()
    make(folder / name)
    began = time.monotonic()
    found = ended(service, folder.name)
    assert found["status"] == "failed"
    problem = found["error"]
    assert problem["code"] == error.code, problem
    assert problem["status"] == (404 if error.code == "model-not-found" else 422)
    assert "Traceback" not in problem["detail"]
    assert found["attempt"] == 1
    assert not (folder / "made-by-the-pickle").exists()
    assert not Path("made-by-the-pickle").exists()
    assert time.monotonic() - began < 60
    assert service.request("GET", "/healthz")[0].status == 200


def test_odd_numbers_are_a_warning_and_the_next_job_runs(service: RunningService, models: Path) -> None:
    fine(models / "fine.safetensors")
    odd = np.random.default_rng(1).standard_normal((64, 48)).astype(np.float32)
    odd[3, 4] = np.nan
    state = {f"model.layers.{i}.mlp.up_proj.weight": odd for i in range(1)}
    state |= {f"model.layers.{i}.mlp.down_proj.weight": np.nan_to_num(odd) for i in range(2)}
    save_file(state, models / "odd.safetensors")
    found = ended(service, "odd.safetensors")
    assert found["status"] == "succeeded"
    status, layers = service.json("GET", f"/v1/analyses/{found['id']}/layers?level=matrix")
    assert status == 200
    assert '"non_finite"' in str(layers).replace("'", '"')
    assert ended(service, "fine.safetensors")["status"] == "succeeded"


def test_a_matrix_that_needs_more_memory_than_a_job_may_have(service: RunningService, models: Path) -> None:
    """A file that takes no disk and says it is 8 GiB of weights: the child runs into its limit, not the machine."""
    side = 2**15
    header = json.dumps(
        {
            f"model.layers.{i}.mlp.up_proj.weight": {
                "dtype": "F32",
                "shape": [side, side],
                "data_offsets": [i * 4 * side**2, (i + 1) * 4 * side**2],
            }
            for i in range(2)
        }
    ).encode()
    with (models / "sparse.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + 8 * side**2)
    found = ended(service, "sparse.safetensors")
    assert found["status"] == "failed"
    assert found["error"]["code"] in ("memory-budget", "worker-lost"), found["error"]
    assert service.request("GET", "/readyz")[0].status == 200
