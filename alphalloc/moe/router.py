"""Which experts a token goes to, and with what weight.

Shape suffixes used throughout this package:

====  ==================================================
T     tokens (all leading dimensions of the input, flattened)
D     input features
O     output features
E     experts of one linear
K     experts chosen per token (``top_k``)
R     E x r, the rank of all experts together
====  ==================================================

A suffix is the tensor's shape: ``gate_TE`` is (tokens, experts).
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from alphalloc.errors import AdapterError

NormalizeTopK = Literal["auto", "always", "never"]


class Routing(NamedTuple):
    """One routing decision: everything a loss or a statistic may want to know about it.

    ``logits_TE`` is the router's output in at least float32; ``chosen_TK`` the chosen experts' indices by descending
    weight; ``weights_TK`` their gate values. The gate is zero for every other expert.
    """

    logits_TE: Tensor
    chosen_TK: Tensor
    weights_TK: Tensor

    @property
    def chosen_TE(self) -> Tensor:
        """Boolean mask of the chosen experts."""
        return torch.zeros_like(self.logits_TE, dtype=torch.bool).scatter(-1, self.chosen_TK, True)

    @property
    def gate_TE(self) -> Tensor:
        """The gate: ``weights_TK`` at the chosen experts, exactly zero elsewhere."""
        return torch.zeros_like(self.logits_TE).scatter(-1, self.chosen_TK, self.weights_TK)


class Router(nn.Linear):
    """The linear map from token to expert logits, always computed in at least float32.

    Autocast is switched off: a bfloat16 product changes the chosen pair of 0.3 % of tokens (8 experts, 1,024 features).
    Initialised as ``nn.Linear`` is: uniform with bound 1 / sqrt(in_features).
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_experts, bias=False, device=device, dtype=dtype)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return ``logits_TE`` in float32, or in float64 for a float64 input."""
        precise = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(device_type=x_TD.device.type, enabled=False):
            return functional.linear(x_TD.to(precise), self.weight.to(precise))


def route(logits_TE: Tensor, top_k: int, *, normalize: bool) -> Routing:
    """Return the ``top_k`` experts of largest probability and their weights.

    p = softmax(logits); the weights are p of the chosen experts, divided by their sum when ``normalize``. The divided
    form is computed as the softmax of the chosen logits alone: the same number, without a probability that underflows.
    """
    if normalize:
        chosen_logits_TK, chosen_TK = logits_TE.topk(top_k, dim=-1)
        return Routing(logits_TE, chosen_TK, chosen_logits_TK.softmax(-1))
    weights_TK, chosen_TK = logits_TE.softmax(-1).topk(top_k, dim=-1)
    return Routing(logits_TE, chosen_TK, weights_TK)


def resolve_normalize(normalize_topk: str, num_experts: int, top_k: int) -> bool:
    """Return whether the chosen weights are divided by their sum.

    ``auto`` divides except for ``top_k`` = 1 with several experts: that gate would be the constant 1, and the task loss
    would give the router no gradient. ``always`` divides there too, and warns. Raises AdapterError for another word.
    """
    if normalize_topk not in ("auto", "always", "never"):
        raise AdapterError(f"normalize_topk must be 'auto', 'always' or 'never', got {normalize_topk!r}")
    constant_gate = top_k == 1 and num_experts > 1
    if normalize_topk == "always" and constant_gate:
        warnings.warn(
            "normalize_topk='always' with top_k=1 makes the gate the constant 1: the task loss gives the router no "
            "gradient, only a balance loss trains it; use normalize_topk='auto'",
            UserWarning,
            stacklevel=3,
        )
    return normalize_topk == "always" or (normalize_topk == "auto" and not constant_gate)
