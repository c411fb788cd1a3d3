"""A small frozen network of blocks whose linears carry MoE-LoRA adapters, with every kind of checkpointing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alphalloc.moe.context import RoutingContext
from alphalloc.moe.layer import MoELora

WIDTH = 8
CHECKPOINTING = ["none", "non-reentrant", "reentrant"]


class Adapted(nn.Module):
    """A frozen linear and its adapter."""

    def __init__(self, num_experts: int, top_k: int, **settings) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.adapter = MoELora(
            WIDTH, WIDTH, num_experts=num_experts, top_k=top_k, **{"r": 2, "lora_alpha": 4, **settings}
        )
        nn.init.normal_(self.adapter.experts_b.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(x, self.base(x))


class Blocks(nn.Module):
    """Blocks of two adapted linears each; ``experts`` gives (E, K) per block."""

    def __init__(self, experts: list[tuple[int, int]], *, checkpointing: str = "none", **settings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(Adapted(e, k, **settings), nn.Tanh(), Adapted(e, k, **settings)) for e, k in experts
        )
        self.checkpointing = checkpointing

    def attach(self, context: RoutingContext) -> RoutingContext:
        for block, linears in enumerate(self.blocks):
            for name in ("0", "2"):
                context.attach(linears.get_submodule(name).adapter, f"blocks.{block}.{name}", block)
        return context

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.checkpointing == "none":
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
        return x

    def gradients(self) -> dict[str, Tensor]:
        """Gradients so far, as copies; forgotten afterwards."""
        found = {n: p.grad.clone() for n, p in self.named_parameters() if p.requires_grad and p.grad is not None}
        self.zero_grad()
        return found


def make_blocks(experts: list[tuple[int, int]], *, seed: int = 0, dtype=torch.float64, **settings) -> Blocks:
    torch.manual_seed(seed)
    return Blocks(experts, **settings).to(dtype)


def tokens(batch: int, length: int, *, seed: int = 1, dtype=torch.float64) -> Tensor:
    """An input that requires grad, as the output of frozen embeddings does under reentrant checkpointing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=generator, dtype=dtype).requires_grad_()


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Same gradients, each to ``tolerance`` of its largest entry."""
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        bound = tolerance * max(float(reference.abs().max()), 1e-3)
        assert float((actual[name] - reference).abs().max()) <= bound, name
