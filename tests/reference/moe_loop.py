"""The MoE-LoRA layer written the slow and obvious way: one expert after the other, on the tokens that chose it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from alphalloc.moe.layer import MoELora


class LoopMoELora(nn.Module):
    """Same parameters as a ``MoELora``, but separate per expert: gather, two products, index_add."""

    def __init__(self, layer: MoELora, *, dropout: float = 0.0) -> None:
        super().__init__()
        rank = layer.expert_rank
        a_rows = layer.experts_a.weight.detach().split(rank, dim=0)
        b_columns = layer.experts_b.weight.detach().split(rank, dim=1)
        self.experts_a = nn.ParameterList([a.clone() for a in a_rows])
        self.experts_b = nn.ParameterList([b.clone() for b in b_columns])
        self.router = None if layer.router is None else nn.Parameter(layer.router.weight.detach().clone())
        self.top_k = layer.top_k
        self.normalize = layer.normalize
        self.scaling = layer.scaling
        self.dropout = nn.Dropout(dropout)  # drawn anew for every expert, as MoLA's code does (arXiv 2402.08562)

    def gate(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax over all experts, then top-k, then division by the sum."""
        if self.router is None:
            return torch.zeros(len(x_TD), 1, dtype=torch.long), torch.ones(len(x_TD), 1, dtype=x_TD.dtype)
        probability_TE = functional.linear(x_TD, self.router).softmax(-1)
        weights_TK, chosen_TK = probability_TE.topk(self.top_k, dim=-1)
        if self.normalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return chosen_TK, weights_TK

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """The layer's answer with its own router."""
        return self.mix(x, base_output, *self.gate(x.reshape(-1, x.shape[-1])))

    def mix(self, x: Tensor, base_output: Tensor, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The layer's answer with a given gate."""
        x_TD = x.reshape(-1, x.shape[-1])
        output_TO = base_output.reshape(-1, base_output.shape[-1])
        for expert, (a, b) in enumerate(zip(self.experts_a, self.experts_b, strict=True)):
            token, slot = torch.where(chosen_TK == expert)
            update = functional.linear(functional.linear(self.dropout(x_TD[token]), a), b) * self.scaling
            output_TO = output_TO.index_add(0, token, update * weights_TK[token, slot].unsqueeze(-1).to(update.dtype))
        return output_TO.view(base_output.shape)
