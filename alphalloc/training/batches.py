"""From token rows to batches: the order of the examples, and padding on the left with no logits that nobody needs.

On the left, because the tokens that are learnt then stand at the end of every row: the model is asked for the logits
of the last few positions only (``logits_to_keep``), and the head, half of a small model's work on short prompts,
runs on the answers alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from alphalloc.training.tokens import TokenRow

IGNORED = -100  # the label that the loss of transformers passes over
CHUNK = 50  # batches among which examples are sorted by length, as transformers' own length grouping


class RowDataset(Dataset[TokenRow]):
    """The token rows as torch's data loader reads them."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]


class EpochSampler(Sampler[int]):
    """The order of one epoch: shuffled by (seed, epoch) alone, so that a resumed run goes on in the same order.

    With ``by_length`` examples of similar length share a batch: the shuffled order is cut into chunks of 50 batches,
    each sorted by length, and the batches are shuffled again.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, by_length: bool, seed: int) -> None:
        self.lengths = tuple(lengths)
        self.batch_size = batch_size
        self.by_length = by_length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.by_length:
            return iter(order)
        size = self.batch_size * CHUNK
        chunks = (sorted(order[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(order), size))
        grouped = [index for chunk in chunks for index in chunk]
        whole = len(grouped) // self.batch_size
        batches = [grouped[i * self.batch_size : (i + 1) * self.batch_size] for i in range(whole)]
        shuffled = [batches[i] for i in torch.randperm(whole, generator=generator).tolist()]
        rest = grouped[whole * self.batch_size :]  # a short batch comes last, where a loader expects it
        return iter([index for batch in [*shuffled, rest] for index in batch])


class Collator:
    """Pads a batch on the left; labels, and the logits asked for, cover the positions that can be learnt only."""

    def __init__(self, pad_id: int, model: nn.Module) -> None:
        accepted = set(inspect.signature(model.forward).parameters)
        self.pad_id = pad_id
        self.keeps_logits = "logits_to_keep" in accepted
        self.positions = "position_ids" in accepted

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Return input_ids, labels and, where the batch or the model needs them, mask, positions, logits_to_keep."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            found = torch.tensor(row.input_ids)
            ids[i, width - len(row) :] = found
            mask[i, width - len(row) :] = 1
            labels[i, width - len(row) :] = torch.where(torch.tensor(row.learnt), found, IGNORED)
            labels[i, width - len(row)] = IGNORED  # nothing of the row stands before it; padding would predict it
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.positions and bool((mask == 0).any()):
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return batch | self._labels(labels)

    def _labels(self, labels: Tensor) -> dict[str, Any]:
        if not self.keeps_logits:
            return {"labels": labels}
        learnt = (labels[:, 1:] != IGNORED).any(0).nonzero()
        first = int(learnt[0]) if len(learnt) else labels.shape[1] - 1  # the position that predicts the first one
        keep = labels.shape[1] - first
        return {"labels": labels[:, first:].contiguous(), "logits_to_keep": keep}
