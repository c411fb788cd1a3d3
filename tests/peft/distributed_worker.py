"""Two processes (gloo, loopback) train one step under DDP and FSDP2 and write what they found.

Usage: python distributed_worker.py FOLDER. Imports once and then forks: importing is most of the time.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import peft
import tiny_models as tiny
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from alphalloc.peft import begin_step

LOSSES = {"balance": "switch", "balance_coef": 0.5, "contrastive": "moelora", "contrastive_start_step": 0}


def model_of(dtype: torch.dtype) -> Any:
    torch.manual_seed(1)
    # Eight experts, one chosen, six tokens: some experts of some linears are idle, which must not hang DDP.
    config = tiny.moe_config(num_experts=[8, 1, 8], top_k=1, **LOSSES)
    model = peft.get_peft_model(tiny.llama().to(dtype), config).train()
    begin_step(model, 0)
    return model


def backward(model: Any, rank: int) -> None:
    rows = torch.arange(12).reshape(2, 6) + 3
    model(input_ids=rows[rank : rank + 1], labels=rows[rank : rank + 1]).loss.backward()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    result = {}
    for name, parameter in tiny.adapter_parameters(model).items():
        gradient = parameter.grad
        assert gradient is not None, name
        result[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return result


def mean_of_both_ranks(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The same without any distribution: each rank's rows on a model of their own, the gradients averaged."""
    parts = []
    for rank in (0, 1):
        model = model_of(dtype)
        backward(model, rank)
        parts.append(gradients(model))
    return {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    scale = max(float(value.abs().max()) for value in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / scale


def run_ddp(rank: int) -> dict[str, Any]:
    model = model_of(torch.float32)
    wrapped = DistributedDataParallel(model)
    backward(wrapped, rank)
    return {"distance": distance(gradients(model), mean_of_both_ranks(torch.float32))}


def run_fsdp2(rank: int, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    model = model_of(dtype)
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    backward(model, rank)
    found = distance(gradients(model), mean_of_both_ranks(dtype))
    # Saving: the full state dict, as accelerate gathers it, through PEFT's own save_pretrained.
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    same = True
    if rank == 0:
        model.save_pretrained(str(folder), state_dict=full)
        loaded = peft.PeftModel.from_pretrained(tiny.llama().to(dtype), str(folder))
        original = model_of(dtype)
        same = torch.equal(tiny.logits(loaded), tiny.logits(original))
    dist.barrier()
    return {"distance": found, "reloads": same}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    result = {
        "ddp": run_ddp(rank),
        "fsdp2": run_fsdp2(rank, torch.float32, folder / "float32"),
        "fsdp2_bfloat16": run_fsdp2(rank, torch.bfloat16, folder / "bfloat16"),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=main, args=(rank, Path(sys.argv[1]))) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    for process in ranks:
        process.kill()
    sys.exit(any(process.exitcode for process in ranks))
