"""Tells the adapters what only the trainer knows: the optimizer step, its micro-batches, the warm-up, the loss scale.

Nobody needs to pass it: as soon as an adapter with auxiliary losses is put on a model, it joins the callbacks that
every transformers Trainer (TRL's too) starts with, and it does nothing for other models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from transformers import TrainerCallback

from alphalloc.moe.losses import micro_batches_in_step
from alphalloc.peft.routing import START_STEP, contexts


class MoELoraCallback(TrainerCallback):
    """Declares each optimizer step to the adapters of the trained model. Passing it twice changes nothing."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Note the warm-up, which the contrastive loss waits for, and how many ranks a token count covers."""
        if model is None:
            return
        warmup = int(args.get_warmup_steps(state.max_steps)) if state.max_steps > 0 else 0
        for context in contexts(model).values():
            context.data_parallel = args.world_size if getattr(args, "average_tokens_across_devices", False) else 1
            if context.starts_after_warmup:
                start = max(START_STEP, warmup)
                context.losses = dataclasses.replace(context.losses, contrastive_start_step=start)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """Declare the step: its number, its micro-batches (a short last one's real number), the fp16 loss scale."""
        if model is None:
            return
        accumulation = args.gradient_accumulation_steps
        batches = _length(kwargs.get("train_dataloader"))
        if batches is not None:
            accumulation = micro_batches_in_step(state.global_step, accumulation, batches)
        scaler = getattr(kwargs.get("optimizer"), "scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
        for context in contexts(model).values():
            context.begin_step(state.global_step, micro_batches=accumulation, grad_scale=scale)


def callbacks(model: nn.Module) -> list[TrainerCallback]:
    """The callbacks a trainer of ``model`` needs: none for a model without our adapters. For lists made by hand."""
    return [MoELoraCallback()] if contexts(model) else []


def join_default_callbacks() -> None:
    """Add the callback to those every Trainer starts with, once."""
    try:
        from transformers import trainer
    except ImportError:
        return  # a library it needs is missing or too new: no Trainer runs here, and the adapter works without
    defaults: list[type[TrainerCallback]] = trainer.DEFAULT_CALLBACKS  # type: ignore[assignment]
    if MoELoraCallback not in defaults:
        defaults.append(MoELoraCallback)


def _length(dataloader: Any) -> int | None:
    """Batches of an epoch; None for a stream without an end."""
    try:
        length = len(dataloader)
    except TypeError:
        return None
    return length or None
