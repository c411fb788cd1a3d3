"""The context: which mask fits which input, what is counted, late start, detaching, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from moe_blocks import WIDTH, Blocks, assert_close, make_blocks, tokens

from alphalloc.errors import AdapterError
from alphalloc.moe.context import RoutingContext
from alphalloc.moe.layer import MoELora
from alphalloc.moe.losses import AuxLosses
from alphalloc.moe.statistics import RoutingStatistics

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
SWITCH = AuxLosses(balance="switch", balance_coefficient=0.3)
CONTRAST = AuxLosses(contrastive="moelora", contrastive_start_step=3)


def masked(mask: torch.Tensor | None, shape: tuple[int, ...], *, training: bool) -> list[bool] | None:
    context = RoutingContext()
    context.begin_forward(mask)
    found = context.mask_of(torch.zeros(*shape, WIDTH), training=training)
    return None if found is None else found.tolist()


def test_a_mask_fits_its_own_shape_and_its_flattening():
    flat = [True, True, True, False, False, True, True, True]
    assert masked(MASK, (2, 4), training=True) == flat
    assert masked(MASK.bool(), (8,), training=True) == flat
    assert masked(MASK.float(), (2, 4), training=False) == flat


def test_with_a_cache_the_end_of_the_mask_belongs_to_the_input():
    assert masked(MASK, (2, 1), training=False) == [False, True]
    assert masked(MASK, (2, 2), training=False) == [True, False, True, True]
    assert masked(MASK, (2, 1), training=True) is None


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (7,), (1, 8)])
def test_another_shape_counts_every_token(shape):
    assert masked(MASK, shape, training=True) is None


def test_without_a_two_dimensional_mask_every_token_counts():
    assert masked(None, (2, 4), training=True) is None
    assert masked(torch.ones(2, 1, 4, 4), (2, 4), training=True) is None


def test_counts_of_attached_layers():
    context = make_blocks([(4, 2), (3, 3), (1, 1)]).attach(RoutingContext())
    assert (context.num_balanced, context.num_routers, context.num_contrasted) == (2, 4, 4)


def test_one_shared_router_is_one_decision():
    torch.manual_seed(0)
    settings = {"num_experts": 4, "top_k": 2, "r": 2, "lora_alpha": 4, "dtype": torch.float64}
    donor, borrower = MoELora(WIDTH, WIDTH, **settings), MoELora(WIDTH, WIDTH, router=False, **settings)
    borrower.use_router_of(donor)
    context = RoutingContext(SWITCH, RoutingStatistics())
    context.attach(donor, "q", 0)
    context.attach(borrower, "k", 0)
    assert (context.num_balanced, context.num_routers, context.num_contrasted) == (1, 1, 2)
    x = tokens(2, 4)
    (borrower(x, donor(x, x)) * 0.0).sum().backward()
    together = donor.router.weight.grad.clone()
    assert [layer.name for layer in context.statistics.summary()] == ["q"]
    context.detach(borrower)
    donor.zero_grad()
    (donor(x, x) * 0.0).sum().backward()
    torch.testing.assert_close(together, donor.router.weight.grad)


def test_detached_layers_inject_nothing():
    model = make_blocks([(4, 2)])
    context = model.attach(RoutingContext(SWITCH))
    for block in model.blocks:
        for name in ("0", "2"):
            context.detach(block.get_submodule(name).adapter)
            context.detach(block.get_submodule(name).adapter)  # nothing left to undo
    (model(tokens(2, 4)) * 0.0).sum().backward()
    assert not any(g.any() for g in model.gradients().values())
    assert context.num_balanced == 0


def test_names_must_differ():
    context = make_blocks([(4, 2)]).attach(RoutingContext())
    with pytest.raises(AdapterError, match=r"'blocks.0.0' is attached already"):
        make_blocks([(4, 2)]).attach(context)


def gradient_of(model: Blocks, context: RoutingContext) -> float:
    (model(tokens(2, 4)) * 0.0).sum().backward()
    return max(float(g.abs().max()) for g in model.gradients().values())


def test_contrast_starts_late():
    model = make_blocks([(4, 2)])
    context = model.attach(RoutingContext(CONTRAST))
    found = []
    for step in range(5):
        context.begin_step(step)
        found.append(gradient_of(model, context) > 0)
    assert found == [False, False, False, True, True]


def test_evaluation_and_frozen_adapters_inject_nothing():
    model = make_blocks([(4, 2)])
    context = model.attach(RoutingContext(SWITCH))
    model.eval()
    assert gradient_of(model, context) == 0.0
    model.train().requires_grad_(False)
    output = model(tokens(2, 4).detach())
    assert not output.requires_grad


def test_losses_do_not_change_the_output():
    x = tokens(2, 4)
    losses = AuxLosses(balance="switch", z_coefficient=0.1, contrastive="comoe", contrastive_start_step=0)
    model = make_blocks([(4, 2), (3, 1)])
    plain = model(x)
    context = model.attach(RoutingContext(losses, RoutingStatistics()))
    context.begin_forward(MASK)
    assert torch.equal(model(x), plain)


def test_a_wide_layer_runs_dense_while_it_is_contrasted():
    settings = {"dtype": torch.float32, "r": 8, "backend": "grouped"}
    model = make_blocks([(4, 2)], **settings)
    context = model.attach(RoutingContext(CONTRAST))
    x = tokens(2, 4, dtype=torch.float32)
    grouped = model(x)
    context.begin_step(3)
    torch.testing.assert_close(model(x), grouped)
    assert gradient_of(model.double(), context) > 0


def test_a_copied_model_has_its_own_context():
    model = make_blocks([(4, 2)])
    context = model.attach(RoutingContext(SWITCH))
    twin = copy.deepcopy(model)
    copied = twin.blocks[0][0].adapter.routing_observer.context
    assert copied is not context
    assert copied is twin.blocks[0][2].adapter.routing_observer.context


def test_compiles_into_one_graph_with_balance_and_statistics():
    torch._dynamo.reset()
    losses = AuxLosses(balance="switch", balance_coefficient=0.3, z_coefficient=0.1)
    x = tokens(2, 4)
    results = []
    for compiled in (False, True):
        model = make_blocks([(4, 2)])
        context = model.attach(RoutingContext(losses, RoutingStatistics()))
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        for step, mask in enumerate((MASK, MASK.flip(0))):  # what changes between steps must not be baked in
            context.begin_step(step, micro_batches=step + 1)
            context.begin_forward(mask)
            with torch._dynamo.config.patch(error_on_recompile=True):
                call(x).square().sum().backward()
        results.append((model.gradients(), [(s.tokens, s.load) for s in context.statistics.summary()]))
    assert_close(results[1][0], results[0][0], 1e-10)
    assert results[1][1] == results[0][1]


def test_contrast_compiles_with_a_graph_break():
    torch._dynamo.reset()
    x = tokens(2, 4)
    results = []
    for compiled in (False, True):
        model = make_blocks([(4, 2)])
        context = model.attach(RoutingContext(CONTRAST))
        context.begin_step(3)
        (torch.compile(model, backend="aot_eager") if compiled else model)(x).square().sum().backward()
        results.append(model.gradients())
    assert_close(results[1], results[0], 1e-10)
