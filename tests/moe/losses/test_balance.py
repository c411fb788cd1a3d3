"""Balance losses and z-loss: published code's values, the naive re-derivation, closed-form gradients, padding."""

from __future__ import annotations

import moe_losses
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.errors import AdapterError
from alphalloc.moe.losses.balance import mola_balance, router_loss_gradient, router_z_loss, switch_balance

A = [[2.0, 1, 0], [0, 2, 1], [1, 0, 2], [3, 0, 0]]
COLLAPSED = [[10.0, 0, 0, 0]] * 5

# What MoLA's released code returns for these logits (float32).
MOLA_VALUES = [
    ([A], [2], 1.0270051956176758),
    ([A], [1], 1.108020544052124),
    ([COLLAPSED], [1], 3.999454975128174),
    ([[[0.0] * 4] * 8], [2], 1.0),
    ([[[5.0]] * 3], [1], 1.0),
    ([A, COLLAPSED], [2, 1], 5.02646017074585),
    ([[[1.0, 2], [3, -1]]], [2], 1.0),
]


@pytest.mark.parametrize(("blocks", "top_k", "expected"), MOLA_VALUES)
def test_mola_balance_equals_the_released_code(blocks, top_k, expected):
    logits = [torch.tensor(block) for block in blocks]
    assert mola_balance(logits, top_k, [None] * len(logits)).item() == pytest.approx(expected, abs=1e-5)


def test_no_block_and_no_token_give_zero():
    assert mola_balance([], [], []).item() == 0.0
    logits = torch.zeros(3, 4, requires_grad=True)
    for loss in (switch_balance(logits, 2, torch.zeros(3, dtype=torch.bool)), switch_balance(logits[:0], 2)):
        loss.backward()
        assert loss.item() == 0.0
    assert not logits.grad.any()
    assert router_z_loss(logits[:0]).item() == 0.0


@st.composite
def routers(draw):
    num_experts = draw(st.integers(1, 6))
    tokens, top_k = draw(st.integers(1, 12)), draw(st.integers(1, num_experts))
    logits = torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6))))
    mask = draw(st.none() | st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    return logits.double() * 3, top_k, None if mask is None else torch.tensor(mask)


@given(routers())
def test_losses_equal_the_naive_ones(router):
    logits, top_k, mask = router
    kept = None if mask is None else mask.tolist()
    expected = moe_losses.balance(logits.tolist(), top_k, kept)
    assert switch_balance(logits, top_k, mask).item() == pytest.approx(expected, abs=1e-12)
    assert router_z_loss(logits, mask).item() == pytest.approx(moe_losses.z_loss(logits.tolist(), kept), abs=1e-11)


@given(routers(), st.floats(0, 2), st.floats(0, 2))
def test_closed_form_gradient_equals_autograd(router, balance, z_loss):
    logits, top_k, mask = router
    logits.requires_grad_()
    loss = balance * switch_balance(logits, top_k, mask) + z_loss * router_z_loss(logits, mask)
    (expected,) = torch.autograd.grad(loss, logits)
    chosen = logits.detach().topk(top_k).indices
    actual = router_loss_gradient(logits.detach(), chosen, mask, balance, z_loss)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)


@given(routers())
def test_masked_tokens_are_as_good_as_absent(router):
    logits, top_k, mask = router
    mask = torch.ones(len(logits), dtype=torch.bool) if mask is None else mask
    garbage = torch.full((2, logits.shape[-1]), float("nan"), dtype=logits.dtype)
    padded = torch.cat([logits, garbage])
    padded_mask = torch.cat([mask, torch.zeros(2, dtype=torch.bool)])
    torch.testing.assert_close(switch_balance(padded, top_k, padded_mask), switch_balance(logits[mask], top_k))
    torch.testing.assert_close(router_z_loss(padded, padded_mask), router_z_loss(logits[mask]))
    gradient = router_loss_gradient(padded, padded.nan_to_num().topk(top_k).indices, padded_mask, 1.0, 1.0)
    assert gradient.isfinite().all()
    assert not gradient[~padded_mask].any()


def test_choosing_every_expert_is_constant():
    logits = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    loss = switch_balance(logits, 3)
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_one_number_a_block_is_asked_for():
    with pytest.raises(AdapterError, match="one top_k and one mask a block: got 1, 2, 1"):
        mola_balance([torch.zeros(2, 2)], [1, 1], [None])
