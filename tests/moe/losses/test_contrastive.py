"""Contrastive losses: exact values, the naive re-derivation, Gram against direct form, degenerate input, sampling."""

from __future__ import annotations

import math

import moe_losses
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alphalloc.errors import AdapterError
from alphalloc.moe.losses.contrastive import (
    anchor_similarity,
    comoe_contrast,
    expert_contrast,
    sample_tokens,
    supervised_contrast,
)

ROWS = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-1, 0], [0.6, -0.8], [0, -1]], dtype=torch.float64)
IDENTITY = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 1.5721082826), (1.0, 1.1072064030)])
def test_supervised_contrast_exactly(temperature, expected):
    loss = supervised_contrast(anchor_similarity(ROWS, IDENTITY), torch.tensor([0, 0, 1, 1, 2, 2]), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_supervised_contrast_of_equal_vectors_is_log_3():
    loss = supervised_contrast(anchor_similarity(ROWS[[0, 0, 0, 0]], IDENTITY), torch.tensor([0, 0, 1, 1]), 1.0)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-9)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.1825124916), (0.1, 0.1272635318)])
def test_comoe_exactly(temperature, expected):
    rows = ROWS[:4]
    loss = comoe_contrast((rows @ rows.T)[None], torch.tensor([[True, True, False, False]]), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("form", ["moelora", "comoe"])
def test_unnormalised_outputs_are_normalised(form):
    # Two experts of rank 2 a token; scaling one token's hidden vector changes no direction.
    torch.manual_seed(0)
    hidden, b = torch.randn(5, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    chosen = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 1], [2, 1]])
    scaled = hidden * torch.tensor([1.0, 3, 0.2, 7, 50], dtype=torch.float64).unsqueeze(-1)
    assert contrast(form, scaled, b, chosen) == pytest.approx(contrast(form, hidden, b, chosen).item(), abs=1e-9)


def contrast(form: str, hidden: Tensor, b: Tensor, chosen: Tensor, **change) -> Tensor:
    settings = {"form": form, "temperature": 0.5, "max_tokens": 64, "seed": 0, **change}
    return expert_contrast(hidden, b, chosen, 3, **settings)


@given(
    tokens=st.integers(1, 9),
    num_experts=st.integers(2, 5),
    top_k=st.integers(1, 5),
    rank=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.07, 0.5, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=60)
def test_gram_form_equals_the_direct_form(tokens, num_experts, top_k, rank, seed, temperature, scale):
    top_k = min(top_k, num_experts)
    generator = torch.Generator().manual_seed(seed)
    hidden, b = (
        torch.randn(n, num_experts * rank, dtype=torch.float64, generator=generator) * s
        for n, s in ((tokens, scale), (6, 1.0))
    )
    chosen = torch.rand(tokens, num_experts, generator=generator).topk(top_k).indices
    h, bs = hidden.view(tokens, num_experts, rank), b.view(6, num_experts, rank)
    outputs = torch.einsum("oer,ter->teo", bs, h)
    common = {"temperature": temperature, "max_tokens": 64, "seed": 0}
    ours = expert_contrast(hidden, b, chosen, num_experts, form="moelora", **common)
    rows = [outputs[t, e].tolist() for t in range(tokens) for e in chosen[t].tolist()]
    assert ours.item() == pytest.approx(
        moe_losses.supervised_contrast(rows, chosen.flatten().tolist(), temperature), abs=1e-9
    )
    ours = expert_contrast(hidden, b, chosen, num_experts, form="comoe", **common)
    assert ours.item() == pytest.approx(moe_losses.comoe(outputs.tolist(), chosen.tolist(), temperature), abs=1e-9)


@pytest.mark.parametrize("form", ["moelora", "comoe"])
def test_gram_gradients_equal_the_direct_forms(form):
    torch.manual_seed(1)
    hidden = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    chosen = torch.rand(8, 3).topk(2).indices
    ours = torch.autograd.grad(contrast(form, hidden, b, chosen), (hidden, b))
    outputs_TEO = torch.einsum("oer,ter->teo", b.view(7, 3, 2), hidden.view(8, 3, 2))
    unit_TEO = outputs_TEO / (outputs_TEO.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    if form == "comoe":
        mask = torch.zeros(8, 3, dtype=torch.bool).scatter(-1, chosen, True)
        direct = comoe_contrast(unit_TEO @ unit_TEO.transpose(1, 2), mask, 0.5)
    else:
        rows = unit_TEO.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 7)).view(16, 7)
        direct = supervised_contrast(rows @ rows.T, chosen.flatten(), 0.5)
    for actual, expected in zip(ours, torch.autograd.grad(direct, (hidden, b)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("form", ["moelora", "comoe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_b_has_finite_gradients(form, dtype):
    hidden = torch.randn(5, 6).to(dtype).requires_grad_()
    b = torch.zeros(7, 6, dtype=dtype, requires_grad=True)
    loss = contrast(form, hidden, b, torch.tensor([[0, 1]] * 5), temperature=0.07)
    loss.backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_no_anchor_gives_zero_and_a_zero_gradient():
    hidden = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool)
    losses = [
        contrast("moelora", hidden, b, torch.tensor([[0], [1], [2]])),  # nobody shares an expert
        contrast("comoe", hidden, b, torch.tensor([[0], [1], [2]])),  # nobody has a pair
        contrast("comoe", hidden, b, torch.tensor([[0, 1, 2]] * 3)),  # nobody is idle
        contrast("moelora", hidden, b, torch.tensor([[0, 1]] * 3), mask_T=nothing),
        contrast("comoe", hidden, b, torch.tensor([[0, 1]] * 3), mask_T=nothing),
        contrast("moelora", hidden[:0], b, torch.zeros(0, 2, dtype=torch.long)),
        contrast("comoe", hidden[:0], b, torch.zeros(0, 2, dtype=torch.long)),
    ]
    for loss in losses:
        loss.backward()
        assert loss.item() == 0.0
    assert not hidden.grad.any()
    assert not b.grad.any()


@pytest.mark.parametrize("form", ["moelora", "comoe"])
def test_masked_tokens_are_as_good_as_absent(form):
    torch.manual_seed(2)
    hidden, b = torch.randn(6, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    chosen = torch.rand(6, 3).topk(2).indices
    mask = torch.tensor([True, False, True, True, False, True])
    masked = contrast(form, hidden, b, chosen, mask_T=mask)
    assert masked.item() == pytest.approx(contrast(form, hidden[mask], b, chosen[mask]).item(), abs=1e-12)


def test_sample_is_capped_valid_first_and_a_function_of_the_seed():
    mask = torch.arange(100) % 10 == 0
    index, valid = sample_tokens(100, 16, 3, torch.device("cpu"), mask)
    assert len(index) == len(set(index.tolist())) == 16
    assert valid.sum() == 10
    assert (index[valid] % 10 == 0).all()
    assert torch.equal(index, sample_tokens(100, 16, 3, torch.device("cpu"), mask)[0])
    assert not torch.equal(index, sample_tokens(100, 16, 4, torch.device("cpu"), mask)[0])
    assert sample_tokens(5, 16, 0, torch.device("cpu"))[0].sort().values.tolist() == [0, 1, 2, 3, 4]


def test_sampling_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    sample_tokens(10, 4, 0, torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state())


def test_an_unknown_form_is_refused():
    with pytest.raises(AdapterError, match="'moelora' or 'comoe', got 'infonce'"):
        contrast("infonce", torch.zeros(2, 6), torch.zeros(7, 6), torch.tensor([[0, 1]] * 2))
