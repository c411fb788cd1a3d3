"""The sparse backend: the same function as the dense one, its limits, and when it is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alphalloc.moe import layer as layer_module
from alphalloc.moe.grouped import grouped_pays, grouped_supported
from alphalloc.moe.layer import MoELora


def make(backend: str, *, num_experts: int = 6, top_k: int = 2, r: int = 8, dtype=torch.float32) -> MoELora:
    torch.manual_seed(0)
    layer = MoELora(
        32, 16, num_experts=num_experts, top_k=top_k, r=r, lora_alpha=8, backend=backend, normalize_topk="auto"
    )
    nn.init.normal_(layer.experts_b.weight, std=0.3)
    return layer.to(dtype)


def run(layer: MoELora, x: Tensor, base: Tensor) -> list[Tensor]:
    x, base = x.clone().requires_grad_(), base.clone().requires_grad_()
    output = layer(x, base)
    output.square().sum().backward()
    return [output.detach(), x.grad, base.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(("num_experts", "top_k"), [(6, 1), (6, 2), (6, 6), (2, 1)])
@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_equals_the_dense_backend(num_experts, top_k, tokens):
    x, base = torch.randn(tokens, 32), torch.randn(tokens, 16)
    options = {"num_experts": num_experts, "top_k": top_k}
    for ours, dense in zip(
        run(make("grouped", **options), x, base), run(make("dense", **options), x, base), strict=True
    ):
        assert (ours - dense).abs().max() <= 1e-5 * dense.abs().max()


def test_it_is_really_used(monkeypatch):
    def refuse(*_):
        raise AssertionError("dense")

    layer, x, base = make("grouped"), torch.randn(5, 32), torch.randn(5, 16)
    monkeypatch.setattr(layer_module, "gate_hidden", refuse)
    assert layer(x, base).shape == base.shape
    with pytest.raises(AssertionError, match="dense"):
        make("auto")(x, base)


def test_a_narrow_base_under_a_float32_adapter_is_rounded_once():
    x, base = torch.randn(20, 32).bfloat16(), torch.randn(20, 16).bfloat16()
    grouped, dense = make("grouped")(x, base), make("dense")(x, base)
    assert grouped.dtype == torch.bfloat16
    torch.testing.assert_close(grouped, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiles_into_one_graph(dtype):
    torch._dynamo.reset()
    layer = make("grouped", dtype=dtype)
    x, base = torch.randn(9, 32, dtype=dtype), torch.randn(9, 16, dtype=dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, base), layer(x, base))


@pytest.mark.parametrize(
    ("change", "tokens"),
    [({"dtype": torch.float64}, 5), ({"r": 3}, 5), ({}, 0)],
    ids=["float64", "unaligned rank", "no token"],
)
def test_what_torch_cannot_group_runs_dense(change, tokens):
    layer = make("grouped", **change)
    dtype = layer.experts_a.weight.dtype
    x, base = torch.randn(tokens, 32, dtype=dtype), torch.randn(tokens, 16, dtype=dtype)
    assert not grouped_supported(x, layer.experts_a.weight, layer.experts_b.weight, 6)
    torch.testing.assert_close(layer(x, base), make("dense", **change)(x, base))


def test_autocast_runs_dense():
    layer, x, base = make("grouped"), torch.randn(5, 32), torch.randn(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not grouped_supported(x, layer.experts_a.weight, layer.experts_b.weight, 6)
        assert layer(x, base).isfinite().all()


def test_weights_that_are_gathered_on_call_run_dense():
    x, empty = torch.randn(5, 32), torch.empty(0)
    assert not grouped_supported(x, empty, empty.view(0, 1), 6)


def test_auto_chooses_it_where_it_was_measured_to_pay():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert grouped_pays(cpu, 32, 2, 8)
    assert not grouped_pays(cpu, 31, 2, 8)  # E*r = 248
    assert not grouped_pays(cpu, 4, 2, 128)  # half of the experts chosen
    assert not grouped_pays(cuda, 128, 2, 64)  # never measured there
