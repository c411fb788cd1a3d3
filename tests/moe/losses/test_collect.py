"""Collected router logits: MoLA's pooled balance loss, right or refused under every checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from moe_blocks import CHECKPOINTING, Blocks, assert_close, make_blocks, tokens

from alphalloc.errors import AdapterError
from alphalloc.moe.context import RoutingContext
from alphalloc.moe.losses import AuxLosses, RouterLogits, attach_loss, mola_balance

EXPERTS = [(4, 2), (3, 3), (1, 1), (5, 1)]
MOLA = AuxLosses(balance="mola", balance_coefficient=0.3)
MASK = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


def collect(model: Blocks) -> tuple[RoutingContext, torch.Tensor]:
    context = model.attach(RoutingContext(MOLA))
    context.begin_forward(MASK)
    return context, model(tokens(3, 6))


def test_pools_the_linears_of_a_block_and_sums_over_blocks():
    context, _ = collect(make_blocks(EXPERTS))
    entries = context.logits.collected
    assert [(e.block, e.top_k, e.logits_TE.shape[-1]) for e in entries] == [
        (0, 2, 4),
        (0, 2, 4),
        (1, 3, 3),
        (1, 3, 3),
        (3, 1, 5),
        (3, 1, 5),
    ]
    pooled = [torch.cat([e.logits_TE for e in entries if e.block == block]) for block in (0, 1, 3)]
    torch.testing.assert_close(context.logits.mola_balance(), mola_balance(pooled, [2, 3, 1], [None] * 3))
    mask_T = torch.cat([MASK.flatten() != 0] * 2)
    torch.testing.assert_close(context.logits.mola_balance(masked=True), mola_balance(pooled, [2, 3, 1], [mask_T] * 3))


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_gradient_is_the_explicit_one_and_nothing_is_collected_twice(checkpointing):
    plain = make_blocks(EXPERTS)
    context, _ = collect(plain)
    (0.3 * context.logits.mola_balance()).backward()
    expected = plain.gradients()
    model = make_blocks(EXPERTS, checkpointing=checkpointing)
    context, output = collect(model)
    attach_loss((output * 0.0).sum(), 0.3 * context.logits.mola_balance(), torch.ones(())).backward()
    assert len(context.logits.collected) == 6
    gradients = model.gradients()
    assert_close({name: gradients[name] for name in expected}, expected)
    assert not any(g.any() for name, g in gradients.items() if name not in expected)


def test_reentrant_checkpointing_is_refused_not_ignored():
    context, _ = collect(make_blocks(EXPERTS, checkpointing="reentrant"))
    with pytest.raises(AdapterError, match="use_reentrant=False"):
        context.logits.mola_balance()


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_frozen_routers_and_forwards_without_gradients_are_no_error(checkpointing):
    model = make_blocks(EXPERTS, checkpointing=checkpointing)
    with torch.no_grad():
        context, _ = collect(model)
        assert context.logits.mola_balance().isfinite()
    model = make_blocks(EXPERTS, checkpointing=checkpointing).requires_grad_(False)
    context, _ = collect(model)
    assert context.logits.mola_balance().isfinite()


def test_evaluation_collects_nothing_and_gives_zero():
    context, _ = collect(make_blocks(EXPERTS).eval())
    assert context.logits.collected == []
    assert context.logits.mola_balance().item() == 0.0


def test_a_new_forward_starts_anew():
    model = make_blocks(EXPERTS)
    context, _ = collect(model)
    context.begin_forward(MASK)
    model(tokens(3, 6))
    assert len(context.logits.collected) == 6


def test_a_model_can_be_copied_after_a_forward():
    model = make_blocks(EXPERTS)
    collect(model)
    twin = copy.deepcopy(model)
    assert twin.blocks[0][0].adapter.routing_observer.context.logits.collected == []


def test_linears_of_one_block_must_match():
    logits = RouterLogits()
    logits.add(0, torch.zeros(2, 4), 2, None, trained=False)
    logits.add(0, torch.zeros(2, 5), 2, None, trained=False)
    with pytest.raises(AdapterError, match=r"block 0 mixes .*\(4, 2\), \(5, 2\)"):
        logits.mola_balance()
