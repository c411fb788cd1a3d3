"""How a layer reaches what its input does not tell: the attention mask, the step, the losses, the recorder.

The owner of an adapter makes one ``RoutingContext``, attaches every ``MoELora`` to it, calls ``begin_forward`` before
each forward of the model and ``begin_step`` before each optimizer step. The context must stay as it is until the
backward has run: a checkpointed forward runs again then. What was captured in the first forward (mask, scale) is used
for the injected losses, except under reentrant checkpointing, whose first forward leaves no trace: there the mask is
the current one, so one forward must be followed by its own backward.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from alphalloc.errors import AdapterError
from alphalloc.moe.layer import MoELora
from alphalloc.moe.losses.collect import RouterLogits
from alphalloc.moe.losses.contrastive import expert_contrast
from alphalloc.moe.losses.inject import AuxScale, inject_loss, inject_router_losses
from alphalloc.moe.losses.settings import AuxLosses
from alphalloc.moe.router import Routing
from alphalloc.moe.statistics import RoutingStatistics


class RoutingContext:
    """State that the layers of one adapter share.

    Attributes:
        losses: which auxiliary losses are trained.
        scale: the micro-batch's part of the optimizer step; a callback sets it.
        statistics: the recorder, or None to record nothing.
        logits: the collector of router logits; filled while training when ``losses.balance`` is ``mola``.
        step: optimizer step, for the late start and the sample of the contrastive loss.
    """

    def __init__(self, losses: AuxLosses | None = None, statistics: RoutingStatistics | None = None) -> None:
        self.losses = losses or AuxLosses()
        self.scale = AuxScale()
        self.statistics = statistics
        self.logits = RouterLogits()
        self.step = 0
        self._mask_BS: Tensor | None = None
        self._observers: dict[str, LayerObserver] = {}
        self._num_balanced = self._num_routers = self._num_contrasted = 0

    def attach(self, layer: MoELora, name: str, block: int) -> None:
        """Let ``layer``, called ``name`` and lying in transformer block ``block``, report here.

        A layer with one expert decides nothing and reports nothing. Raises AdapterError for a name in use.
        """
        if name in self._observers:
            raise AdapterError(f"a layer named {name!r} is attached already; names must differ")
        if layer.num_experts > 1:
            observer = LayerObserver(self, layer, name, block, position=len(self._observers))
            layer.routing_observer = self._observers[name] = observer
            if self.statistics is not None and observer.owns_router:
                self.statistics.expect(name, layer.num_experts, layer.top_k, layer.experts_a.weight.device)
            self._count()

    def detach(self, layer: MoELora) -> None:
        """Undo ``attach``; a layer attached elsewhere or nowhere is left alone."""
        observer = layer.routing_observer
        if isinstance(observer, LayerObserver) and self._observers.get(observer.name) is observer:
            del self._observers[observer.name]
            layer.routing_observer = None
            self._count()

    def begin_step(
        self, step: int, *, micro_batches: int = 1, total_tokens: float | None = None, grad_scale: float | Tensor = 1.0
    ) -> None:
        """Declare optimizer step ``step``; the other arguments are ``AuxScale.set_step``'s."""
        self.step = step
        self.scale.set_step(micro_batches=micro_batches, total_tokens=total_tokens, grad_scale=grad_scale)

    def begin_forward(self, attention_mask: Tensor | None = None) -> None:
        """Declare the coming forward's attention mask and empty the collector.

        Only a 2-D mask (batch, sequence; 0 for padding) marks padding. Others, and packed sequences, have none to mark:
        every token counts.
        """
        usable = attention_mask is not None and attention_mask.dim() == 2
        self._mask_BS = attention_mask != 0 if attention_mask is not None and usable else None
        self.logits.clear()

    def mask_of(self, x: Tensor, *, training: bool) -> Tensor | None:
        """Return the mask (T,) of the tokens of ``x``, or None when all count.

        A (batch, sequence) mask fits an ``x`` with those leading dimensions, or flattened ones. Outside training a
        longer mask covers a key-value cache too, and its end belongs to ``x``. Anything else does not fit: a linear may
        see other tokens than the model does (a cross-attention's, a routed expert's), and there every token counts.
        """
        mask_BS = self._mask_BS
        if mask_BS is None:
            return None
        leading = x.shape[:-1]
        if not training and len(leading) == 2 and mask_BS.shape[0] == leading[0] and mask_BS.shape[1] > leading[1]:
            mask_BS = mask_BS[:, mask_BS.shape[1] - leading[1] :]
        if leading == mask_BS.shape or (len(leading) == 1 and leading[0] == mask_BS.numel()):
            return mask_BS.reshape(-1).to(x.device)
        return None

    @property
    def num_balanced(self) -> int:
        """Number of decisions with E > K: what the injected balance loss is the mean over."""
        return self._num_balanced

    @property
    def num_routers(self) -> int:
        """Number of routers: what the z-loss is the mean over."""
        return self._num_routers

    @property
    def num_contrasted(self) -> int:
        """Number of linears with several experts: what the contrastive loss is the mean over."""
        return self._num_contrasted

    @property
    def contrast_active(self) -> bool:
        """Whether this step has a contrastive loss."""
        on = self.losses.contrastive != "none" and self.losses.contrastive_coefficient > 0
        return on and self.step >= self.losses.contrastive_start_step

    def _count(self) -> None:
        observers = self._observers.values()
        self._num_balanced = sum(observer.balanced for observer in observers)
        self._num_routers = sum(observer.owns_router for observer in observers)
        self._num_contrasted = len(observers)


