"""The explicit mode: router logits collected during the forward, the loss computed after it.

MoLA's balance loss pools the linears of a block, so no linear can inject it alone. The logits keep their graph; a
checkpoint's recomputation must not collect them again (see ``context.py``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from alphalloc.errors import AdapterError
from alphalloc.moe.losses.balance import mola_balance


class CollectedLogits(NamedTuple):
    """One linear's routing: its block, its logits, how many it picks, its valid tokens, and whether it is trained."""

    block: int
    logits_TE: Tensor
    top_k: int
    mask_T: Tensor | None
    trained: bool


class RouterLogits:
    """What the linears of one forward collected; emptied by the next."""

    def __init__(self) -> None:
        self.collected: list[CollectedLogits] = []

    def add(self, block: int, logits_TE: Tensor, top_k: int, mask_T: Tensor | None, *, trained: bool) -> None:
        """Note one linear's logits, graph and all."""
        self.collected.append(CollectedLogits(block, logits_TE, top_k, mask_T, trained))

    def clear(self) -> None:
        """Forget everything: a new forward begins."""
        self.collected = []

    def mola_balance(self, *, masked: bool = False) -> Tensor:
        """Return MoLA's balance loss of what was collected; padding counts unless ``masked``.

        Raises AdapterError when a trained router's logits carry no gradient although gradients are on (reentrant
        checkpointing runs the forward without one: the loss would silently train nothing), and when linears of one
        block have different numbers of experts, which cannot be pooled.
        """
        if torch.is_grad_enabled() and any(c.trained and not c.logits_TE.requires_grad for c in self.collected):
            raise AdapterError(
                "the collected router logits carry no gradient: reentrant checkpointing hides it. Use "
                "use_reentrant=False, or the injected balance loss (balance='switch')"
            )
        blocks: dict[int, list[CollectedLogits]] = {}
        for entry in self.collected:
            blocks.setdefault(entry.block, []).append(entry)
        pooled = [_pool(block, entries, masked=masked) for block, entries in blocks.items()]
        return mola_balance([p[0] for p in pooled], [p[1] for p in pooled], [p[2] for p in pooled])

    def __deepcopy__(self, memo: dict[int, Any]) -> RouterLogits:
        """A copied model collects anew; tensors with a graph cannot be copied anyway."""
        return RouterLogits()


def _pool(block: int, entries: list[CollectedLogits], *, masked: bool) -> tuple[Tensor, int, Tensor | None]:
    shapes = {(entry.logits_TE.shape[-1], entry.top_k) for entry in entries}
    if len(shapes) > 1:
        raise AdapterError(
            f"block {block} mixes linears of different (num_experts, top_k) {sorted(shapes)}, which MoLA's balance "
            "loss cannot pool; use balance='switch'"
        )
    device = entries[0].logits_TE.device  # a block may be split over devices
    logits_TE = torch.cat([entry.logits_TE.to(device) for entry in entries])
    if not masked:
        return logits_TE, entries[0].top_k, None
    masks = [_mask_or_ones(entry).to(device) for entry in entries]
    return logits_TE, entries[0].top_k, torch.cat(masks)


def _mask_or_ones(entry: CollectedLogits) -> Tensor:
    if entry.mask_T is not None:
        return entry.mask_T
    return torch.ones(entry.logits_TE.shape[0], dtype=torch.bool, device=entry.logits_TE.device)
