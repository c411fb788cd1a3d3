"""Losses on the router's logits: load balance in two forms, and the z-loss.

Balance of one set of tokens: E * sum over experts of f_e P_e, where f_e is the share of all top-k picks that fell on
expert e (the f sum to 1) and P_e the mean router probability. It is 1 when balanced, and constant for E = K. The
gradient flows through P alone. Switch Transformer (arXiv 2101.03961) for K = 1. Shape suffixes: see ``router.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alphalloc.errors import AdapterError


def switch_balance(logits_TE: Tensor, top_k: int, mask_T: Tensor | None = None) -> Tensor:
    """Return the balance loss of one linear over the tokens where ``mask_T`` is true (all without a mask).

    No token at all gives 0, with a zero gradient.
    """
    return _balance(logits_TE, logits_TE.detach().topk(top_k, dim=-1).indices, mask_T)


def mola_balance(logits_by_block: Sequence[Tensor], top_k: Sequence[int], masks: Sequence[Tensor | None]) -> Tensor:
    """Return MoLA's balance loss: the *sum* over blocks, each over the logits of all its linears pooled.

    Entry i of each argument belongs to block i: ``logits_by_block[i]`` is (tokens of all its linears, experts). MoLA's
    code (arXiv 2402.08562) counts padding; pass None as mask for that. No block gives 0. Raises AdapterError when the
    three do not have one length.
    """
    if not len(logits_by_block) == len(top_k) == len(masks):
        raise AdapterError(f"one top_k and one mask a block: got {len(logits_by_block)}, {len(top_k)}, {len(masks)}")
    losses = [switch_balance(*block) for block in zip(logits_by_block, top_k, masks, strict=True)]
    return torch.stack(losses).sum() if losses else torch.zeros(())


def router_z_loss(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Return the mean over valid tokens of logsumexp(logits)² (ST-MoE, arXiv 2202.08906, equation 5)."""
    weight_T, count = _token_weights(logits_TE, mask_T)
    squares_T = torch.logsumexp(logits_TE, -1).square()
    return torch.where(weight_T > 0, squares_T, squares_T.new_zeros(())).sum() / count


def router_loss_gradient(
    logits_TE: Tensor, chosen_TK: Tensor, mask_T: Tensor | None, balance: float, z_loss: float
) -> Tensor:
    """Return d(balance * switch_balance + z_loss * router_z_loss) / d(logits), in closed form.

    With p = softmax(logits), n valid tokens and c_e = balance * E f_e / n, the first term's gradient is
    p_te (c_e - sum_j p_tj c_j); the second's is z_loss * 2/n * logsumexp_t * p_te. Both vanish on masked tokens.
    """
    weight_T, count = _token_weights(logits_TE, mask_T)
    probability_TE = logits_TE.softmax(-1)
    cost_E = _pick_share(logits_TE, chosen_TK, weight_T, count) * (balance * logits_TE.shape[-1] / count)
    gradient_TE = probability_TE * (cost_E - (probability_TE @ cost_E).unsqueeze(-1))
    if z_loss:
        gradient_TE = gradient_TE + probability_TE * (2 * z_loss / count * torch.logsumexp(logits_TE, -1, keepdim=True))
    return torch.where(weight_T.unsqueeze(-1) > 0, gradient_TE, gradient_TE.new_zeros(()))


def _balance(logits_TE: Tensor, chosen_TK: Tensor, mask_T: Tensor | None) -> Tensor:
    weight_T, count = _token_weights(logits_TE, mask_T)
    share_E = _pick_share(logits_TE, chosen_TK, weight_T, count)
    probability_TE = logits_TE.softmax(-1)
    # `where`, not a product: a masked token may hold anything, infinities included.
    valid_TE = torch.where(weight_T.unsqueeze(-1) > 0, probability_TE, probability_TE.new_zeros(()))
    return (valid_TE.sum(0) * share_E).sum() * (logits_TE.shape[-1] / count)


def _token_weights(logits_TE: Tensor, mask_T: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 for valid tokens and 0 for others, and their number (at least 1, so that nothing divides by zero)."""
    weight_T = logits_TE.new_ones(logits_TE.shape[0]) if mask_T is None else (mask_T != 0).to(logits_TE.dtype)
    return weight_T, weight_T.sum().clamp(min=1.0)


def _pick_share(logits_TE: Tensor, chosen_TK: Tensor, weight_T: Tensor, count: Tensor) -> Tensor:
    """f_E: share of the valid tokens' picks that fell on each expert; sums to 1."""
    top_k = chosen_TK.shape[-1]
    picks_E = logits_TE.new_zeros(logits_TE.shape[-1])
    picks_E = picks_E.scatter_add(0, chosen_TK.flatten(), weight_T.repeat_interleave(top_k))
    return picks_E / (count * top_k)
