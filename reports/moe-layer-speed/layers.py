"""Forward + backward of one adapted linear: ours, the expert loop, plain LoRA, einsum, in interleaved rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import ratio, summary
from torch import Tensor, nn

from alphalloc.moe.context import RoutingContext
from alphalloc.moe.experts import gate_hidden
from alphalloc.moe.layer import MoELora
from alphalloc.moe.losses import AuxLosses
from alphalloc.moe.statistics import RoutingStatistics

# The slow layer that proves the fast one lies with the tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "reference"))
from moe_loop import LoopMoELora

Forward = Callable[[Tensor], Tensor]
SMOLLM2 = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576)} | {
    "gate": (576, 1536),
    "up": (576, 1536),
    "down": (1536, 576),
}


@dataclass(frozen=True)
class Case:
    """One linear: D -> O on T tokens with E experts of rank r, K chosen."""

    group: str
    d: int
    o: int
    tokens: int
    experts: int
    r: int = 8
    k: int = 2

    @property
    def rank(self) -> int:
        return self.experts * self.r


CASES = [
    *(Case("experts", 1024, 1024, 512, experts) for experts in (2, 5, 8, 16, 32, 64)),
    *(Case("tokens", 1024, 1024, tokens, 5) for tokens in (64, 256, 2048)),
    *(Case("widths", d, o, 512, 5) for d, o in ((1024, 4096), (4096, 1024), (2048, 2048))),
    *(Case("smollm2", d, o, 512, 5) for d, o in dict.fromkeys(SMOLLM2.values())),
]


class PlainLora(nn.Module):
    """LoRA as PEFT computes it: W x + B(A(x)) * scale."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        return base_output + self.b(self.a(x)) * 2.0


class EinsumMoELora(nn.Module):
    """Every expert's output for every token, then their weighted sum (tokens x experts x out in memory)."""

    def __init__(self, layer: MoELora) -> None:
        super().__init__()
        self.layer = layer
        e, r = layer.num_experts, layer.expert_rank
        self.a_ErD = nn.Parameter(layer.experts_a.weight.detach().view(e, r, -1).clone())
        self.b_EOr = nn.Parameter(layer.experts_b.weight.detach().view(-1, e, r).permute(1, 0, 2).contiguous())

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        gate_TE = self.layer.route(x).gate_TE
        hidden = torch.einsum("td,erd->ter", x, self.a_ErD)
        outputs = torch.einsum("ter,eor->teo", hidden, self.b_EOr)
        return base_output + torch.einsum("te,teo->to", gate_TE, outputs) * self.layer.scaling


class FixedGate(nn.Module):
    """Our layer without its router: every token keeps the experts it was given. Shows what routing costs."""

    def __init__(self, layer: MoELora, tokens: int) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            self.routing = layer.route(torch.randn(tokens, layer.in_features))

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        layer, routing = self.layer, self.routing
        gated_TR = gate_hidden(layer.experts_a(x), routing.chosen_TK, routing.weights_TK, layer.num_experts)
        output: Tensor = layer.experts_b(gated_TR, base_output, layer.scaling)
        return output


def adapters(case: Case, base: nn.Linear) -> dict[str, nn.Module | None]:
    """The contenders of one case, with equal weights where they have the same ones."""
    settings = {"num_experts": case.experts, "top_k": case.k, "r": case.r, "lora_alpha": 16}

    def make(backend: str) -> MoELora:
        torch.manual_seed(0)
        layer = MoELora(case.d, case.o, backend=backend, **settings)
        nn.init.normal_(layer.experts_b.weight, std=0.02)
        return layer

    balanced = make("dense")
    losses = AuxLosses(balance="switch")
    RoutingContext(losses, RoutingStatistics()).attach(balanced, "linear", 0)
    dense = make("dense")
    return {
        "base": None,
        "lora_r": PlainLora(base, case.r),
        "lora_Er": PlainLora(base, case.rank),
        "dense": dense,
        "dense_balance": balanced,
        "fixed_gate": FixedGate(dense, case.tokens),
        "grouped": make("grouped"),
        "loop": LoopMoELora(dense),
        "einsum": EinsumMoELora(dense),
    }


def measure_case(case: Case, rounds: int) -> dict[str, Any]:
    """Time every contender once a round, in rotating order; a ratio is the median of the rounds' own ratios."""
    torch.manual_seed(0)
    base = nn.Linear(case.d, case.o, bias=False).requires_grad_(False)
    gradient, x = torch.randn(case.tokens, case.o), torch.randn(case.tokens, case.d)
    calls = {name: _forward(base, adapter) for name, adapter in adapters(case, base).items()}
    with torch.no_grad():
        reference = calls["loop"](x)
        worst = max(float((calls[n](x) - reference).abs().max()) for n in ("dense", "grouped", "einsum"))
    assert worst <= 1e-4 * float(reference.abs().max()), "the contenders are not the same function"
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds + 2):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            leaf = x.clone().requires_grad_()
            started, wall_started = time.process_time(), time.perf_counter()
            calls[name](leaf).backward(gradient)
            if index >= 2:  # two rounds warm up
                cpu[name].append(time.process_time() - started)
                wall[name].append(time.perf_counter() - wall_started)
    return {
        "case": {**vars(case), "rank": case.rank},
        "cpu_ms": {name: summary([1e3 * t for t in times]) for name, times in cpu.items()},
        "wall_ms": {name: summary([1e3 * t for t in times]) for name, times in wall.items()},
        "over_lora_Er": {name: ratio(cpu[name], cpu["lora_Er"]) for name in names},
        "loop_over_dense": ratio(cpu["loop"], cpu["dense"]),
        "dense_over_grouped": ratio(cpu["dense"], cpu["grouped"]),
        "saved_for_backward_mb": {name: round(_saved_bytes(call, x) / 2**20, 3) for name, call in calls.items()},
    }


def block_ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """SmolLM2's seven linears together: sum of medians, over that of plain LoRA of rank E*r."""
    times = {(r["case"]["d"], r["case"]["o"]): r["cpu_ms"] for r in results if r["case"]["group"] == "smollm2"}
    names = next(iter(times.values()))
    total = {name: sum(times[shape][name]["median"] for shape in SMOLLM2.values()) for name in names}
    return {name: round(value / total["lora_Er"], 3) for name, value in total.items()}


def _forward(base: nn.Linear, adapter: nn.Module | None) -> Forward:
    if adapter is None:
        return lambda x: base(x)
    return lambda x: adapter(x, base(x))


def _saved_bytes(call: Forward, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward, weights and the input left out, storages counted once."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() != leaf.untyped_storage().data_ptr():
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = x.clone().requires_grad_()
    weights = {p.untyped_storage().data_ptr() for p in _parameters(call)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = call(leaf)
    del output
    return sum(size for pointer, size in held.items() if pointer not in weights)


def _parameters(call: Forward) -> list[Tensor]:
    modules = [cell.cell_contents for cell in call.__closure__ or ()]
    return [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
