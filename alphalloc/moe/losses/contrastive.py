"""Contrastive losses that push experts apart, from the Gram matrix of B: no expert's output is ever formed.

With y_e(t) = B_e h_e(t), every dot product is ⟨y_e(t), y_f(s)⟩ = h_e(t)ᵀ (B_eᵀ B_f) h_f(s), a block of the R x R matrix
G = Bᵀ B. Outputs are normalised as y / sqrt(q + 1e-12) with q = max(hᵀ G h, 0), in at least float32; B = 0 gives finite
gradients. Shape suffixes: see ``router.py``; N sampled tokens, M anchors, r the rank of one expert.

``moelora`` is our reading of "contrastive learning among experts" (MoELoRA, arXiv 2402.12851), not the paper's exact
loss, whose text and code were not available: supervised contrast (arXiv 2004.11362) with the expert as the class.
``comoe`` is CoMoE's equations 12-13 (arXiv 2505.17553); the normalisation is our choice there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphalloc.errors import AdapterError

NORM_EPS = 1e-12


def supervised_contrast(
    similarity_MM: Tensor, ids_M: Tensor, temperature: float, valid_M: Tensor | None = None
) -> Tensor:
    """Return the supervised contrast of M vectors with classes ``ids_M``, from their pairwise similarities.

    Mean over anchors i that have a positive of  -1/|P_i| sum_{p in P_i} log(exp(s_ip/τ) / sum_{j != i} exp(s_ij/τ)),
    where P_i are the other vectors of i's class. Vectors outside ``valid_M`` do not exist. No anchor gives 0.
    """
    size = similarity_MM.shape[0]
    valid_M = torch.ones_like(ids_M, dtype=torch.bool) if valid_M is None else valid_M
    pairs_MM = valid_M.unsqueeze(0) & valid_M.unsqueeze(1) & ~torch.eye(size, dtype=torch.bool, device=ids_M.device)
    positive_MM = pairs_MM & (ids_M.unsqueeze(0) == ids_M.unsqueeze(1))
    log_share_MM = _masked_log_softmax(similarity_MM / temperature, pairs_MM)
    count_M = positive_MM.sum(-1)
    total_M = torch.where(positive_MM, log_share_MM, log_share_MM.new_zeros(())).sum(-1)
    loss_M = -total_M / count_M.clamp(min=1)
    return loss_M.sum() / (count_M > 0).sum().clamp(min=1)


def comoe_contrast(
    similarity_NEE: Tensor, chosen_NE: Tensor, temperature: float, valid_N: Tensor | None = None
) -> Tensor:
    """Return CoMoE's loss, the mean over tokens of a sum over chosen experts i.

    The term of i is  -log(exp(s_ip/τ) / (exp(s_ip/τ) + sum over experts k not chosen of exp(s_ik/τ)))  with p the other
    chosen expert; with more than two chosen, the mean over the others (our extension). Tokens with one chosen expert
    have no pair; none at all gives 0.
    """
    num_experts = similarity_NEE.shape[-1]
    scaled_NEE = similarity_NEE / temperature
    other_EE = ~torch.eye(num_experts, dtype=torch.bool, device=chosen_NE.device)
    positive_NEE = chosen_NE.unsqueeze(-1) & chosen_NE.unsqueeze(-2) & other_EE
    if valid_N is not None:
        positive_NEE = positive_NEE & valid_N.view(-1, 1, 1)
    negatives_NEE = scaled_NEE.masked_fill(chosen_NE.unsqueeze(-2), -torch.inf)
    # logsumexp over no negative at all is -inf, which logaddexp takes; its gradient is kept off by the clamp.
    negatives_NE1 = torch.logsumexp(negatives_NEE, -1, keepdim=True).clamp(min=torch.finfo(scaled_NEE.dtype).min)
    term_NEE = torch.logaddexp(scaled_NEE, negatives_NE1) - scaled_NEE
    count_NE = positive_NEE.sum(-1)
    loss_NE = torch.where(positive_NEE, term_NEE, term_NEE.new_zeros(())).sum(-1) / count_NE.clamp(min=1)
    return loss_NE.sum() / (count_NE > 0).any(-1).sum().clamp(min=1)


def anchor_similarity(hidden_MR: Tensor, b_OR: Tensor) -> Tensor:
    """Return the cosine similarities (M, M) of the vectors ``B h`` of rows h, through the Gram matrix of B."""
    mapped_MR = hidden_MR @ (b_OR.t() @ b_OR)
    inverse_M = _inverse_norm((mapped_MR * hidden_MR).sum(-1))
    return (mapped_MR @ hidden_MR.t()) * inverse_M.unsqueeze(0) * inverse_M.unsqueeze(1)


def expert_similarity(hidden_NEr: Tensor, b_OR: Tensor) -> Tensor:
    """Return each token's cosine similarities (N, E, E) of its experts' outputs, through the Gram matrix of B."""
    _, num_experts, rank = hidden_NEr.shape
    gram_ErEr = (b_OR.t() @ b_OR).view(num_experts, rank, num_experts, rank)
    dot_NEE = torch.einsum("ner,erfs,nfs->nef", hidden_NEr, gram_ErEr, hidden_NEr)
    inverse_NE = _inverse_norm(dot_NEE.diagonal(dim1=-2, dim2=-1))
    return dot_NEE * inverse_NE.unsqueeze(-1) * inverse_NE.unsqueeze(-2)


def expert_contrast(
    hidden_TR: Tensor,
    b_OR: Tensor,
    chosen_TK: Tensor,
    num_experts: int,
    *,
    form: str,
    temperature: float,
    max_tokens: int,
    seed: int,
    mask_T: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of one linear over at most ``max_tokens`` sampled valid tokens.

    ``hidden_TR`` is ``A x`` of all experts, ``b_OR`` the stacked B. Computed in float32, or float64 for float64 input.
    Raises AdapterError for an unknown form.
    """
    index_N, valid_N = sample_tokens(hidden_TR.shape[0], max_tokens, seed, hidden_TR.device, mask_T)
    rank = hidden_TR.shape[-1] // num_experts
    precise = torch.promote_types(hidden_TR.dtype, torch.float32)
    with torch.autocast(device_type=hidden_TR.device.type, enabled=False):
        hidden_NEr = hidden_TR[index_N].to(precise).view(len(index_N), num_experts, rank)
        chosen_NK = chosen_TK[index_N]
        chosen_NE = torch.zeros(hidden_NEr.shape[:2], dtype=torch.bool, device=index_N.device)
        chosen_NE = chosen_NE.scatter(-1, chosen_NK, True)
        if form == "comoe":
            return comoe_contrast(expert_similarity(hidden_NEr, b_OR.to(precise)), chosen_NE, temperature, valid_N)
        if form != "moelora":
            raise AdapterError(f"contrastive form must be 'moelora' or 'comoe', got {form!r}")
        anchors_MR = _one_block_rows(hidden_NEr, chosen_NK)
        similarity_MM = anchor_similarity(anchors_MR, b_OR.to(precise))
        valid_M = valid_N.repeat_interleave(chosen_NK.shape[-1])
        return supervised_contrast(similarity_MM, chosen_NK.flatten(), temperature, valid_M)


