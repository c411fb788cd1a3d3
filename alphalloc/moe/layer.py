"""The MoE-LoRA adapter of one linear, in plain torch.

    y = W x + (lora_alpha / r) * sum over the chosen experts e of  gate_e(x) B_e A_e dropout(x)

Shape suffixes: see ``router.py``.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from alphalloc.errors import AdapterError
from alphalloc.moe.experts import ExpertsB, gate_hidden
from alphalloc.moe.grouped import grouped_mixture, grouped_pays, grouped_supported
from alphalloc.moe.router import Router, Routing, resolve_normalize, route

RankMode = Literal["per_expert", "total"]
Backend = Literal["auto", "dense", "grouped"]


class RoutingObserver(Protocol):
    """Called after each routed forward: may note the routing and attach a loss to the output's gradient."""

    @property
    def needs_hidden(self) -> bool:
        """Whether ``hidden_TR`` is asked for; it binds the layer to the dense backend."""
        ...

    def __call__(self, layer: MoELora, x: Tensor, output: Tensor, routing: Routing, hidden_TR: Tensor | None) -> Tensor:
        """Return ``output``. ``hidden_TR`` is ``A dropout(x)`` of all experts, None if not computed for all."""
        ...


class MoELora(nn.Module):
    """One adapter on one linear: E low-rank experts and a router that sends each token to ``top_k`` of them.

    Args:
        in_features: D of the linear.
        out_features: O of the linear.
        num_experts: E. One expert has no router and is plain LoRA: its gate is 1.
        top_k: K, experts a token is sent to; 1 <= K <= E.
        r: rank of each expert (``rank_mode="per_expert"``), or of all together (``"total"``, then E must divide it).
        lora_alpha: numerator of LoRA's factor. The factor is ``lora_alpha`` / rank of one expert.
        dropout: probability on the experts' input; one mask shared by all experts, never seen by the router.
        rank_mode: how ``r`` is read, see there.
        normalize_topk: whether chosen gate values are divided by their sum, see ``resolve_normalize``.
        router: None makes one exactly when E > 1; False leaves it out, and ``use_router_of`` must name a donor.
        backend: ``dense`` computes ``A x`` of all experts, ``grouped`` of the chosen ones; both are the same function.
            ``grouped`` falls back to dense where torch cannot, ``auto`` also where dense was measured faster.
        device: of the parameters.
        dtype: of the parameters.

    A is drawn as LoRA's is (Kaiming uniform with a = sqrt(5) over ``in_features``, for each expert), B is zero, so a
    fresh adapter changes nothing. Raises AdapterError for settings that contradict each other.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_experts: int,
        top_k: int,
        r: int,
        lora_alpha: float,
        dropout: float = 0.0,
        rank_mode: RankMode = "per_expert",
        normalize_topk: str = "auto",
        router: bool | None = None,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(in_features, out_features, num_experts, top_k, lora_alpha, dropout, router)
        if backend not in ("auto", "dense", "grouped"):
            raise AdapterError(f"backend must be 'auto', 'dense' or 'grouped', got {backend!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.num_experts = num_experts
        self.top_k = top_k
        self.expert_rank = expert_rank(r, num_experts, rank_mode)
        self.scaling = lora_alpha / self.expert_rank
        self.normalize = resolve_normalize(normalize_topk, num_experts, top_k)
        self.backend: Backend = backend
        rank = num_experts * self.expert_rank
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.experts_a = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.experts_b = ExpertsB(rank, out_features, bias=False, device=device, dtype=dtype)
        owns_router = num_experts > 1 if router is None else router
        self.router: Router | None = Router(in_features, num_experts, device, dtype) if owns_router else None
        self._router_donor: tuple[MoELora, ...] = ()  # a tuple, so that torch does not register it as a submodule
        self.routing_observer: RoutingObserver | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A and the router anew and set B to zero."""
        nn.init.kaiming_uniform_(self.experts_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.experts_b.weight)
        if self.router is not None:
            self.router.reset_parameters()

    def use_router_of(self, donor: MoELora) -> None:
        """Take every decision from ``donor``'s router: one decision for linears that read the same input.

        The donor keeps the parameters, so they are saved and counted once. Raises AdapterError when the two layers
        cannot share a decision.
        """
        if self.router is not None or donor.router is None:
            raise AdapterError("sharing needs a layer built with router=False and a donor that has a router")
        mine = (self.in_features, self.num_experts, self.top_k, self.normalize)
        theirs = (donor.in_features, donor.num_experts, donor.top_k, donor.normalize)
        if mine != theirs:
            raise AdapterError(
                f"a shared router needs equal (in_features, num_experts, top_k, normalize), got {mine} and {theirs}"
            )
        self._router_donor = (donor,)

    def route(self, x_TD: Tensor) -> Routing:
        """Return the routing of each token; raises AdapterError when the layer has neither router nor donor."""
        router = self._router_donor[0].router if self._router_donor else self.router
        if router is None:
            raise AdapterError("this layer has no router: it has one expert, or use_router_of was never called")
        return route(router(x_TD), self.top_k, normalize=self.normalize)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``base_output`` plus the experts' mixture, in its shape and dtype.

        ``x`` is (..., D) and ``base_output``, the frozen linear's answer to it, (..., O).
        """
        x_TD = self._widened(x.reshape(-1, self.in_features))
        base_TO = base_output.reshape(-1, self.out_features)
        dropped_TD = self._expert_input(x_TD)
        if self.num_experts == 1:
            output: Tensor = self.experts_b(self.experts_a(dropped_TD), base_TO, self.scaling)
            return output.view(base_output.shape)
        routing = self.route(x_TD)
        output, hidden_TR = self._mix(dropped_TD, base_TO, routing)
        output = output.view(base_output.shape)
        if self.routing_observer is not None:
            output = self.routing_observer(self, x, output, routing, hidden_TR)
        return output

    def _widened(self, x_TD: Tensor) -> Tensor:
        """``x`` in the wider of its own and A's dtype: one copy for experts and router, kept once for the backward."""
        if torch.is_autocast_enabled(x_TD.device.type):
            return x_TD
        return x_TD.to(torch.promote_types(x_TD.dtype, self.experts_a.weight.dtype))

    def _expert_input(self, x_TD: Tensor) -> Tensor:
        """``dropout(x)`` in A's dtype (autocast chooses its own)."""
        if not torch.is_autocast_enabled(x_TD.device.type):
            x_TD = x_TD.to(self.experts_a.weight.dtype)
        dropped_TD: Tensor = self.dropout(x_TD)
        return dropped_TD

    def _mix(self, dropped_TD: Tensor, base_TO: Tensor, routing: Routing) -> tuple[Tensor, Tensor | None]:
        """The base plus the gated experts, and ``A x`` of all experts where that was computed."""
        if self._use_grouped(dropped_TD):
            weights = (self.experts_a.weight, self.experts_b.weight)
            return grouped_mixture(dropped_TD, base_TO, *weights, routing, self.scaling), None
        hidden_TR = self.experts_a(dropped_TD)
        gated_TR = gate_hidden(hidden_TR, routing.chosen_TK, routing.weights_TK, self.num_experts)
        return self.experts_b(gated_TR, base_TO, self.scaling), hidden_TR

    def _use_grouped(self, x_TD: Tensor) -> bool:
        if self.backend == "dense" or (self.routing_observer is not None and self.routing_observer.needs_hidden):
            return False
        if self.backend == "auto" and not grouped_pays(x_TD.device, self.num_experts, self.top_k, self.expert_rank):
            return False
        return grouped_supported(x_TD, self.experts_a.weight, self.experts_b.weight, self.num_experts)

    def delta_weight(self) -> Tensor:
        """Return ``(lora_alpha / r) B A`` (O x D, A's dtype), what one expert adds to the frozen weight.

        The product is taken in at least float32. Raises AdapterError for several experts: their sum depends on the
        input, so no single matrix equals it.
        """
        if self.num_experts != 1:
            raise AdapterError(
                f"{self.num_experts} experts mix differently for every token, so no weight equals them; merge needs "
                "num_experts = 1 (a static approximation can be exported instead)"
            )
        precise = torch.promote_types(self.experts_a.weight.dtype, torch.float32)
        delta = self.experts_b.weight.to(precise) @ self.experts_a.weight.to(precise) * self.scaling
        return delta.to(self.experts_a.weight.dtype)

    def extra_repr(self) -> str:
        """The routing settings, as printed in a model's repr."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}, r={self.expert_rank}, scaling={self.scaling:g}"


def expert_rank(r: int, num_experts: int, rank_mode: str) -> int:
    """Return the rank of one expert; raises AdapterError when ``r`` is not positive or cannot be split."""
    if r < 1:
        raise AdapterError(f"the rank r must be a positive integer, got {r}")
    if rank_mode == "per_expert":
        return r
    if rank_mode != "total":
        raise AdapterError(f"rank_mode must be 'per_expert' or 'total', got {rank_mode!r}")
    if r % num_experts:
        raise AdapterError(
            f"rank_mode='total' splits r over the experts, but {r} is not a multiple of {num_experts}; "
            "choose another r or rank_mode='per_expert'"
        )
    return r // num_experts


def _check(
    in_features: int,
    out_features: int,
    num_experts: int,
    top_k: int,
    lora_alpha: float,
    dropout: float,
    router: bool | None,
) -> None:
    if in_features < 1 or out_features < 1:
        raise AdapterError(f"in_features and out_features must be positive, got {in_features} and {out_features}")
    if num_experts < 1:
        raise AdapterError(f"num_experts must be at least 1, got {num_experts}; leave such a linear unwrapped")
    if not 1 <= top_k <= num_experts:
        raise AdapterError(f"top_k must lie between 1 and num_experts = {num_experts}, got {top_k}")
    if not (math.isfinite(lora_alpha) and lora_alpha > 0):
        raise AdapterError(f"lora_alpha must be a positive number, got {lora_alpha}")
    if not 0.0 <= dropout < 1.0:
        raise AdapterError(f"dropout must lie in [0, 1), got {dropout}")
    if router and num_experts == 1:
        raise AdapterError("one expert has no decision to take: leave router unset for num_experts = 1")
