"""Data parallel training with two processes on CPU: DDP and FSDP2 give the gradients of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found; one start for all tests, since importing costs more than training."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, str(WORKER), str(folder)], capture_output=True, text=True, env=environment, timeout=280
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_ddp_averages_task_and_auxiliary_gradients_with_idle_experts(results: list[dict[str, Any]]) -> None:
    assert [result["ddp"]["distance"] <= 1e-6 for result in results] == [True, True]


@pytest.mark.parametrize(("case", "tolerance"), [("fsdp2", 1e-6), ("fsdp2_bfloat16", 1e-6)])
def test_fsdp2_gives_the_gradients_of_one_process(case: str, tolerance: float, results: list[dict[str, Any]]) -> None:
    assert max(result[case]["distance"] for result in results) <= tolerance


@pytest.mark.parametrize("case", ["fsdp2", "fsdp2_bfloat16"])
def test_a_sharded_adapter_is_saved_whole(case: str, results: list[dict[str, Any]]) -> None:
    assert results[0][case]["reloads"]
