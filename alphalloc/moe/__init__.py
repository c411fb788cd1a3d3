"""The MoE-LoRA layer in plain torch: router, stacked experts, auxiliary losses and routing statistics.

::

    router.py      which experts a token goes to          losses/    balance, z-loss, contrast: injected or collected
    experts.py     the dense stacked mixture              statistics.py   load, entropy, dead experts
    grouped.py     the sparse one                         context.py      how a layer learns mask, step and losses
    layer.py       MoELora, one adapter on one linear
"""

from __future__ import annotations

from alphalloc.moe.context import RoutingContext
from alphalloc.moe.layer import MoELora
from alphalloc.moe.losses import PRESETS, AuxLosses, AuxScale
from alphalloc.moe.statistics import LayerRouting, RoutingStatistics, mean_balance

__all__ = [
    "PRESETS",
    "AuxLosses",
    "AuxScale",
    "LayerRouting",
    "MoELora",
    "RoutingContext",
    "RoutingStatistics",
    "mean_balance",
]
