"""Routing statistics: exact values, padding, once per forward, nothing fetched from the device while recording."""

from __future__ import annotations

import math

import pytest
import torch
from moe_blocks import CHECKPOINTING, make_blocks, tokens

from alphalloc.moe.context import RoutingContext
from alphalloc.moe.losses import AuxLosses, switch_balance
from alphalloc.moe.router import route
from alphalloc.moe.statistics import RoutingStatistics, mean_balance

MASK = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


def recorded(logits: torch.Tensor, top_k: int, mask: torch.Tensor | None = None):
    statistics = RoutingStatistics()
    statistics.record("q", route(logits, top_k, normalize=True), mask)
    return statistics.summary()[0]


def test_exact_counts():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25, 1e-9], [0.25, 0.5, 0.25, 1e-9]]))
    layer = recorded(logits, 1)
    assert (layer.num_experts, layer.top_k, layer.tokens) == (4, 1, 2)
    assert layer.load == (0.5, 0.5, 0.0, 0.0)
    assert layer.probability == pytest.approx((0.375, 0.375, 0.25, 0.0), abs=1e-6)
    assert layer.entropy == pytest.approx(math.log(2) / math.log(4))
    assert layer.token_entropy == pytest.approx(1.5 * math.log(2) / math.log(4), abs=1e-5)
    assert layer.dead_experts == (2, 3)


def test_extremes_of_entropy():
    assert recorded(torch.eye(4) * 50, 1).entropy == pytest.approx(1.0)
    collapsed = recorded(torch.tensor([[50.0, 0, 0, 0]] * 3), 1)
    assert collapsed.entropy == 0.0
    assert collapsed.token_entropy == pytest.approx(0.0, abs=1e-6)
    assert recorded(torch.zeros(3, 4), 4).token_entropy == pytest.approx(1.0)


def test_an_expert_is_dead_below_a_hundredth_of_its_share():
    logits = torch.zeros(1000, 2)
    logits[:, 0] = 1.0
    logits[:4, 1] = 2.0  # 0.4 % of the picks; the fair share is 50 %
    assert recorded(logits, 1).dead_experts == (1,)
    logits[:6, 1] = 2.0  # 0.6 %
    assert recorded(logits, 1).dead_experts == ()


def test_padding_does_not_count_whatever_it_holds():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((3, 4), float("nan"))])
    mask = torch.tensor([True] * 5 + [False] * 3)
    assert recorded(padded, 2, mask) == recorded(logits, 2)


def test_balance_is_the_switch_loss_and_its_mean_skips_layers_that_choose_all():
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    statistics = RoutingStatistics()
    statistics.record("q", route(logits, 2, normalize=True), None)
    statistics.record("k", route(logits * 3, 1, normalize=True), None)
    statistics.record("v", route(logits, 4, normalize=True), None)
    layers = statistics.summary()
    expected = [switch_balance(logits, 2).item(), switch_balance(logits * 3, 1).item()]
    assert [layer.balance for layer in layers[:2]] == pytest.approx(expected, rel=1e-5)
    assert mean_balance(layers) == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert mean_balance(layers[2:]) is None


def test_several_forwards_add_up_and_reset_forgets():
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    statistics = RoutingStatistics()
    for part in (logits[:10], logits[10:]):
        statistics.record("q", route(part, 2, normalize=True), None)
    whole = recorded(logits, 2)
    assert statistics.summary()[0].load == whole.load
    assert statistics.summary()[0].token_entropy == pytest.approx(whole.token_entropy, rel=1e-5)
    statistics.reset()
    assert statistics.summary() == ()


def test_a_linear_that_saw_no_token_is_left_out():
    statistics = RoutingStatistics()
    statistics.expect("q", 4, 2, torch.device("cpu"))
    statistics.record("q", route(torch.zeros(0, 4), 2, normalize=True), None)
    assert statistics.summary() == ()
    assert mean_balance(()) is None


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("training", [True, False])
def test_a_forward_is_counted_once_though_checkpointing_runs_it_twice(checkpointing, training):
    model = make_blocks([(4, 2), (1, 1), (3, 1)], checkpointing=checkpointing).train(training)
    context = model.attach(RoutingContext(AuxLosses(balance="switch"), RoutingStatistics()))
    for _ in range(2):
        context.begin_forward(MASK)
        model(tokens(3, 6)).sum().backward()
    layers = context.statistics.summary()
    assert [layer.name for layer in layers] == ["blocks.0.0", "blocks.0.2", "blocks.2.0", "blocks.2.2"]
    assert {layer.tokens for layer in layers} == {2 * int(MASK.sum())}


def test_what_is_recorded_is_detached():
    model = make_blocks([(4, 2)])
    context = model.attach(RoutingContext(statistics=RoutingStatistics()))
    context.begin_forward()
    model(tokens(3, 6))
    counts = context.statistics._counts["blocks.0.0"]
    assert counts.tokens.item() == 18
    assert not any(tensor.requires_grad for tensor in counts.tensors())


def test_recording_never_waits_for_the_device():
    # On the meta device there are no values: an .item(), .tolist() or a shape that depends on one would raise.
    logits = torch.randn(6, 4, device="meta")
    statistics = RoutingStatistics()
    statistics.record("q", route(logits, 2, normalize=True), torch.ones(6, dtype=torch.bool, device="meta"))
    with pytest.raises(Exception, match="meta"):
        statistics.summary()
