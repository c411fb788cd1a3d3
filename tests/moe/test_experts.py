"""The stacked experts: gating by selection, and the fused sum."""

from __future__ import annotations

import pytest
import torch

from alphalloc.moe.experts import ExpertsB, gate_hidden
from alphalloc.moe.router import route


def routed(dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(6, 12, dtype=dtype, requires_grad=True)
    logits = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    return hidden, logits


def test_gate_multiplies_blocks_and_gradients_are_exact():
    hidden, logits = routed()
    routing = route(logits, 2, normalize=True)
    gated = gate_hidden(hidden, routing.chosen_TK, routing.weights_TK, 4)
    expected = hidden * routing.gate_TE.repeat_interleave(3, -1)
    torch.testing.assert_close(gated, expected)
    weight = torch.randn_like(gated)
    ours = torch.autograd.grad((gated * weight).sum(), (hidden, logits), retain_graph=True)
    for actual, reference in zip(ours, torch.autograd.grad((expected * weight).sum(), (hidden, logits)), strict=True):
        torch.testing.assert_close(actual, reference)


def test_gradcheck():
    hidden, logits = routed()
    chosen = logits.detach().topk(2).indices

    def function(hidden_TR, weights_TK):
        return gate_hidden(hidden_TR, chosen, weights_TK, 4)

    weights = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (hidden, weights))


def test_a_second_derivative_is_refused_not_wrong():
    hidden, logits = routed()
    routing = route(logits, 2, normalize=True)
    gated = gate_hidden(hidden, routing.chosen_TK, routing.weights_TK, 4)
    (first,) = torch.autograd.grad(gated.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_idle_blocks_are_exactly_zero_even_when_infinite():
    hidden = torch.tensor([[1.0, 2.0, float("inf"), float("nan")]], requires_grad=True)
    weights = torch.tensor([[0.5]], requires_grad=True)
    gated = gate_hidden(hidden, torch.tensor([[0]]), weights, 2)
    gated.sum().backward()
    assert gated.tolist() == [[0.5, 1.0, 0.0, 0.0]]
    assert hidden.grad.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert weights.grad.tolist() == [[3.0]]


def test_fused_sum_leaves_the_base_alone():
    experts = ExpertsB(4, 3, bias=False)
    hidden, base = torch.randn(5, 4), torch.randn(5, 3)
    kept = base.clone()
    torch.testing.assert_close(experts(hidden, base, 0.5), base + 0.5 * hidden @ experts.weight.T)
    assert torch.equal(base, kept)
