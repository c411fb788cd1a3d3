"""Likelihoods of options: against one forward pass an option, whatever the batch and its padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphalloc.training.head import whole_head
from alphalloc.training.likelihood import option_scores, pad_left, positions

IDS = st.integers(3, 63)
PROMPT = st.lists(IDS, min_size=1, max_size=8)
OPTIONS = st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=2, max_size=4)


@torch.no_grad()
def naive(model, prompt, option):
    """Log-likelihood of ``option`` from one unpadded forward pass over the whole text."""
    logits = model(input_ids=torch.tensor([[*prompt, *option]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(option))


@pytest.fixture(scope="module")
def model(tiny):
    """A tiny Llama with a MoE-LoRA adapter that changes it."""
    import peft

    return peft.get_peft_model(tiny.llama(), tiny.moe_config()).eval()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(PROMPT, OPTIONS), min_size=1, max_size=5))
def test_batches_score_as_single_forwards(model, rows):
    prompts, options = [p for p, _ in rows], [o for _, o in rows]
    found = option_scores(model, prompts, options, pad_id=0)
    for i, (prompt, row) in enumerate(rows):
        assert found[i] == pytest.approx([naive(model, prompt, option) for option in row], abs=2e-4)


def test_positions_are_absolute_where_a_model_learns_them(tiny):
    """GPT-2 adds an embedding for each position: padding on the left must not shift it."""
    model = tiny.gpt2()
    prompts, options = [[5], [9, 8, 7, 6, 5]], [[[4], [3, 5, 7]], [[4, 4], [3]]]
    found = option_scores(model, prompts, options, pad_id=0)
    for i, prompt in enumerate(prompts):
        assert found[i] == pytest.approx([naive(model, prompt, option) for option in options[i]], abs=2e-4)


def test_padding_stands_on_the_left():
    ids, mask = pad_left([[7, 8, 9], [5]], pad_id=0)
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_a_whole_head_gives_the_same_logits_in_one_product(tiny):
    model, ids = tiny.llama(), tiny.tokens(batch=4)
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: seen.append(args[0].is_contiguous()))
    with torch.no_grad():
        before = model(input_ids=ids, logits_to_keep=2).logits
        with whole_head(model):
            within = model(input_ids=ids, logits_to_keep=2).logits
        model(input_ids=ids, logits_to_keep=2)
    handle.remove()
    assert torch.allclose(before, within, atol=1e-6)
    assert seen == [False, True, False]