def sample_tokens(
    num_tokens: int, max_tokens: int, seed: int, device: torch.device, mask_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``min(max_tokens, num_tokens)`` token indices and which of them are valid.

    A uniform sample without repetition, a function of the seed alone on one kind of device; valid tokens come first,
    so an invalid one is drawn only when they run out. The size never depends on the mask: no device is waited for.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    key_T = torch.rand(num_tokens, generator=generator, device=device)
    if mask_T is not None:
        key_T = torch.where(mask_T, key_T, key_T + 1.0)
    index_N = key_T.topk(min(max_tokens, num_tokens), largest=False).indices
    return index_N, torch.ones_like(index_N, dtype=torch.bool) if mask_T is None else mask_T[index_N]


def _one_block_rows(hidden_NEr: Tensor, chosen_NK: Tensor) -> Tensor:
    """(N*K, R): for each chosen expert of each token, a row holding that expert's block and zeros elsewhere."""
    tokens, num_experts, rank = hidden_NEr.shape
    top_k = chosen_NK.shape[-1]
    own_NKE = torch.nn.functional.one_hot(chosen_NK, num_experts).bool()
    rows = torch.where(own_NKE.unsqueeze(-1), hidden_NEr.unsqueeze(1), hidden_NEr.new_zeros(()))
    return rows.reshape(tokens * top_k, num_experts * rank)


def _inverse_norm(squared: Tensor) -> Tensor:
    return torch.rsqrt(squared.clamp(min=0.0) + NORM_EPS)


def _masked_log_softmax(scores_MM: Tensor, allowed_MM: Tensor) -> Tensor:
    """Row-wise log-softmax over the allowed entries; rows that allow none stay finite, so that gradients do."""
    lowest = torch.finfo(scores_MM.dtype).min
    blocked_MM = torch.where(allowed_MM, scores_MM, scores_MM.new_full((), lowest))
    return blocked_MM - torch.logsumexp(blocked_MM, -1, keepdim=True)
