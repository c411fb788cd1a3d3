"""Scores answer options by their likelihood: the prompt is read once, its cache serves every option.

Prompts are padded on the left, so that the last position is the prompt's last token in every row; options are padded on
the right behind it, where causal attention never looks. Positions count real tokens, so padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TokenIds = Sequence[int]


@torch.no_grad()
def option_scores(
    model: Any, prompts: Sequence[TokenIds], options: Sequence[Sequence[TokenIds]], pad_id: int
) -> list[list[float]]:
    """Return log p(option | prompt) in nats for every option of every prompt: the sum over the option's tokens.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids, at least one each.
        options: for each prompt its options' token ids, at least one each.
        pad_id: any id of the vocabulary; it is masked.

    Only options of two tokens or more need another forward pass: the prompt's last logits hold the first token of all.
    """
    device = next(model.parameters()).device
    longer = any(len(option) > 1 for row in options for option in row)
    ids, mask = pad_left(prompts, pad_id)
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions(mask).to(device),
        logits_to_keep=1,
        use_cache=longer,
    )
    first = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    scores = [[float(first[i, option[0]]) for option in row] for i, row in enumerate(options)]
    if longer:
        _add_rest(model, output.past_key_values, mask, options, scores, pad_id)
    return scores


def pad_left(rows: Sequence[TokenIds], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask [rows, longest], each row's tokens at the right end."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row))
        mask[i, width - len(row) :] = 1
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Return each token's position among the real tokens of its row."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _add_rest(
    model: Any, cache: Any, mask: Tensor, options: Sequence[Sequence[TokenIds]], scores: list[list[float]], pad_id: int
) -> None:
    """Add to ``scores`` what the tokens behind the first contribute."""
    device = next(model.parameters()).device
    pairs = [(i, j) for i, row in enumerate(options) for j, option in enumerate(row) if len(option) > 1]
    rows = torch.tensor([i for i, _ in pairs])
    width = max(len(options[i][j]) for i, j in pairs) - 1
    inputs, targets = torch.full((2, len(pairs), width), pad_id)
    real = torch.zeros((len(pairs), width), dtype=torch.long)
    for n, (i, j) in enumerate(pairs):
        ids = torch.tensor(list(options[i][j]))
        inputs[n, : len(ids) - 1], targets[n, : len(ids) - 1], real[n, : len(ids) - 1] = ids[:-1], ids[1:], 1
    cache.batch_select_indices(rows.to(device))
    full = torch.cat([mask[rows], real], dim=1)
    logits = model(
        input_ids=inputs.to(device),
        attention_mask=full.to(device),
        position_ids=positions(full)[:, -width:].to(device),
        past_key_values=cache,
    ).logits
    found = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets.to(device).unsqueeze(-1)).squeeze(-1)
    for n, (i, j) in enumerate(pairs):
        scores[i][j] += float(found[n, : int(real[n].sum())].sum())
