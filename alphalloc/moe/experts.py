"""The experts of one linear, stacked: two matrix products for all of them, whatever their number.

Expert e owns rows e*r .. (e+1)*r of A and the same columns of B. With the gate applied to the r-blocks of ``x Aᵀ``,
``(gate * x Aᵀ) Bᵀ`` is the sum over experts of ``gate_e B_e A_e x``.

Shape suffixes: see ``router.py``; r is the rank of one expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class ExpertsB(nn.Linear):
    """The stacked up-projections, added to the frozen layer's output in the same product.

    A subclass of ``nn.Linear`` that is *called*: parameter-gathering wrappers (FSDP, ZeRO-3) act on module calls.
    """

    def forward(self, hidden_TR: Tensor, base_TO: Tensor, scaling: float) -> Tensor:  # type: ignore[override]
        """Return ``base_TO + scaling * hidden_TR Bᵀ`` in the dtype of ``base_TO``.

        With mixed dtypes (a bfloat16 base under a float32 adapter) the sum is taken in the wider one and rounded once.
        """
        autocast = torch.is_autocast_enabled(base_TO.device.type)
        if not autocast and hidden_TR.dtype == base_TO.dtype == self.weight.dtype:
            return torch.addmm(base_TO, hidden_TR, self.weight.t(), alpha=scaling)
        # The factor goes on the narrow side: R columns instead of O.
        delta_TO = functional.linear(hidden_TR * scaling, self.weight)
        return (base_TO + delta_TO).to(base_TO.dtype)


def gate_hidden(hidden_TR: Tensor, chosen_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Tensor:
    """Return ``hidden_TR`` with each chosen expert's r-block multiplied by its weight, and zero in all others.

    Others are cut out by selection, never by a product with 0: 0 * inf would be NaN for an expert nobody asked for.
    """
    gated_TR: Tensor = _GateHidden.apply(hidden_TR, chosen_TK, weights_TK, num_experts)  # type: ignore[no-untyped-call]
    return gated_TR


class _GateHidden(torch.autograd.Function):
    """Written out, because autograd would save the cut copy too and run twice as many elementwise kernels."""

    @staticmethod
    def forward(ctx: Any, hidden_TR: Tensor, chosen_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Tensor:
        hidden_TEr = hidden_TR.reshape(len(hidden_TR), num_experts, hidden_TR.shape[-1] // num_experts)
        gate_TE1 = hidden_TR.new_zeros(hidden_TEr.shape[:2]).scatter(-1, chosen_TK, weights_TK.to(hidden_TR.dtype))
        gate_TE1 = gate_TE1.unsqueeze(-1)
        idle_TE = torch.ones(hidden_TEr.shape[:2], dtype=torch.bool, device=hidden_TR.device)
        idle_TE1 = idle_TE.scatter(-1, chosen_TK, False).unsqueeze(-1)
        ctx.save_for_backward(hidden_TR, chosen_TK, gate_TE1)
        ctx.weights_dtype = weights_TK.dtype
        return (hidden_TEr * gate_TE1).masked_fill_(idle_TE1, 0.0).view_as(hidden_TR)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TR: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TR, chosen_TK, gate_TE1 = ctx.saved_tensors
        tokens, num_experts, _ = gate_TE1.shape
        gradient_TEr = gradient_TR.reshape(tokens, num_experts, hidden_TR.shape[-1] // num_experts)
        # An idle expert's product may be NaN here; `gather` reads the chosen ones only.
        products_TE = (gradient_TEr * hidden_TR.view_as(gradient_TEr)).sum(-1, dtype=ctx.weights_dtype)
        return (gradient_TEr * gate_TE1).view_as(hidden_TR), None, products_TE.gather(-1, chosen_TK), None
