"""Auxiliary gradients without touching the loss: an identity on an output whose backward adds them.

Any trainer that calls ``loss.backward()`` trains the auxiliary losses too, whatever it does to the loss, and it is
exact under no, non-reentrant and reentrant activation checkpointing. What must not change until the backward (mask,
weight, coefficients) is kept on the autograd node, so a recomputed forward cannot replace it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alphalloc.errors import AdapterError
from alphalloc.moe.losses.balance import router_loss_gradient


class AuxScale:
    """Factor on injected gradients: which part of an optimizer step one micro-batch is.

    A trainer divides its own loss by the accumulation and multiplies it by the fp16 loss scale; an injected gradient
    bypasses both, so a callback tells them here at the beginning of each optimizer step. There is no world-size factor:
    data-parallel wrappers average injected gradients like all others. The default is one micro-batch a step.
    """

    def __init__(self) -> None:
        self._per_token = False
        self._factor = torch.ones(())

    def set_step(
        self, *, micro_batches: int = 1, total_tokens: float | None = None, grad_scale: float | Tensor = 1.0
    ) -> None:
        """Declare the coming optimizer step.

        Args:
            micro_batches: forwards that this step accumulates, the real number of a short last one. Each weighs
                1 / micro_batches: the token-weighted mean when they have equally many valid tokens.
            total_tokens: valid tokens of all micro-batches of the step; each then weighs its own share, the exact
                token-weighted mean. Over several ranks: the mean per rank (all ranks' total / ranks).
            grad_scale: the fp16 GradScaler's current scale.

        Raises AdapterError when a number is not positive.
        """
        if micro_batches < 1 or (total_tokens is not None and total_tokens <= 0):
            raise AdapterError(
                f"micro_batches and total_tokens must be positive, got {micro_batches} and {total_tokens}"
            )
        self._per_token = total_tokens is not None
        # A new tensor each time: backward passes still to run keep the one they were recorded with.
        self._factor = torch.as_tensor(grad_scale, dtype=torch.float32) / (total_tokens or micro_batches)

    def weight(self, num_tokens: Tensor | int) -> Tensor:
        """Return the factor (0-dimensional) of a micro-batch with ``num_tokens`` valid tokens."""
        return self._factor * num_tokens if self._per_token else self._factor


def micro_batches_in_step(update_step: int, accumulation: int, batches_per_epoch: int) -> int:
    """Return how many micro-batches optimizer step ``update_step`` (0-based, over all epochs) accumulates.

    Each epoch's last step takes what is left: 10 batches accumulated by 4 are steps of 4, 4 and 2. Raises AdapterError
    for numbers that are not positive.
    """
    if update_step < 0 or accumulation < 1 or batches_per_epoch < 1:
        raise AdapterError(
            f"expected update_step >= 0, accumulation >= 1, batches_per_epoch >= 1, "
            f"got {update_step}, {accumulation}, {batches_per_epoch}"
        )
    steps_per_epoch = -(-batches_per_epoch // accumulation)
    done = update_step % steps_per_epoch * accumulation
    return min(accumulation, batches_per_epoch - done)


def inject_router_losses(
    output: Tensor,
    logits_TE: Tensor,
    chosen_TK: Tensor,
    mask_T: Tensor | None,
    weight: Tensor,
    *,
    balance: float,
    z_loss: float,
) -> Tensor:
    """Return ``output``; its backward adds d(balance * switch_balance + z_loss * router_z_loss) times ``weight``."""
    arguments = (output, logits_TE, chosen_TK, mask_T, weight, balance, z_loss)
    result: Tensor = _RouterLosses.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def inject_loss(output: Tensor, loss_of: Callable[..., Tensor], tensors: tuple[Tensor, ...], weight: Tensor) -> Tensor:
    """Return ``output``, which must not be a leaf; its backward adds weight * d(loss_of(*tensors)) / d(tensors).

    The loss is computed in the backward only: nothing is kept for it but ``tensors``.
    """
    result: Tensor = _LateLoss.apply(output, loss_of, weight, *tensors)  # type: ignore[no-untyped-call]
    return result


def attach_loss(output: Tensor, loss: Tensor, weight: Tensor) -> Tensor:
    """Return ``output``; its backward adds weight * d(loss), whatever gradient ``output`` itself receives.

    For a loss of the whole model (the collector's): attach it to the model's loss or logits.
    """
    result: Tensor = _ReadyLoss.apply(output, loss, weight)  # type: ignore[no-untyped-call]
    return result


class _RouterLosses(torch.autograd.Function):
    """Closed form, so that it compiles into one graph and the forward pays nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        logits_TE: Tensor,
        chosen_TK: Tensor,
        mask_T: Tensor | None,
        weight: Tensor,
        balance: float,
        z_loss: float,
    ) -> Tensor:
        ctx.save_for_backward(logits_TE, chosen_TK)
        # Attributes of the node, not saved tensors: checkpointing recomputes the latter from whatever is current then.
        ctx.mask_T, ctx.weight, ctx.balance, ctx.z_loss = mask_T, weight, balance, z_loss
        ctx.mark_dirty(output)  # returned as it is: a view would forbid models that go on with it in place
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits_TE, chosen_TK = ctx.saved_tensors
        added_TE = router_loss_gradient(logits_TE, chosen_TK, ctx.mask_T, ctx.balance, ctx.z_loss)
        return gradient, added_TE * ctx.weight.to(added_TE.dtype), None, None, None, None, None


class _LateLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, loss_of: Callable[..., Tensor], weight: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.loss_of, ctx.weight = loss_of, weight
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
            loss = ctx.loss_of(*tensors)
            wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
            found = iter(torch.autograd.grad(loss, wanted))
        added = (next(found) * ctx.weight if need else None for need in needed)
        return gradient, None, None, *added


class _ReadyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, weight: Tensor) -> Tensor:
        ctx.like, ctx.weight = loss.detach(), weight
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, torch.ones_like(ctx.like) * ctx.weight, None