class LayerObserver:
    """A context as seen by one layer. A linear that borrows a router leaves that decision's losses to the lender."""

    def __init__(self, context: RoutingContext, layer: MoELora, name: str, block: int, *, position: int) -> None:
        self.context = context
        self.name = name
        self.block = block
        self.position = position
        self.owns_router = layer.router is not None
        self.balanced = self.owns_router and layer.num_experts > layer.top_k

    @property
    def needs_hidden(self) -> bool:
        """Whether the layer must compute ``A x`` of all experts, which only the dense backend does."""
        return self.context.contrast_active

    def __call__(self, layer: MoELora, x: Tensor, output: Tensor, routing: Routing, hidden_TR: Tensor | None) -> Tensor:
        """Record, collect and inject as the context says; return ``output``."""
        context = self.context
        mask_T = context.mask_of(x, training=layer.training)
        if not _recomputing():
            self._note(layer, routing, mask_T)
        if not (layer.training and torch.is_grad_enabled()):
            return output
        num_tokens = routing.logits_TE.shape[0] if mask_T is None else mask_T.sum()
        weight = context.scale.weight(num_tokens)
        output = self._inject_router_losses(output, routing, mask_T, weight)
        if context.contrast_active and hidden_TR is not None and hidden_TR.requires_grad:
            output = self._inject_contrast(layer, output, routing, hidden_TR, mask_T, weight)
        return output

    def _note(self, layer: MoELora, routing: Routing, mask_T: Tensor | None) -> None:
        context = self.context
        if context.statistics is not None and self.owns_router:
            context.statistics.record(self.name, routing, mask_T)
        if layer.training and context.losses.balance == "mola" and layer.router is not None:
            trained = layer.router.weight.requires_grad
            context.logits.add(self.block, routing.logits_TE, layer.top_k, mask_T, trained=trained)

    def _inject_router_losses(self, output: Tensor, routing: Routing, mask_T: Tensor | None, weight: Tensor) -> Tensor:
        context = self.context
        balance = context.losses.injected_balance / context.num_balanced if self.balanced else 0.0
        z_loss = context.losses.z_coefficient / context.num_routers if self.owns_router else 0.0
        if not (balance or z_loss) or not routing.logits_TE.requires_grad:
            return output
        return inject_router_losses(
            output, routing.logits_TE, routing.chosen_TK, mask_T, weight, balance=balance, z_loss=z_loss
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _inject_contrast(
        self, layer: MoELora, output: Tensor, routing: Routing, hidden_TR: Tensor, mask_T: Tensor | None, weight: Tensor
    ) -> Tensor:
        losses = self.context.losses
        loss_of = partial(
            _contrast,
            num_experts=layer.num_experts,
            form=losses.contrastive,
            temperature=losses.temperature,
            max_tokens=losses.contrastive_max_tokens,
            # Distinct for every linear and step, equal for micro-batches of one step and for a recomputed forward.
            seed=losses.seed + 1_000_003 * self.context.step + self.position,
            mask_T=mask_T,
        )
        weight = weight * (losses.contrastive_coefficient / self.context.num_contrasted)
        return inject_loss(output, loss_of, (hidden_TR, layer.experts_b.weight, routing.chosen_TK), weight)


def _contrast(hidden_TR: Tensor, b_OR: Tensor, chosen_TK: Tensor, **settings: object) -> Tensor:
    return expert_contrast(hidden_TR, b_OR, chosen_TK, **settings)  # type: ignore[arg-type]


def _recomputing() -> bool:
    """Whether this forward runs inside a backward, as activation checkpointing's second one does (either kind).

    The id of the running backward is what torch's own checkpointing asks for; a compiled forward is never inside one.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
