"""The layer: special cases, laws, equality with the expert loop, numerics, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_loop import LoopMoELora
from torch import Tensor, nn

from alphalloc.errors import AdapterError
from alphalloc.moe.layer import MoELora


def make(num_experts: int, top_k: int, *, seed: int = 0, size: tuple[int, int] = (12, 8), **settings) -> MoELora:
    """A layer whose B is not zero."""
    torch.manual_seed(seed)
    layer = MoELora(*size, num_experts=num_experts, top_k=top_k, **{"r": 4, "lora_alpha": 8, **settings})
    nn.init.normal_(layer.experts_b.weight, std=0.3)
    return layer


def gradients(layer: nn.Module, call, x: Tensor, base: Tensor, weight: Tensor) -> list[Tensor]:
    x, base = x.clone().requires_grad_(), base.clone().requires_grad_()
    layer.zero_grad()
    output = call(x, base)
    (output * weight).sum().backward()
    return [output.detach(), x.grad, base.grad]


def worst(actual: Tensor, reference: Tensor) -> float:
    """max|difference| / max|reference|."""
    actual, reference = actual.detach(), reference.detach()
    return float((actual - reference).abs().max() / reference.abs().max().clamp(min=1e-30))


# Special cases


def test_fresh_adapter_changes_nothing():
    layer = MoELora(12, 8, num_experts=4, top_k=2, r=4, lora_alpha=8)
    base = torch.randn(5, 8)
    assert torch.equal(layer(torch.randn(5, 12), base), base)


def test_one_expert_is_plain_lora():
    layer = make(1, 1, lora_alpha=8)
    x, base = torch.randn(5, 12), torch.randn(5, 8)
    expected = base + (x @ layer.experts_a.weight.T @ layer.experts_b.weight.T) * (8 / 4)
    assert layer.router is None
    torch.testing.assert_close(layer(x, base), expected)
    torch.testing.assert_close(layer.delta_weight(), 2.0 * layer.experts_b.weight @ layer.experts_a.weight)
    torch.testing.assert_close(layer(x, base), base + x @ layer.delta_weight().T)


def test_all_experts_chosen_is_the_dense_softmax_mixture():
    layer = make(3, 3)
    x, base = torch.randn(5, 12), torch.randn(5, 8)
    gate = (x @ layer.router.weight.T).softmax(-1)
    a, b = layer.experts_a.weight.view(3, 4, 12), layer.experts_b.weight.view(8, 3, 4)
    expected = base + 2.0 * torch.einsum("te,oer,erd,td->to", gate, b, a, x)
    torch.testing.assert_close(layer(x, base), expected)


def test_initial_values_are_loras():
    torch.manual_seed(0)
    layer = MoELora(256, 8, num_experts=4, top_k=2, r=16, lora_alpha=8)
    bound = 1 / math.sqrt(256)
    for expert in layer.experts_a.weight.split(16):
        assert 0.95 * bound < expert.abs().max() <= bound
        assert expert.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not layer.experts_b.weight.any()
    assert 0.95 * bound < layer.router.weight.abs().max() <= bound


def test_parameter_names_and_count():
    layer = MoELora(12, 8, num_experts=4, top_k=2, r=3, lora_alpha=8)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "experts_a.weight": (12, 12),
        "experts_b.weight": (8, 12),
        "router.weight": (4, 12),
    }
    assert sum(p.numel() for p in layer.parameters()) == 4 * 3 * (12 + 8) + 4 * 12


@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,), (2, 0), ()])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 2)])
def test_leading_dimensions(shape, num_experts, top_k):
    layer = make(num_experts, top_k)
    x = torch.randn(*shape, 12, requires_grad=True)
    base = torch.randn(*shape, 8)
    output = layer(x, base)
    output.sum().backward()
    assert output.shape == base.shape
    assert x.grad.shape == x.shape
    if shape == (2, 3):
        torch.testing.assert_close(output, layer(x.view(6, 12), base.view(6, 8)).view(2, 3, 8))


# Laws


@given(
    num_experts=st.integers(1, 6),
    top_k=st.integers(1, 6),
    rank=st.integers(1, 5),
    tokens=st.integers(1, 17),
    features=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    normalize=st.sampled_from(["auto", "never"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_dense_equals_the_expert_loop(num_experts, top_k, rank, tokens, features, normalize, dtype, seed):
    top_k = min(top_k, num_experts)
    if dtype == torch.float32:  # the router's gradient is a difference: a single one can cancel below seven digits
        features, tokens = (features[0] + 8, features[1] + 8), tokens + 16
    options = {"r": rank, "normalize_topk": normalize, "size": features, "dtype": dtype}
    layer = make(num_experts, top_k, seed=seed, **options)
    loop = LoopMoELora(layer)
    x, base, weight = (torch.randn(tokens, n, dtype=dtype) for n in (features[0], features[1], features[1]))

    def fed_the_same_gate(x_TD: Tensor, base_TO: Tensor) -> Tensor:
        if layer.router is None:
            return loop(x_TD, base_TO)
        routing = layer.route(x_TD)
        return loop.mix(x_TD, base_TO, routing.chosen_TK, routing.weights_TK)

    actual = gradients(layer, layer, x, base, weight)
    actual += [layer.experts_a.weight.grad, layer.experts_b.weight.grad]
    actual += [layer.router.weight.grad.clone()] if layer.router is not None else []
    expected = gradients(layer, fed_the_same_gate, x, base, weight)
    expected += [torch.cat([a.grad for a in loop.experts_a]), torch.cat([b.grad for b in loop.experts_b], 1)]
    expected += [layer.router.weight.grad] if layer.router is not None else []
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name, ours, reference in zip(("output", "x", "base", "A", "B", "router"), actual, expected, strict=False):
        assert worst(ours, reference) <= tolerance, name


def test_own_router_equals_softmax_then_topk_then_division():
    layer = make(5, 2, dtype=torch.float64)
    x, base = torch.randn(40, 12, dtype=torch.float64), torch.zeros(40, 8, dtype=torch.float64)
    assert worst(layer(x, base), LoopMoELora(layer)(x, base)) < 1e-12


def test_permuting_experts_with_their_router_rows_changes_nothing():
    layer, order = make(4, 2, dtype=torch.float64), [2, 0, 3, 1]
    permuted = copy.deepcopy(layer)
    with torch.no_grad():
        permuted.experts_a.weight.copy_(layer.experts_a.weight.view(4, 4, 12)[order].view(16, 12))
        permuted.experts_b.weight.copy_(layer.experts_b.weight.view(8, 4, 4)[:, order].reshape(8, 16))
        permuted.router.weight.copy_(layer.router.weight[order])
    x, base = torch.randn(30, 12, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    assert worst(permuted(x, base), layer(x, base)) < 1e-12


def test_gradients_reach_only_chosen_experts():
    layer = make(6, 2)
    x = torch.randn(1, 12)
    chosen = layer.route(x).chosen_TK[0].tolist()
    layer(x, torch.zeros(1, 8)).sum().backward()
    touched_a = layer.experts_a.weight.grad.view(6, -1).abs().amax(-1) > 0
    touched_b = layer.experts_b.weight.grad.view(8, 6, 4).abs().amax((0, 2)) > 0
    assert sorted(chosen) == touched_a.nonzero().flatten().tolist() == touched_b.nonzero().flatten().tolist()


def test_overflow_in_an_expert_nobody_chose_stays_there():
    layer = make(3, 1, normalize_topk="never")
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0, 0] = 1.0  # positive first feature: expert 0
        layer.experts_a.weight[4:8] = 1e38  # expert 1 overflows on any large token
    x = torch.full((3, 12), 100.0, requires_grad=True)
    output = layer(x, torch.zeros(3, 8))
    output.sum().backward()
    assert torch.isinf(layer.experts_a(x)).any()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in [*layer.parameters(), x])


# Dropout, gates, ranks


def test_dropout_is_shared_and_off_in_evaluation_and_never_seen_by_the_router():
    layer = make(4, 2, dropout=0.5)
    x, base = torch.randn(6, 12), torch.zeros(6, 8)
    seen: list[Tensor] = []
    layer.router.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(1)
    noisy = layer(x, base)
    torch.manual_seed(1)
    routing = layer.route(x)
    expected = LoopMoELora(layer).mix(nn.functional.dropout(x, 0.5), base, routing.chosen_TK, routing.weights_TK)
    torch.testing.assert_close(noisy, expected)
    assert torch.equal(seen[0], x)
    layer.eval()
    torch.testing.assert_close(layer(x, base), LoopMoELora(layer)(x, base))


def test_dropout_noise_has_the_loops_mean_and_size():
    # Shared or per-expert masks: the same mean, and nearly the same spread.
    layer = make(4, 2, dropout=0.2, size=(64, 8), dtype=torch.float64)
    loop = LoopMoELora(layer, dropout=0.2)
    x, base = torch.randn(4, 64, dtype=torch.float64), torch.zeros(4, 8, dtype=torch.float64)
    ours = torch.stack([layer(x, base) for _ in range(600)]).detach()
    theirs = torch.stack([loop(x, base) for _ in range(600)]).detach()
    standard_error = theirs.std(0) / math.sqrt(600)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 6 * math.sqrt(2) * standard_error).all()
    assert float(ours.std(0).mean() / theirs.std(0).mean()) == pytest.approx(1.0, abs=0.25)


def test_top_1_is_not_normalized_by_default_so_its_router_learns():
    layer = make(4, 1)
    layer(torch.randn(20, 12), torch.zeros(20, 8)).square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 1e-2
    with pytest.warns(UserWarning, match="no gradient"):
        constant = make(4, 1, normalize_topk="always")
    constant(torch.randn(20, 12), torch.zeros(20, 8)).square().sum().backward()
    assert constant.router.weight.grad.abs().max() <= 1e-4


def test_total_rank_is_split_over_the_experts():
    layer = make(4, 2, r=8, rank_mode="total", lora_alpha=16)
    assert (layer.expert_rank, layer.scaling, layer.experts_a.weight.shape[0]) == (2, 8.0, 8)
    one = MoELora(12, 8, num_experts=1, top_k=1, r=8, rank_mode="total", lora_alpha=16)
    assert (one.expert_rank, one.scaling) == (8, 2.0)


# Shared routers


def test_a_borrowed_router_decides_and_is_saved_once():
    donor, borrower = make(4, 2), make(4, 2, seed=1, router=False)
    borrower.use_router_of(donor)
    x = torch.randn(9, 12)
    assert torch.equal(borrower.route(x).chosen_TK, donor.route(x).chosen_TK)
    assert set(borrower.state_dict()) == {"experts_a.weight", "experts_b.weight"}
    borrower(x, torch.zeros(9, 8)).square().sum().backward()
    assert donor.router.weight.grad.abs().max() > 0
    twins = copy.deepcopy(nn.ModuleList([donor, borrower]))
    assert twins[1]._router_donor[0] is twins[0]


def test_sharing_that_cannot_be_is_refused():
    with pytest.raises(AdapterError, match="router=False"):
        make(4, 2).use_router_of(make(4, 2))
    with pytest.raises(AdapterError, match="equal"):
        make(4, 2, router=False).use_router_of(make(5, 2))
    with pytest.raises(AdapterError, match="use_router_of was never called"):
        make(4, 2, router=False)(torch.randn(1, 12), torch.zeros(1, 8))


# Precision and compilation


def test_bfloat16_and_mixed_dtypes_keep_the_base_dtype():
    layer = make(4, 2)
    x, base = torch.randn(7, 12), torch.randn(7, 8)
    exact = layer(x, base)
    mixed = layer(x.bfloat16(), base.bfloat16())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.route(x).logits_TE.dtype == torch.float32
        torch.testing.assert_close(layer(x, base), exact, atol=0.05, rtol=0.05)
    half = copy.deepcopy(layer).bfloat16()
    assert half.route(x.bfloat16()).logits_TE.dtype == torch.float32
    output = half(x.bfloat16(), base.bfloat16())
    output.sum().backward()
    assert half.experts_a.weight.grad.dtype == torch.bfloat16


def test_the_sum_with_a_narrow_base_is_rounded_once():
    layer = make(1, 1, r=12, lora_alpha=12)
    x, base = torch.randn(50, 12).bfloat16(), torch.randn(50, 8).bfloat16()
    wide = base.float() + x.float() @ layer.delta_weight().T
    output = layer(x, base)
    spacing = 2.0 ** (wide.abs().log2().floor() - 7)
    assert ((output.float() - wide).abs() <= 0.5 * spacing * (1 + 1e-3)).all()


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 1), (4, 2), (3, 3)])
def test_compiles_into_one_graph(num_experts, top_k):
    torch._dynamo.reset()
    layer = make(num_experts, top_k)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, base, weight = torch.randn(2, 5, 12), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    eager = gradients(layer, layer, x, base, weight) + [p.grad for p in layer.parameters()]
    traced = gradients(layer, compiled, x, base, weight) + [p.grad for p in layer.parameters()]
    for ours, reference in zip(traced, eager, strict=True):
        torch.testing.assert_close(ours, reference)


def test_built_on_the_meta_device_and_filled_later():
    layer = MoELora(12, 8, num_experts=4, top_k=2, r=4, lora_alpha=8, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    base = torch.randn(3, 8)
    assert torch.equal(layer(torch.randn(3, 12), base), base)


def test_the_same_seed_gives_the_same_layer():
    first, second = make(4, 2, seed=3), make(4, 2, seed=3)
    x = torch.randn(4, 12)
    assert torch.equal(first(x, torch.zeros(4, 8)), second(x, torch.zeros(4, 8)))


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 5}, "top_k must lie between 1 and num_experts = 4, got 5"),
        ({"top_k": 0}, "got 0"),
        ({"num_experts": 0}, "at least 1"),
        ({"r": 0}, "positive integer"),
        ({"r": 6, "rank_mode": "total"}, "6 is not a multiple of 4"),
        ({"rank_mode": "half"}, "per_expert"),
        ({"normalize_topk": "sometimes"}, "'auto', 'always' or 'never'"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"backend": "triton"}, "'auto', 'dense' or 'grouped'"),
        ({"num_experts": 1, "top_k": 1, "router": True}, "one expert has no decision"),
    ],
)
def test_contradicting_settings_are_refused(change, message):
    with pytest.raises(AdapterError, match=message):
        MoELora(12, 8, **{"num_experts": 4, "top_k": 2, "r": 4, "lora_alpha": 8, **change})


def test_sizes_must_be_positive():
    with pytest.raises(AdapterError, match="positive, got 0 and 8"):
        MoELora(0, 8, num_experts=1, top_k=1, r=4, lora_alpha=8)


def test_several_experts_have_no_delta_weight():
    with pytest.raises(AdapterError, match="merge needs num_experts = 1"):
        make(4, 2).delta_weight()
