"""Every hostile checkpoint as a job: the job fails by name, or names what is odd, in its own process, and the service
goes on.

How each is made, and what the reader says, stands in tests/checkpoint/test_hostile.py. The short form sends one of each
kind, `make test-reliability` all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from running_service import RunningService
from safetensors.torch import save_file

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


HOSTILE = _hostile()
FILES: dict[str, Any] = HOSTILE.FILES

ODD = "model.layers.1.mlp.up_proj.weight"
FINE = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
CODES = (30 * FINE).to(torch.int8)
# what the one odd tensor of a model is -> (the tensor, its name, what becomes of it, part of the reason).
# What becomes of it: the status of its fit, "skipped", or the code of the job's problem.
NUMBERS: dict[str, tuple[torch.Tensor, str, str, str]] = {
    **{
        case: (torch.from_numpy(matrix.astype(np.float32)), ODD, status, reason)
        for case, (matrix, status, reason) in HOSTILE.NUMBERS.items()
    },
    "one dimension": (FINE[0].clone(), ODD, "skipped", "1-D"),
    "no dimension": (torch.tensor(3.0), ODD, "skipped", "scalar"),
    "four dimensions": (FINE.reshape(8, 8, 12, 8), ODD, "skipped", "4-D"),
    "no rows": (torch.zeros(0, 64), ODD, "skipped", "empty"),
    "bfloat16": (FINE.bfloat16(), ODD, "ok", ""),
    "float16": (FINE.half(), ODD, "ok", ""),
    "float16 that overflowed": ((1e5 * FINE).half(), ODD, "non_finite", "infinite"),
    "float8 without scales": (FINE.to(torch.float8_e4m3fn), ODD, "unsupported-checkpoint", "fp8"),
    "int8 without scales": (CODES, ODD, "unsupported-checkpoint", "int8"),
    "uint8": (CODES.view(torch.uint8), ODD, "unsupported-checkpoint", "packed 4-bit or uint8"),
    "int4 of GPTQ": (CODES.int(), ODD.replace(".weight", ".qweight"), "unsupported-checkpoint", "4-bit (GPTQ or AWQ)"),
    "int64": (CODES.long(), ODD, "skipped", "a buffer or mask"),
}
SHORT_NUMBERS = ("a row of NaN", "rank one", "no dimension", "bfloat16", "int8 without scales")


def with_odd(tensor: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Return four matrices of two layers, one of which is ``tensor``, called ``name``."""
    state = {f"model.layers.{i}.mlp.{part}_proj.weight": FINE.clone() for i in range(2) for part in ("up", "down")}
    del state[ODD]
    return state | {name: tensor}


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


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a pickle's payload makes where it is run, whatever the working folder there."""
    path = tmp_path / "made-by-the-pickle"
    monkeypatch.setattr(HOSTILE.Payload, "__reduce__", lambda _: (os.mkdir, (str(path),)))
    return path


def test_a_payload_that_is_run_is_seen(tmp_path: Path, proof: Path) -> None:
    """Else the next test would prove nothing of pickles."""
    cases = [case for case in FILES if "pickle with code" in case]
    assert len(cases) == 3
    for case in cases:
        name, make, _, _ = FILES[case]
        make(tmp_path / name)
        if case.startswith("bare"):
            pickle.loads((tmp_path / name).read_bytes())
        else:
            torch.load(tmp_path / name, weights_only=False)
        proof.rmdir()


@pytest.mark.parametrize("case", [case for case in FILES if LONG or case in SHORT])
@pytest.mark.timeout(120)
def test_a_hostile_checkpoint_is_a_failed_job(service: RunningService, models: Path, case: str, proof: Path) -> None:
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
    assert not proof.exists()
    assert time.monotonic() - began < 60
    assert service.request("GET", "/healthz")[0].status == 200


@pytest.mark.parametrize("case", [case for case in NUMBERS if LONG or case in SHORT_NUMBERS])
@pytest.mark.timeout(120)
def test_an_odd_tensor_is_named_and_the_rest_is_analysed(service: RunningService, models: Path, case: str) -> None:
    tensor, name, becomes, reason = NUMBERS[case]
    path = models / f"{case.replace(' ', '-')}.safetensors"
    save_file(with_odd(tensor, name), path)
    found = ended(service, path.name)
    assert service.request("GET", "/healthz")[0].status == 200
    if becomes == "unsupported-checkpoint":
        assert (found["status"], found["attempt"]) == ("failed", 1)
        assert (found["error"]["code"], found["error"]["status"]) == (becomes, 422)
        assert reason in found["error"]["detail"]
        assert name in found["error"]["detail"]
        return
    assert found["status"] == "succeeded", found
    status, alphas = service.json("GET", f"/v1/analyses/{found['id']}/alphas")
    assert status == 200
    matrices = {matrix["name"]: matrix for matrix in alphas["matrices"]}
    odd = matrices.pop(name, None)
    assert [matrix["status"] for matrix in matrices.values()] == ["ok"] * 3
    if becomes == "skipped":
        assert odd is None
        ((skipped, why),) = [(one["name"], one["reason"]) for one in alphas["skipped"]]
        assert skipped == name
        assert reason in why
    else:
        assert odd is not None
        assert odd["status"] == becomes
        assert reason in (odd.get("reason") or "")
        assert (odd.get("alpha") is None) == (becomes != "ok")
        assert any("1 of 4 matrices have no alpha" in one for one in alphas["warnings"]) == (becomes != "ok")


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


def test_a_fine_model_is_analysed_by_the_same_service(service: RunningService, models: Path) -> None:
    save_file(with_odd(FINE.clone(), ODD), models / "fine.safetensors")
    found = ended(service, "fine.safetensors")
    assert (found["status"], found["attempt"]) == ("succeeded", 1)
