"""What the layers cannot see from their input: the attention mask of a forward, the optimizer step, the accumulation.

A hook on the base model tells the routing context of each adapter at every forward; so it works in a PeftModel, in a
model that transformers loaded the adapter into, and under any trainer. The balance form ``mola``, which pools a block's
linears, is added there to the gradient of the model's loss (or logits, where it computed no loss).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alphalloc.moe.context import RoutingContext
from alphalloc.moe.layer import MoELora
from alphalloc.moe.losses import AuxLosses, attach_loss
from alphalloc.moe.statistics import RoutingStatistics
from alphalloc.peft.blocks import Block
from alphalloc.peft.config import MoELoraConfig

START_STEP = 50  # the least steps before the contrastive loss, whatever the warm-up (chosen in alphalloc.moe)
_UNDECLARED = (
    "auxiliary losses of adapter {name!r} are trained, but nothing tells how many micro-batches one optimizer step "
    "accumulates: each is taken at full weight, and the contrastive loss never starts. Trainers of transformers and "
    "TRL tell by themselves; in a loop of your own call alphalloc.peft.begin_step(model, step, micro_batches=...)"
)


class AdapterContext(RoutingContext):
    """The routing context of one adapter; knows whether anybody declares optimizer steps."""

    def __init__(self, losses: AuxLosses) -> None:
        super().__init__(losses)
        self.declared = False
        self.data_parallel = 1  # ranks whose tokens `num_items_in_batch` counts together
        self.starts_after_warmup = False  # whether the contrastive loss waits for the learning rate's warm-up
        self._step: dict[str, Any] = {}

    @property
    def trains_losses(self) -> bool:
        """Whether any auxiliary loss has a coefficient."""
        losses = self.losses
        balance = losses.balance != "none" and losses.balance_coefficient > 0
        contrast = losses.contrastive != "none" and losses.contrastive_coefficient > 0
        return balance or contrast or losses.z_coefficient > 0

    def begin_step(self, step: int, **scale: Any) -> None:
        """Declare the coming optimizer step, see ``RoutingContext.begin_step``."""
        self.declared = True
        self._step = scale
        super().begin_step(step, **scale)

    def set_token_share(self, share: Tensor) -> None:
        """Weigh the coming micro-batch by its share of the step's tokens, exactly as the trainer's own loss is."""
        self.scale.set_step(grad_scale=share * self.data_parallel * self._step.get("grad_scale", 1.0))


class ForwardHook:
    """Both hooks of one adapter on the base model: before a forward the mask and scale, after it the pooled loss."""

    def __init__(self, adapter_name: str, context: AdapterContext) -> None:
        self.adapter_name = adapter_name
        self.context = context
        self._warned = False

    def __call__(self, model: nn.Module, *call: Any) -> Any:
        """``(args, kwargs)`` before the forward, ``(args, kwargs, output)`` after it, as torch calls its hooks."""
        if len(call) == 2:
            return self._before(model, *call)
        return self._after(*call)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        training = model.training and torch.is_grad_enabled()
        if not training and self.context.statistics is None:
            return  # a reference model's forward must not replace the mask of a backward that is still to come
        self.context.begin_forward(_token_mask(model, args, kwargs))
        if not training or not self.context.trains_losses:
            return
        share = _token_share(model, kwargs)
        if share is not None:
            self.context.set_token_share(share)
        elif not self.context.declared and not self._warned:
            self._warned = True
            warnings.warn(_UNDECLARED.format(name=self.adapter_name), UserWarning, stacklevel=4)

    def _after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        context = self.context
        collected = context.logits.collected
        if not collected or not torch.is_grad_enabled():
            context.logits.clear()
            return None
        loss = context.logits.mola_balance() * context.losses.balance_coefficient
        tokens = collected[0].logits_TE.shape[0]
        context.logits.clear()
        return _with_loss(output, loss, context.scale.weight(tokens))


def attach_context(
    model: nn.Module,
    adapter_name: str,
    config: MoELoraConfig,
    adapters: Mapping[str, MoELora],
    blocks: Mapping[str, Block | None],
) -> AdapterContext:
    """Let the adapters of one name report to one context, and hook it to ``model``.

    Args:
        model: the base model.
        adapter_name: of the adapter.
        config: its losses.
        adapters: MoELora of each linear, by path.
        blocks: block of each linear; linears outside blocks pool with no other.
    """
    detach_context(model, adapter_name)
    context = AdapterContext(losses_of(config))
    context.starts_after_warmup = config.contrastive_start_step is None
    numbers: dict[Any, int] = {}
    for path, adapter in adapters.items():
        block = blocks.get(path) or path
        context.attach(adapter, path, numbers.setdefault(block, len(numbers)))
    hook = ForwardHook(adapter_name, context)
    model.register_forward_pre_hook(hook, with_kwargs=True)
    model.register_forward_hook(hook, with_kwargs=True)
    return context


def detach_context(model: nn.Module, adapter_name: str | None = None) -> None:
    """Take the hooks of ``adapter_name`` (None: of every adapter) off ``model``."""
    for hooks, with_kwargs in (
        (model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs),
        (model._forward_hooks, model._forward_hooks_with_kwargs),
    ):
        for key, hook in list(hooks.items()):
            if isinstance(hook, ForwardHook) and adapter_name in (None, hook.adapter_name):
                del hooks[key]
                with_kwargs.pop(key, None)


def contexts(model: nn.Module) -> dict[str, AdapterContext]:
    """The routing context of every adapter in ``model`` (wrapped as it may be), by adapter name."""
    return {hook.adapter_name: hook.context for hook in _hooks(model)}


def begin_step(model: nn.Module, step: int, **scale: Any) -> None:
    """Declare the coming optimizer step to every adapter of ``model``; Trainers do it by the callback.

    Args:
        model: the model, wrapped as it may be.
        step: number of the optimizer step, from 0.
        scale: ``micro_batches`` (accumulated in this step), ``total_tokens``, ``grad_scale``: see
            ``alphalloc.moe.losses.AuxScale.set_step``.
    """
    for context in contexts(model).values():
        context.begin_step(step, **scale)


def record_routing(model: nn.Module, adapter_name: str = "default") -> RoutingStatistics:
    """Begin to record which experts the tokens go to, and return the recorder (``summary()``, ``reset()``).

    Raises:
        KeyError: no such adapter.
    """
    statistics = RoutingStatistics()
    contexts(model)[adapter_name].statistics = statistics
    return statistics


def losses_of(config: MoELoraConfig) -> AuxLosses:
    """The auxiliary losses a configuration asks for."""
    return AuxLosses(
        balance=config.balance,
        balance_coefficient=config.balance_coef,
        z_coefficient=config.router_z_coef,
        contrastive=config.contrastive,
        contrastive_coefficient=config.contrastive_coef,
        temperature=config.tau,
        contrastive_start_step=START_STEP if config.contrastive_start_step is None else config.contrastive_start_step,
        seed=config.seed,
    )


def _hooks(model: nn.Module) -> Iterator[ForwardHook]:
    for module in model.modules():
        yield from (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, ForwardHook))


def _token_mask(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The forward's attention mask, when it says which tokens of the adapted stack are padding."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if not isinstance(mask, Tensor):
        return None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        # It is the encoder's. When the decoder's tokens have its shape nothing tells them apart: then all count.
        for name in ("decoder_input_ids", "labels"):
            other = kwargs.get(name)
            if isinstance(other, Tensor) and other.shape == mask.shape:
                return None
    return mask


def _token_share(model: nn.Module, kwargs: dict[str, Any]) -> Tensor | None:
    """This micro-batch's share of the step's predicted tokens, where the trainer passes ``num_items_in_batch``."""
    items, labels = kwargs.get("num_items_in_batch"), kwargs.get("labels")
    if items is None or not isinstance(labels, Tensor):
        return None
    if "shift_labels" in kwargs:
        labels = kwargs["shift_labels"]
    elif _trainer_counts_shifted(model):
        labels = labels[..., 1:]
    total = torch.as_tensor(items, device=labels.device).float().reshape(-1)[0]
    return labels.ne(-100).sum() / total


def _trainer_counts_shifted(model: nn.Module) -> bool:
    """Whether this transformers' Trainer counts labels without the first of each row, which is never predicted."""
    from transformers import Trainer
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    if "_loss_shifts_labels" not in Trainer.__init__.__code__.co_names:  # older ones count every label
        return False
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not encoder_decoder and LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss


def _with_loss(output: Any, loss: Tensor, weight: Tensor) -> Any:
    """``output`` whose gradient also trains ``loss``: through its loss, or its logits where it has none."""
    if isinstance(output, tuple):
        return (_attached(output[0], loss, weight), *output[1:])
    if isinstance(output, Tensor):
        return _attached(output, loss, weight)
    for name in ("loss", "logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            output[name] = _attached(value, loss, weight)  # a ModelOutput: item and attribute are one
            return output
    warnings.warn("the balance loss 'mola' found no loss or logits to attach to; use balance='switch'", stacklevel=5)
    return output


def _attached(value: Tensor, loss: Tensor, weight: Tensor) -> Tensor:
    # A copy: trainers scale losses (and logits) in place, which autograd forbids on a custom function's own output.
    return attach_loss(value, loss, weight).clone()
