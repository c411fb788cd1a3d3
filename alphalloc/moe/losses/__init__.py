"""Auxiliary losses of MoE-LoRA: balance, z-loss and contrast; injected into gradients, or collected and computed."""

from __future__ import annotations

from alphalloc.moe.losses.balance import mola_balance, router_z_loss, switch_balance
from alphalloc.moe.losses.collect import RouterLogits
from alphalloc.moe.losses.contrastive import comoe_contrast, expert_contrast, supervised_contrast
from alphalloc.moe.losses.inject import AuxScale, attach_loss, inject_loss, micro_batches_in_step
from alphalloc.moe.losses.settings import PRESETS, AuxLosses

__all__ = [
    "PRESETS",
    "AuxLosses",
    "AuxScale",
    "RouterLogits",
    "attach_loss",
    "comoe_contrast",
    "expert_contrast",
    "inject_loss",
    "micro_batches_in_step",
    "mola_balance",
    "router_z_loss",
    "supervised_contrast",
    "switch_balance",
]
