"""Two processes (gloo, loopback) train under DDP what one process trains, and write one record."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alphalloc.training.train import train


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def process(rank: int, port: int, recipe: Any, folder: Path) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # this process is a copy of one that may have trained
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    result = train(recipe)
    (folder / f"rank{rank}.json").write_text(json.dumps(result.document()))
    torch.distributed.destroy_process_group()


def in_two_processes(recipe: Any, folder: Path) -> list[dict[str, Any]]:
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [fork.Process(target=process, args=(rank, port, recipe, folder)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
    for rank in ranks:
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_train_what_one_does(recipe: Any, tmp_path: Path) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    # 16 examples of 20, 4 a step: the second epoch begins within, and no step is short. With two processes accelerate
    # would fill a short one up with the epoch's first examples.
    texts = ["optim.steps=6", "run.save_every=2", "run.log_every=2", "adapter.dropout=0", "data.limit=20"]
    texts += ["data.eval_share=0.2", "run.eval_batch_size=2"]
    both = in_two_processes(recipe(*texts, output=str(tmp_path / "two")), tmp_path)
    one = train(recipe(*texts, output=str(tmp_path / "one")))
    assert (
        both[0]["eval"]["eval_loss"] == both[1]["eval"]["eval_loss"] == pytest.approx(one.eval["eval_loss"], rel=1e-4)
    )
    assert both[0]["parameters"] == both[1]["parameters"] == one.parameters
    first, second = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=1e-3, atol=1e-5), name
    # One process wrote the record, of the tokens of both.
    logs = [(tmp_path / name / "routing.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1])
    for alone, together in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert (alone["module"], alone["tokens"]) == (together["module"], together["tokens"])
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-6" / "complete.json").exists()
