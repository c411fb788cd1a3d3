"""Injected gradients equal those of the explicit sum, under every checkpointing and accumulation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_blocks import CHECKPOINTING, Blocks, assert_close, make_blocks, tokens
from torch import Tensor

from alphalloc.errors import AdapterError
from alphalloc.moe.context import RoutingContext
from alphalloc.moe.losses import AuxLosses, AuxScale, attach_loss, inject_loss, micro_batches_in_step
from alphalloc.moe.losses.balance import router_z_loss, switch_balance
from alphalloc.moe.losses.contrastive import expert_contrast
from alphalloc.moe.losses.inject import inject_router_losses

EXPERTS = [(4, 2), (3, 3), (1, 1), (5, 1)]
MASK = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
FORMS = {
    "switch": AuxLosses(balance="switch", balance_coefficient=0.3),
    "z": AuxLosses(z_coefficient=0.05),
    "moelora": AuxLosses(contrastive="moelora", contrastive_coefficient=0.2, contrastive_start_step=0),
    "comoe": AuxLosses(contrastive="comoe", contrastive_coefficient=0.2, contrastive_start_step=0),
    "all": AuxLosses(
        balance="switch",
        balance_coefficient=0.3,
        z_coefficient=0.05,
        contrastive="moelora",
        contrastive_coefficient=0.2,
        contrastive_start_step=0,
        contrastive_max_tokens=5,
    ),
}


def injected(
    model: Blocks, losses: AuxLosses, batches: list[tuple[Tensor, Tensor | None]], **step
) -> dict[str, Tensor]:
    """Gradients of one optimizer step; the task loss is zero times the output, so only what is injected remains."""
    context = model.attach(RoutingContext(losses))
    context.begin_step(0, **step)
    for x, mask in batches:
        context.begin_forward(mask)
        (model(x) * 0.0).sum().backward()
    return model.gradients()


def explicit(model: Blocks, losses: AuxLosses, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The same from first principles: hooks read what each layer saw, the loss is an ordinary sum."""
    seen = []

    class Reader:
        needs_hidden = True

        def __call__(self, layer, x, output, routing, hidden_TR):
            seen.append((layer, routing, hidden_TR))
            return output

    routed = [m for m in model.modules() if hasattr(m, "experts_a") and m.num_experts > 1]
    for layer in routed:
        layer.routing_observer = Reader()
    output = model(x)
    for layer in routed:
        layer.routing_observer = None
    mask_T = None if mask is None else mask.flatten() != 0
    total = (output * 0.0).sum()
    balanced = sum(layer.num_experts > layer.top_k for layer in routed)
    for position, (layer, routing, hidden_TR) in enumerate(seen):
        if losses.balance == "switch" and layer.num_experts > layer.top_k:
            total = total + losses.balance_coefficient / balanced * switch_balance(
                routing.logits_TE, layer.top_k, mask_T
            )
        total = total + losses.z_coefficient / len(routed) * router_z_loss(routing.logits_TE, mask_T)
        if losses.contrastive != "none":
            contrast = expert_contrast(
                hidden_TR,
                layer.experts_b.weight,
                routing.chosen_TK,
                layer.num_experts,
                form=losses.contrastive,
                temperature=losses.temperature,
                max_tokens=losses.contrastive_max_tokens,
                seed=position,
                mask_T=mask_T,
            )
            total = total + losses.contrastive_coefficient / len(routed) * contrast
    total.backward()
    return model.gradients()


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("form", FORMS)
def test_injected_gradients_equal_the_explicit_sum(form, checkpointing):
    x = tokens(3, 6)
    expected = explicit(make_blocks(EXPERTS), FORMS[form], x, MASK)
    actual = injected(make_blocks(EXPERTS, checkpointing=checkpointing), FORMS[form], [(x, MASK)])
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4
    assert_close(actual, expected, 1e-6)  # the scale is a float32 tensor


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_the_task_gradient_is_untouched(checkpointing):
    x, weight = tokens(3, 6), tokens(3, 6, seed=5).detach()
    plain = make_blocks(EXPERTS)
    (plain(x) * weight).sum().backward()
    task = plain.gradients()
    aux = explicit(plain, FORMS["all"], x, MASK)
    model = make_blocks(EXPERTS, checkpointing=checkpointing)
    context = model.attach(RoutingContext(FORMS["all"]))
    context.begin_forward(MASK)
    (model(x) * weight).sum().backward()
    assert_close(model.gradients(), {name: task[name] + aux[name] for name in task}, 1e-6)


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_mask_and_scale_are_those_of_the_forward_not_of_the_backward(checkpointing):
    first, second = tokens(3, 6), tokens(3, 6, seed=2)
    expected = injected(make_blocks(EXPERTS), FORMS["switch"], [(first, MASK), (second, None)])
    model = make_blocks(EXPERTS, checkpointing=checkpointing)
    context = model.attach(RoutingContext(FORMS["switch"]))
    context.begin_forward(MASK)
    one = model(first)
    context.begin_forward(None)
    two = model(second)
    context.begin_step(1, micro_batches=7)
    ((one + two) * 0.0).sum().backward()
    assert_close(model.gradients(), expected, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_keeps_the_losses_precise(form):
    x = tokens(3, 6, dtype=torch.float32)
    expected = explicit(make_blocks([(4, 2), (5, 2)], dtype=torch.float32), FORMS[form], x, MASK)
    model = make_blocks([(4, 2), (5, 2)], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = injected(model, FORMS[form], [(x, MASK)])
    # The layers' own products are rounded to bfloat16 (2^-8), so later blocks see other inputs.
    assert_close(actual, expected, 0.1)


# Accumulation


@pytest.mark.parametrize("form", ["switch", "z", "moelora"])
@pytest.mark.parametrize("times", [2, 3, 7])
def test_repeating_one_micro_batch_equals_having_it_once(form, times):
    x = tokens(3, 6)
    model = make_blocks(EXPERTS)
    once = injected(model, FORMS[form], [(x, MASK)])
    for step in ({"micro_batches": times}, {"total_tokens": times * int(MASK.sum())}):
        repeated = injected(make_blocks(EXPERTS), FORMS[form], [(x, MASK)] * times, **step)
        assert_close(repeated, once, 1e-6)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_accumulated_gradient_is_the_token_weighted_mean(lengths, seed):
    experts = [(4, 2), (3, 1)]
    losses, model = FORMS["switch"], make_blocks(experts)
    batches = []
    for i, length in enumerate(lengths):  # one row of six tokens, of which `length` are valid
        batches.append((tokens(1, 6, seed=seed + i), (torch.arange(6) < length).long()[None]))
    own = [explicit(model, losses, *batch) for batch in batches]
    expected = {name: sum(g[name] * n for g, n in zip(own, lengths, strict=True)) / sum(lengths) for name in own[0]}
    actual = injected(make_blocks(experts), losses, batches, total_tokens=sum(lengths))
    assert_close(actual, expected, 1e-6)
    if len(set(lengths)) == 1:
        assert_close(injected(make_blocks(experts), losses, batches, micro_batches=len(lengths)), expected, 1e-6)


def test_grad_scale_multiplies():
    x = tokens(3, 6)
    once = injected(make_blocks(EXPERTS), FORMS["all"], [(x, MASK)])
    scaled = injected(make_blocks(EXPERTS), FORMS["all"], [(x, MASK)], grad_scale=1024.0)
    assert_close(scaled, {name: 1024 * g for name, g in once.items()}, 1e-6)


def test_a_real_grad_scaler_gives_back_what_was_injected():
    x = tokens(3, 6)
    once = injected(make_blocks(EXPERTS), FORMS["switch"], [(x, MASK)])
    model = make_blocks(EXPERTS)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    context = model.attach(RoutingContext(FORMS["switch"]))
    scaler.scale(torch.zeros(()))  # the scale exists from the first call on
    context.begin_step(0, grad_scale=scaler.get_scale())
    context.begin_forward(MASK)
    scaler.scale((model(x) * 0.0).sum()).backward()
    scaler.unscale_(optimizer)
    assert_close(model.gradients(), once, 1e-6)


def test_last_short_accumulation_has_its_real_length():
    # 10 batches an epoch, accumulated by 4: steps of 4, 4, 2, then the same again.
    assert [micro_batches_in_step(step, 4, 10) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [micro_batches_in_step(step, 4, 8) for step in range(3)] == [4, 4, 4]
    assert micro_batches_in_step(0, 8, 3) == 3


@given(st.integers(1, 9), st.integers(1, 40))
def test_the_steps_of_an_epoch_use_every_batch_once(accumulation, batches):
    steps = -(-batches // accumulation)
    assert sum(micro_batches_in_step(steps + i, accumulation, batches) for i in range(steps)) == batches


def test_scale_refuses_nothing_to_divide_by():
    with pytest.raises(AdapterError, match="must be positive, got 0"):
        AuxScale().set_step(micro_batches=0)
    with pytest.raises(AdapterError, match="must be positive, got 1 and 0"):
        AuxScale().set_step(total_tokens=0)
    with pytest.raises(AdapterError, match="accumulation >= 1"):
        micro_batches_in_step(0, 0, 10)


# The two general forms


def test_attached_and_late_losses_ignore_what_the_output_receives():
    p = torch.tensor([2.0, 3.0], requires_grad=True)
    output = torch.tensor(1.0, requires_grad=True)
    weight = torch.tensor(0.5)
    attach_loss(output, (p**3).sum(), weight).mul(100.0).backward()
    assert output.grad == 100
    assert torch.equal(p.grad, 0.5 * 3 * p.detach() ** 2)
    p.grad = output.grad = None
    inject_loss(output * 1.0, lambda t: (t**3).sum(), (p,), weight).mul(100.0).backward()
    assert output.grad == 100
    assert torch.equal(p.grad, 0.5 * 3 * p.detach() ** 2)


def test_a_model_may_go_on_with_the_output_in_place():
    """Falcon's parallel attention adds into the linear's output."""
    p = torch.tensor([2.0, 3.0], requires_grad=True)
    logits = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    chosen, mask, weight = torch.tensor([[0, 1]]), torch.ones(1, dtype=torch.bool), torch.tensor(0.5)
    late = inject_loss(p * 1.0, lambda t: (t**3).sum(), (p,), weight)
    late.add_(1.0).sum().backward()
    assert torch.equal(p.grad, 1 + 0.5 * 3 * p.detach() ** 2)
    p.grad = None
    router = inject_router_losses(p * 1.0, logits, chosen, mask, weight, balance=1.0, z_loss=0.0)
    router.add_(1.0).sum().backward()
    assert torch.equal(p.grad, torch.ones(2))
    assert logits.grad.abs().max() > 0
