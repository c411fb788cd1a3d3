"""The card of a run as people read it."""

from __future__ import annotations

from typing import Any

from alphalloc.training.card import read_card
from alphalloc.training.train import train


def test_the_page_has_the_results_of_training_and_evaluation(recipe: Any) -> None:
    result = train(recipe("optim.steps=1", "data.eval_share=0.2"))
    page = (result.folder / "README.md").read_text()
    assert f"| eval_loss | {result.eval['eval_loss']:.6g} |" in page
    assert f"| train_loss | {result.train_loss:.6g} |" in page
    card = read_card(result.folder)
    assert card is not None
    assert card["result"]["eval"] == result.eval
