"""The Trainer as recipes use it: the loss of an evaluation does not depend on its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alphalloc.training.batches import Collator, RowDataset
from alphalloc.training.head import whole_head
from alphalloc.training.tokens import TokenRow
from alphalloc.training.trainer import RecipeTrainer, training_arguments

# Rows of 1 to 9 learnt tokens: means over batches differ from the mean over tokens.
ROWS = [
    TokenRow(tuple(range(3, 5 + learnt)), (False, False) + (True,) * learnt)
    for learnt in (1, 9, 2, 8, 1, 1, 7, 3, 2, 1)
]


def token_mean(model: Any) -> float:
    """The loss of every row alone, weighted by what is learnt of it."""
    with torch.no_grad():
        losses = [
            float(model(input_ids=ids, labels=torch.where(torch.tensor([row.learnt]), ids, -100)).loss)
            * sum(row.learnt)
            for row in ROWS
            for ids in [torch.tensor([row.input_ids])]
        ]
    return sum(losses) / sum(sum(row.learnt) for row in ROWS)


@pytest.mark.parametrize("batch", [1, 3, 4, 20])
def test_the_evaluations_loss_is_the_mean_over_learnt_tokens(
    batch: int, recipe: Any, tiny: Any, tmp_path: Path
) -> None:
    model = tiny.llama().eval()
    trainer = RecipeTrainer(
        model=model,
        args=training_arguments(recipe(f"run.eval_batch_size={batch}"), tmp_path, evaluates=True),
        eval_dataset=RowDataset(ROWS),
        data_collator=Collator(0, model),
        group_batch=4,
        by_length=False,
    )
    for _ in range(2):  # the second evaluation starts from nothing
        with whole_head(model):
            assert trainer.evaluate()["eval_loss"] == pytest.approx(token_mean(model), abs=1e-6)
