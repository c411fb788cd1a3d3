"""The experts of one linear, stacked: two matrix products for all of them, whatever their number.

Expert e owns rows e*r .. (e+1)*r of A and the same columns of B. With the gate applied to the r-blocks of ``x Aᵀ``,
``(gate * x Aᵀ) Bᵀ`` is the sum over experts of ``gate_e B_e A_e x``. Shape suffixes: see ``router.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
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


def gate_hidden(hidden_TR: Tensor, chosen_TE: Tensor, gate_TE: Tensor) -> Tensor:
    """Return ``hidden_TR`` with each expert's r-block multiplied by its gate, and zero where it was not chosen.

    Blocks are cut out by ``where`` before the product: 0 * inf would be NaN for an expert nobody asked for.
    """
    tokens, num_experts = gate_TE.shape
    hidden_TEr = hidden_TR.view(tokens, num_experts, hidden_TR.shape[-1] // num_experts)
    kept_TEr = torch.where(chosen_TE.unsqueeze(-1), hidden_TEr, hidden_TEr.new_zeros(()))
    return (kept_TEr * gate_TE.unsqueeze(-1).to(hidden_TR.dtype)).flatten(-2)
