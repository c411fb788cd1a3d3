"""The order of the examples, and batches that give the loss of the same rows padded on the right with all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.training.batches import CHUNK, IGNORED, Collator, EpochSampler
from alphalloc.training.head import whole_head
from alphalloc.training.tokens import TokenRow

ROWS = [
    TokenRow((5, 6, 7, 8, 9), (False, False, False, True, True)),
    TokenRow((11, 12, 2), (False, True, True)),
    TokenRow((21, 22, 23, 24), (False, False, False, True)),
]


def test_labels_and_logits_cover_the_answers_only(tiny: Any) -> None:
    batch = Collator(0, tiny.llama())(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [0, 0, 11, 12, 2], [0, 21, 22, 23, 24]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [0, 0, 1, 2, 3]]
    assert batch["logits_to_keep"] == 3  # the last three positions: two predict something, the end comes with them
    assert batch["labels"].tolist() == [[IGNORED, 8, 9], [IGNORED, 12, 2], [IGNORED, IGNORED, 24]]
    assert "position_ids" not in Collator(0, tiny.llama())(ROWS[:1])


@pytest.mark.parametrize("prompts", ["not learnt", "learnt too"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_loss_is_that_of_the_whole_rows(family: str, prompts: str, tiny: Any) -> None:
    model = getattr(tiny, family)()
    rows = ROWS if prompts == "not learnt" else [TokenRow(row.input_ids, (True,) * len(row)) for row in ROWS]
    with torch.no_grad(), whole_head(model):
        found = model(**Collator(0, model)(rows)).loss
        parts, count = 0.0, 0
        for row in rows:  # each alone, no padding at all
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            for position, learnt in enumerate(row.learnt[1:]):
                if learnt:
                    parts += float(-logits[position].log_softmax(-1)[row.input_ids[position + 1]])
                    count += 1
    assert float(found) == pytest.approx(parts / count, abs=1e-5)


def test_a_model_that_always_gives_all_logits_gets_all_labels(tiny: Any) -> None:
    class Whole(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> None: ...

    batch = Collator(0, Whole())(ROWS)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert batch["labels"].shape == batch["input_ids"].shape


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=400)


@given(LENGTHS, st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_an_epoch_is_a_permutation_of_seed_and_epoch(
    lengths: list[int], batch: int, by_length: bool, seed: int, epoch: int
) -> None:
    sampler = EpochSampler(lengths, batch, by_length=by_length, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(sampler)  # iterating draws nothing from anywhere
    again = EpochSampler(lengths, batch, by_length=by_length, seed=seed)
    again.set_epoch(epoch)
    assert order == list(again)


def test_epochs_and_seeds_differ() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler([1] * 100, 4, by_length=True, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3


@given(LENGTHS, st.integers(1, 9))
def test_batches_of_similar_length_pad_less_than_any_random_order(lengths: list[int], batch: int) -> None:
    def padding(by_length: bool) -> int:
        order = list(EpochSampler(lengths, batch, by_length=by_length, seed=0))
        batches = [[lengths[i] for i in order[j : j + batch]] for j in range(0, len(order), batch)]
        return sum(max(b) * len(b) - sum(b) for b in batches)

    if len(lengths) <= batch * CHUNK and len(lengths) % batch == 0:
        assert padding(True) <= padding(False)
