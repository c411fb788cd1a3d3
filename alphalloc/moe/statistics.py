"""What the routers did: load, entropy, dead experts, per linear, without waiting for a device in between.

Counts are kept as tensors where they arise; only ``summary`` brings them to the host. Shape suffixes: ``router.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from alphalloc.moe.router import Routing

DEAD_SHARE = 0.01  # of the fair share; chosen here: a hundredfold below balance no longer trains


@dataclass(frozen=True)
class LayerRouting:
    """Routing of one linear over the recorded tokens.

    Attributes:
        name: of the linear.
        num_experts: E.
        top_k: K.
        tokens: valid tokens seen.
        load: share of all picks that fell on each expert; sums to 1.
        probability: mean router probability of each expert.
        entropy: of ``load``, divided by log E: 1 is balanced, 0 is one expert alone.
        token_entropy: mean entropy of the router's distribution per token, divided by log E: 0 is certain.
        balance: E * sum f P over the recorded tokens, the ``switch`` balance loss without coefficient.
        dead_experts: those with less than 1 % of the fair share 1 / E of the picks.
    """

    name: str
    num_experts: int
    top_k: int
    tokens: int
    load: tuple[float, ...]
    probability: tuple[float, ...]
    entropy: float
    token_entropy: float
    balance: float
    dead_experts: tuple[int, ...]


class _Counts:
    """Running sums of one linear."""

    def __init__(self, num_experts: int, top_k: int, device: torch.device) -> None:
        self.num_experts = num_experts
        self.top_k = top_k
        self.picks_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self.probability_E = torch.zeros(num_experts, device=device)
        self.entropy = torch.zeros((), device=device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.picks_E, self.probability_E, self.entropy, self.tokens


class RoutingStatistics:
    """Recorder of all linears of one adapter; ``reset`` begins a new window."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}

    def expect(self, name: str, num_experts: int, top_k: int, device: torch.device) -> None:
        """Make room for linear ``name`` before its first forward, so that a compiled one is not traced twice."""
        self._counts[name] = _Counts(num_experts, top_k, device)

    @torch.no_grad()
    def record(self, name: str, routing: Routing, mask_T: Tensor | None) -> None:
        """Add one forward's routing of linear ``name``, over the tokens where ``mask_T`` is true."""
        logits_TE = routing.logits_TE.detach().float()
        num_experts, top_k = logits_TE.shape[-1], routing.chosen_TK.shape[-1]
        counts = self._counts.get(name)
        if counts is None or counts.picks_E.device != logits_TE.device:
            self.expect(name, num_experts, top_k, logits_TE.device)
            counts = self._counts[name]
        log_p_TE = logits_TE.log_softmax(-1)
        p_TE = log_p_TE.exp()
        entropy_T = -(p_TE * log_p_TE).sum(-1)
        picked_TE = routing.chosen_TE
        if mask_T is not None:
            valid_T1 = mask_T.unsqueeze(-1)
            picked_TE = picked_TE & valid_T1
            p_TE = torch.where(valid_T1, p_TE, p_TE.new_zeros(()))
            entropy_T = torch.where(mask_T, entropy_T, entropy_T.new_zeros(()))
        counts.picks_E += picked_TE.sum(0)
        counts.probability_E += p_TE.sum(0)
        counts.entropy += entropy_T.sum()
        counts.tokens += logits_TE.shape[0] if mask_T is None else mask_T.sum()

    def summary(self) -> tuple[LayerRouting, ...]:
        """Return the routing of every linear that saw a token since the last ``reset``, in the order of first sight."""
        found = (_summarise(name, counts) for name, counts in self._counts.items())
        return tuple(layer for layer in found if layer.tokens)

    def reset(self) -> None:
        """Forget everything recorded."""
        for counts in self._counts.values():
            for tensor in counts.tensors():
                tensor.zero_()


def mean_balance(layers: tuple[LayerRouting, ...]) -> float | None:
    """Return the mean balance over linears with E > K, None without one: elsewhere it is 1 whatever the router does."""
    values = [layer.balance for layer in layers if layer.num_experts > layer.top_k]
    return math.fsum(values) / len(values) if values else None


def _summarise(name: str, counts: _Counts) -> LayerRouting:
    num_experts = counts.num_experts
    tokens = int(counts.tokens)
    picks = counts.picks_E.tolist()
    load = tuple(n / max(tokens * counts.top_k, 1) for n in picks)
    probability = tuple(p / max(tokens, 1) for p in counts.probability_E.tolist())
    log_experts = math.log(num_experts)
    return LayerRouting(
        name=name,
        num_experts=num_experts,
        top_k=counts.top_k,
        tokens=tokens,
        load=load,
        probability=probability,
        entropy=-math.fsum(share * math.log(share) for share in load if share > 0) / log_experts,
        token_entropy=float(counts.entropy) / max(tokens, 1) / log_experts,
        balance=num_experts * math.fsum(f * p for f, p in zip(load, probability, strict=True)),
        dead_experts=tuple(e for e, share in enumerate(load) if share * num_experts < DEAD_SHARE),
    )
