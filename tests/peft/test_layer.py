"""The wrapped linear: what it computes, merging, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from alphalloc.errors import AdapterError
from alphalloc.peft import MoELoraConfig, MoELoraLayer
from alphalloc.peft.targets import Placement


def layer_on(base: nn.Module, experts: int, top_k: int = 1, name: str = "default", **fields: Any) -> MoELoraLayer:
    layer = MoELoraLayer(base)
    config = MoELoraConfig(num_experts=experts, top_k=top_k, r=2, lora_alpha=4, init_adapter_weights=False, **fields)
    layer.update_layer(name, Placement("x", None, experts, top_k), config)
    return layer.eval()


def bases() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(6, 8), nn.Linear(6, 8, bias=False), Conv1D(8, 6)]


@pytest.mark.parametrize("base", bases(), ids=["linear", "no-bias", "conv1d"])
def test_one_expert_is_plain_lora(base: nn.Module) -> None:
    layer = layer_on(base, 1)
    x = torch.randn(3, 5, 6)
    adapter = layer.adapter("default")
    assert adapter is not None
    a, b = adapter.experts_a.weight, adapter.experts_b.weight
    assert torch.allclose(layer(x), base(x) + (4 / 2) * x @ a.T @ b.T, atol=1e-6)


@pytest.mark.parametrize("base", bases(), ids=["linear", "no-bias", "conv1d"])
def test_merging_one_expert_is_exact_and_can_be_undone(base: nn.Module) -> None:
    layer = layer_on(base, 1)
    before = base.weight.detach().clone()  # type: ignore[operator, union-attr]
    x = torch.randn(3, 6)
    expected = layer(x)
    layer.merge(safe_merge=True)
    assert layer.merged
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert torch.allclose(base(x), expected, atol=1e-6)
    layer.unmerge()
    assert not layer.merged
    assert torch.allclose(base.weight, before, atol=1e-7)  # type: ignore[arg-type]
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_disabling_a_merged_layer_unmerges_it() -> None:
    base = nn.Linear(6, 8)
    x = torch.randn(3, 6)
    expected = base(x)
    layer = layer_on(base, 1)
    layer.merge()
    layer.enable_adapters(False)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_several_experts_are_refused_with_advice() -> None:
    layer = layer_on(nn.Linear(6, 8), 3, 2)
    with pytest.raises(AdapterError, match=r"has 3 experts here.*cannot be merged.*alphalloc adapter export-static"):
        layer.merge()
    assert not layer.merged


def test_a_quantised_base_is_not_merged_into() -> None:
    layer = layer_on(nn.Linear(6, 8), 1)
    layer.base_layer.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match=r"base weight is quantised \(Linear\).*load the base model in bfloat16"):
        layer.merge()


def test_a_merge_that_is_not_finite_is_refused_when_asked_to_be_safe() -> None:
    layer = layer_on(nn.Linear(6, 8), 1)
    adapter = layer.adapter("default")
    assert adapter is not None
    nn.init.constant_(adapter.experts_b.weight, float("nan"))
    with pytest.raises(AdapterError, match="the merged weight is not finite"):
        layer.merge(safe_merge=True)
    assert torch.isfinite(layer.base_layer.weight).all()  # type: ignore[arg-type]


def test_active_adapters_add_up() -> None:
    layer = layer_on(nn.Linear(6, 8), 1)
    layer.update_layer("other", Placement("x", None, 3, 2), MoELoraConfig(num_experts=3, init_adapter_weights=False))
    layer.eval()
    x = torch.randn(4, 6)
    base = layer.base_layer(x)
    first = layer(x) - base
    layer.set_adapter("other")
    second = layer(x) - base
    layer.set_adapter(["default", "other"])
    assert torch.allclose(layer(x), base + first + second, atol=1e-6)


@pytest.mark.parametrize("name", ["experts_a", "experts_b", "router"])
def test_an_adapter_cannot_be_called_as_its_parts(name: str) -> None:
    with pytest.raises(AdapterError, match=f"'{name}' cannot be an adapter's name"):
        layer_on(nn.Linear(6, 8), 2, name=name)


def test_what_is_not_a_linear_is_refused() -> None:
    with pytest.raises(AdapterError, match="expected a linear to adapt, got LayerNorm"):
        MoELoraLayer(nn.LayerNorm(4))


def test_a_copy_of_the_layer_is_independent() -> None:
    layer = layer_on(nn.Linear(6, 8), 3, 2)
    other = copy.deepcopy(layer)
    x = torch.randn(4, 6)
    expected = layer(x)
    with torch.no_grad():
        other.adapter("default").experts_b.weight.zero_()  # type: ignore[union-attr]
    assert torch.equal(layer(x), expected)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)


def test_keys_with_a_doubled_name_are_loaded() -> None:
    # PEFT below 0.21 without the import writes the adapter's name into the file and adds another when it loads.
    layer = layer_on(nn.Linear(6, 8), 3, 2)
    doubled = {key.replace(".default.", ".default.trained."): value for key, value in layer.state_dict().items()}
    other = layer_on(nn.Linear(6, 8), 3, 2)
    other.load_state_dict(doubled)
    x = torch.randn(4, 6)
    assert torch.equal(other(x), layer(x))


def test_nothing_is_named_as_loras_weights_are() -> None:
    # Fast paths of other libraries look for lora_A and would bypass this forward.
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), MoELoraConfig(num_experts=2, target_modules=["0"]))  # type: ignore[arg-type]
    assert not any("lora_A" in name or "lora_B" in name for name, _ in model.named_parameters())
