"""The shapes of real models' block matrices, and weights of those shapes made on a device."""

from __future__ import annotations

import torch

# (out, in) of one block, from the models' published configurations
LLAMA_2_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
LLAMA_3_70B = [(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 2 + [(8192, 28672)]
DEEPSEEK_MOE_16B = [(2048, 2048)] * 4 + [(1408, 2048), (1408, 2048), (2048, 1408)] * 64  # 64 routed experts
TINY = [(64, 64)] * 4 + [(172, 64)] * 2 + [(64, 172)]
MODELS = {
    "LLaMA-2-7B": (LLAMA_2_7B, 32),
    "Llama-3-70B": (LLAMA_3_70B, 80),
    "DeepSeek-MoE-16B (64 experts)": (DEEPSEEK_MOE_16B, 27),
}


class Weight:
    """A matrix that is on the device already, with the face that the batched backend reads."""

    def __init__(self, name: str, value: torch.Tensor) -> None:
        self.name, self.value, self.shape = name, value, tuple(value.shape)

    def load(self) -> torch.Tensor:
        return self.value


def make_weights(shapes: list[tuple[int, int]], layers: int, device: torch.device) -> list[Weight]:
    """Return float16 weights of ``layers`` blocks, seeded: Gaussian with log-normal row scales (long tails)."""
    generator = torch.Generator(device=device).manual_seed(0)
    weights = []
    for layer in range(layers):
        for index, (rows, cols) in enumerate(shapes):
            scales = torch.exp(0.5 * torch.randn(rows, 1, device=device, generator=generator))
            value = torch.randn(rows, cols, device=device, generator=generator) * (0.02 * scales)
            weights.append(Weight(f"{layer}.{index}", value.to(torch.float16)))
    return weights


def gram_flop(shape: tuple[int, int]) -> float:
    """Flop of one Gram matrix when only one triangle is computed (syrk)."""
    return float(min(shape)) ** 2 * max(shape)


def reduction_flop(shape: tuple[int, int]) -> float:
    """Flop of the reduction to tridiagonal form."""
    return 4 / 3 * float(min(shape)) ** 3
