"""Answers in generated text: the papers' patterns, and generation from padded batches."""

from __future__ import annotations

import pytest
import torch

from alphalloc.errors import TrainingError
from alphalloc.training.generation import PATTERNS, check_pattern, extract, generate_texts, pattern_for, same


@pytest.mark.parametrize(
    ("output", "label", "name"),
    [
        ("Answer: acceptable.", "acceptable", "words"),
        ("Answer: not entailment.", "not entailment", "words"),
        ("Answer: The answer is B.", "B", "letter"),
        ("the correct answer is true", "true", "correct"),
    ],
)
def test_the_papers_wordings_are_read(output, label, name):
    assert pattern_for(output, label) == PATTERNS[name]
    assert extract(output + " And so on.", PATTERNS[name]) is not None
    assert same(extract(output, PATTERNS[name]), label)


def test_a_bare_label_needs_no_pattern():
    assert pattern_for("w5", "w5") is None
    assert extract("\n  w5  \nmore", None) == "w5"
    assert extract(" \n ", None) is None


def test_a_pattern_without_a_match_finds_nothing():
    assert extract("I do not know", PATTERNS["letter"]) is None
    assert extract("yes", "yes|no") == "yes"


def test_names_and_expressions_are_patterns_and_other_texts_are_not():
    assert check_pattern("letter") == PATTERNS["letter"]
    assert check_pattern(r"(\d+)") == r"(\d+)"
    with pytest.raises(TrainingError, match="expected a regular expression or one of letter"):
        check_pattern("(")


def test_case_spaces_and_a_final_stop_do_not_count():
    assert same("Not  Entailment.", "not entailment")
    assert not same("entailment", "not entailment")


def test_a_padded_batch_generates_as_single_prompts_do(tiny, tokenizer):
    model = tiny.llama()
    prompts = [[5], [9, 8, 7, 6, 5, 4], [12, 11, 10]]
    together = generate_texts(model, tokenizer, prompts, max_new_tokens=6)
    alone = [generate_texts(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
    assert together[1] == tokenizer.decode(greedy(model, prompts[1], 6), skip_special_tokens=True)


@torch.no_grad()
def greedy(model, prompt, steps, end=2):
    """One token at a time, without a cache."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]
