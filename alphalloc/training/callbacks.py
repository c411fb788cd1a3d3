"""What happens beside training: lines of log.jsonl and routing.jsonl, progress, checkpoints marked complete."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from alphalloc.documents import write_atomic
from alphalloc.errors import TrainingError
from alphalloc.moe import LayerRouting, RoutingStatistics
from alphalloc.peft.routing import contexts
from alphalloc.training.checkpoints import keep_newest, mark_complete
from alphalloc.training.sinks import Sink


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is: ``step`` of ``steps``, the last logged loss, seconds so far, and what is being done."""

    doing: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0


Report = Callable[[TrainProgress], None]


class Meter(TrainerCallback):
    """Time, progress, log.jsonl and the sinks. Stops the run when the loss is no number."""

    def __init__(self, folder: Path, sinks: Sequence[Sink], progress: Report | None, before: float = 0.0) -> None:
        self.log = folder / "log.jsonl"
        self.sinks = sinks
        self.progress = progress
        self.before = before
        self.loss: float | None = None
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.before + time.perf_counter() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; lines after the step that is resumed at were never part of this run."""
        self.began = time.perf_counter()
        if state.is_world_process_zero:
            cut_after(self.log, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write one line; the trainer's own summary at the end is left to the card."""
        logs = dict(logs or {})
        if "train_runtime" in logs:
            return
        line = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "total_flos"}}
        loss = line.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.global_step}; lower optim.learning_rate, or train in float32"
            )
        self.loss = loss if isinstance(loss, float) else self.loss
        if state.is_world_process_zero:
            append_lines(self.log, [line])
            numbers = {k if k.startswith("eval") else f"train/{k}": v for k, v in line.items() if k != "step"}
            for sink in self.sinks:
                sink.write({k: float(v) for k, v in numbers.items()}, state.global_step)
        if loss is not None:
            self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the last step logged; report those that are not, the others come with their loss."""
        control.should_log = control.should_log or state.global_step >= state.max_steps
        if not control.should_log:
            self._tell(state)

    def _tell(self, state: Any) -> None:
        if self.progress is not None and state.is_world_process_zero:
            self.progress(TrainProgress("training", state.global_step, state.max_steps, self.loss, self.seconds))


class RoutingLog(TrainerCallback):
    """Load, entropy and dead experts of every linear at every logged step, over the training tokens since the last."""

    def __init__(self, folder: Path, sinks: Sequence[Sink]) -> None:
        self.path = folder / "routing.jsonl"
        self.sinks = sinks
        self.statistics = RoutingStatistics()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Cut the file at the step that is resumed at."""
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Record the coming step."""
        for context in contexts(model).values():
            context.statistics = self.statistics

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Record nothing outside training: evaluations run the same model. Write when the step is logged."""
        for context in contexts(model).values():
            context.statistics = None
        if not control.should_log:
            return
        layers = all_ranks(self.statistics.summary())
        self.statistics.reset()
        if state.is_world_process_zero and layers:
            append_lines(self.path, [routing_line(state.global_step, layer) for layer in layers])
            values = routing_scalars(layers)
            for sink in self.sinks:
                sink.write(values, state.global_step)


class CheckpointKeeper(TrainerCallback):
    """Marks a written checkpoint complete, then removes the older ones."""

    def __init__(self, meter: Meter, keep: int) -> None:
        self.meter = meter
        self.keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for every process's files, then mark and prune."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            root = Path(args.output_dir)
            mark_complete(root / f"checkpoint-{state.global_step}", {"seconds": self.meter.seconds})
            keep_newest(root, self.keep)


def routing_line(step: int, layer: LayerRouting) -> dict[str, Any]:
    """Return the line of routing.jsonl of one linear."""
    from alphalloc.peft.blocks import block_of

    block = block_of(layer.name)
    return {
        "step": step,
        "layer": None if block is None else block.layer,
        "stack": "" if block is None else block.list_path,
        "role": layer.name.rpartition(".")[2],
        "module": layer.name,
        "num_experts": layer.num_experts,
        "top_k": layer.top_k,
        "tokens": layer.tokens,
        "load": list(layer.load),
        "entropy": layer.entropy,
        "token_entropy": layer.token_entropy,
        "balance": layer.balance,
        "dead": list(layer.dead_experts),
    }


def routing_scalars(layers: Sequence[LayerRouting]) -> dict[str, float]:
    """Return means over each block's linears: entropy, dead experts, and each expert's load."""
    blocks: dict[str, list[LayerRouting]] = {}
    for layer in layers:
        line = routing_line(0, layer)
        blocks.setdefault("other" if line["layer"] is None else f"layer_{line['layer']:03d}", []).append(layer)
    found = {}
    for block, members in blocks.items():
        found[f"routing/entropy/{block}"] = _mean([layer.entropy for layer in members])
        found[f"routing/dead/{block}"] = float(sum(len(layer.dead_experts) for layer in members))
        for expert in range(max(layer.num_experts for layer in members)):
            shares = [layer.load[expert] for layer in members if expert < layer.num_experts]
            found[f"routing/load/{block}/expert_{expert}"] = _mean(shares)
    return found


def all_ranks(layers: tuple[LayerRouting, ...]) -> tuple[LayerRouting, ...]:
    """Return the routing over the tokens of all processes: means weighted by tokens."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return layers
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, layers)
    by_name: dict[str, list[LayerRouting]] = {}
    for part in gathered:
        for layer in part:
            by_name.setdefault(layer.name, []).append(layer)
    return tuple(merged_routing(parts) for parts in by_name.values())


def merged_routing(parts: Sequence[LayerRouting]) -> LayerRouting:
    """Return one linear's routing over the tokens of all ``parts``."""
    from alphalloc.moe.statistics import DEAD_SHARE

    first, tokens = parts[0], sum(part.tokens for part in parts)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(v * part.tokens for v, part in zip(values, parts, strict=True)) / tokens

    experts = range(first.num_experts)
    load = tuple(mean([part.load[e] for part in parts]) for e in experts)
    probability = tuple(mean([part.probability[e] for part in parts]) for e in experts)
    return LayerRouting(
        name=first.name,
        num_experts=first.num_experts,
        top_k=first.top_k,
        tokens=tokens,
        load=load,
        probability=probability,
        entropy=-math.fsum(share * math.log(share) for share in load if share > 0) / math.log(first.num_experts),
        token_entropy=mean([part.token_entropy for part in parts]),
        balance=first.num_experts * math.fsum(f * p for f, p in zip(load, probability, strict=True)),
        dead_experts=tuple(e for e in experts if load[e] * first.num_experts < DEAD_SHARE),
    )


def append_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Append JSON lines."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, and a last line that a kill left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(path, "".join(kept))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
