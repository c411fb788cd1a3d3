"""The sparse backend: tokens sorted by expert, one grouped matrix product (``grouped_mm``) per side.

Same function as the dense form, cost in K * r instead of E * r columns, plus a gather and a scatter of T * K rows.
Shape suffixes: see ``router.py``; S = T * K (token, expert) pairs sorted by expert, r the rank of one expert.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from alphalloc.moe.router import Routing

# Measured on CPU (reports/moe-layer-speed): equal at E*r = 128, 1.2x faster at 256, 1.4x at 512, for K = 2.
GROUPED_MIN_RANK = 256
# Below four experts per chosen one the saved columns do not pay for moving the tokens.
GROUPED_MIN_SPARSITY = 4
_ALIGNMENT_BYTES = 16  # of every stride, grouped_mm's requirement


def grouped_supported(x_TD: Tensor, weight_RD: Tensor, weight_OR: Tensor, num_experts: int) -> bool:
    """Return whether ``grouped_mixture`` can compute this: one dtype of at most 32 bits, aligned, weights at hand.

    On CUDA torch documents bfloat16 on compute capability 8.0 and newer. Gathered-on-call weights (FSDP1, ZeRO-3) do
    not have their shape outside their own call; those run dense.
    """
    dtype, device = x_TD.dtype, x_TD.device
    rank = weight_RD.shape[0] // num_experts
    out_features = weight_OR.shape[0]
    if not hasattr(functional, "grouped_mm") or torch.is_autocast_enabled(device.type) or x_TD.shape[0] == 0:
        return False
    if weight_RD.dim() != 2 or weight_OR.dim() != 2 or weight_RD.shape[1] != x_TD.shape[1] or rank == 0:
        return False
    if not dtype == weight_RD.dtype == weight_OR.dtype or dtype not in _dtypes(device):
        return False
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return all(size * dtype.itemsize % _ALIGNMENT_BYTES == 0 for size in (rank, x_TD.shape[1], out_features))


def grouped_pays(device: torch.device, num_experts: int, top_k: int, rank: int) -> bool:
    """Return whether the measurement says so; measured on CPU only, so elsewhere never."""
    sparse = num_experts >= GROUPED_MIN_SPARSITY * top_k
    return device.type == "cpu" and sparse and num_experts * rank >= GROUPED_MIN_RANK


def grouped_mixture(
    x_TD: Tensor, base_TO: Tensor, weight_RD: Tensor, weight_OR: Tensor, routing: Routing, scaling: float
) -> Tensor:
    """Return ``base_TO`` plus scaling * the gated sum of the chosen experts, without computing the others."""
    num_experts, top_k = routing.logits_TE.shape[-1], routing.chosen_TK.shape[-1]
    expert_S = routing.chosen_TK.flatten()
    order_S = expert_S.argsort(stable=True)
    token_S = order_S // top_k
    ends_E = torch.zeros(num_experts, dtype=torch.int32, device=x_TD.device)
    ends_E = ends_E.scatter_add(0, expert_S, torch.ones_like(expert_S, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
    weight_EDr = weight_RD.view(num_experts, -1, x_TD.shape[-1]).transpose(1, 2)
    weight_ErO = weight_OR.view(weight_OR.shape[0], num_experts, -1).permute(1, 2, 0)
    hidden_Sr = functional.grouped_mm(x_TD.index_select(0, token_S), weight_EDr, offs=ends_E)
    gate_S1 = (routing.weights_TK.flatten().index_select(0, order_S) * scaling).unsqueeze(-1).to(hidden_Sr.dtype)
    delta_SO = functional.grouped_mm(hidden_Sr * gate_S1, weight_ErO, offs=ends_E)
    wide = torch.promote_types(base_TO.dtype, delta_SO.dtype)
    return base_TO.to(wide).index_add(0, token_S, delta_SO.to(wide)).to(base_TO.dtype)


def _dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What grouped_mm takes; its shape rule for the compiler (torch 2.13) knows bfloat16 alone."""
    if device.type == "cpu" and not torch.compiler.is_compiling():
        return (torch.float32, torch.bfloat16, torch.float16)
    return (torch.bfloat16,) if device.type in ("cpu", "cuda") else ()
