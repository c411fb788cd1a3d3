"""Routing: exact cases, laws, precision."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.errors import AdapterError
from alphalloc.moe.router import Router, resolve_normalize, route


def test_exact_gate():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    normalised, raw = route(logits, 2, normalize=True), route(logits, 2, normalize=False)
    assert normalised.chosen_TK.tolist() == raw.chosen_TK.tolist() == [[0, 1]]
    torch.testing.assert_close(normalised.gate_TE, torch.tensor([[0.625, 0.375, 0.0]]))
    torch.testing.assert_close(raw.gate_TE, torch.tensor([[0.5, 0.3, 0.0]]))
    assert normalised.chosen_TE.tolist() == [[True, True, False]]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6))
def test_equals_softmax_then_topk_then_division(num_experts, top_k, seed):
    top_k = min(top_k, num_experts)
    logits = torch.randn(9, num_experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 4
    weights, chosen = logits.softmax(-1).topk(top_k)
    routing = route(logits, top_k, normalize=True)
    assert torch.equal(routing.chosen_TK, chosen)
    torch.testing.assert_close(routing.weights_TK, weights / weights.sum(-1, keepdim=True), atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(routing.gate_TE.sum(-1), torch.ones(9, dtype=torch.float64))
    assert ((routing.gate_TE > 0) == routing.chosen_TE).all()


def test_probabilities_that_underflow_still_rank_and_weigh():
    routing = route(torch.tensor([[500.0, 10.0, 0.0, 20.0]]), 2, normalize=True)
    assert routing.chosen_TK.tolist() == [[0, 3]]
    assert routing.weights_TK.sum().item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_are_float32_whatever_comes_in(dtype):
    router = Router(16, 4)
    x = torch.randn(5, 16).to(dtype)
    exact = x.float() @ router.weight.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(router(x), exact)
    torch.testing.assert_close(router(x), exact)
    assert router.to(dtype)(x).dtype == torch.float32
    assert router.double()(x.double()).dtype == torch.float64


def test_when_weights_are_divided_by_their_sum():
    assert resolve_normalize("auto", 4, 2)
    assert not resolve_normalize("auto", 4, 1)
    assert resolve_normalize("auto", 1, 1)
    assert not resolve_normalize("never", 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_normalize("always", 4, 2)
        assert resolve_normalize("always", 1, 1)
    with pytest.warns(UserWarning, match="top_k=1 makes the gate the constant 1"):
        assert resolve_normalize("always", 4, 1)
    with pytest.raises(AdapterError, match="got 'yes'"):
        resolve_normalize("yes", 4, 2)
