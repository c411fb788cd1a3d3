"""Cosines between experts: against outputs formed one by one, and experts whose likeness is known."""

from __future__ import annotations

import pytest
import torch

from alphalloc.errors import AdapterError
from alphalloc.training.similarity import expert_similarity

PROMPTS = [[5, 6, 7], [9, 8], [12, 13, 14, 15, 16]]


@pytest.fixture
def model(tiny):
    import peft

    return peft.get_peft_model(tiny.llama(), tiny.moe_config(num_experts=[2, 1, 4]))


def adapters(model):
    from alphalloc.peft import named_adapters

    return dict(named_adapters(model, "default"))


@torch.no_grad()
def naive(model, path):
    """(between, absolute, within) from every expert's output ``B_e A_e x`` for every token of every prompt."""
    adapter, inputs = adapters(model)[path], []
    handle = adapter.experts_a.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for prompt in PROMPTS:
        model(input_ids=torch.tensor([prompt]))
    handle.remove()
    x = torch.cat([i.reshape(-1, i.shape[-1]) for i in inputs]).double()
    r, units = adapter.expert_rank, []
    for e in range(adapter.num_experts):
        a, b = adapter.experts_a.weight.double(), adapter.experts_b.weight.double()
        y = x @ a[e * r : (e + 1) * r].T @ b[:, e * r : (e + 1) * r].T
        units.append(y / y.norm(dim=1, keepdim=True))
    pairs = [(units[e] * units[f]).sum(1) for e in range(len(units)) for f in range(len(units)) if e != f]
    two = ~torch.eye(len(x), dtype=torch.bool)
    within = [(u @ u.T)[two].mean() for u in units]
    between = torch.stack(pairs)
    return float(between.mean()), float(between.abs().mean()), float(torch.stack(within).mean())


def test_gram_form_agrees_with_formed_outputs(model):
    model.eval()
    found = expert_similarity(model, PROMPTS, pad_id=0, batch_size=2)
    several = [path for path, adapter in adapters(model).items() if adapter.num_experts > 1]
    assert [row.module for row in found] == several
    assert {row.layer for row in found} == {0, 2}  # layer 1 has one expert
    for row in found[:: len(found) // 3]:
        assert (row.between, row.between_absolute, row.within) == pytest.approx(naive(model, row.module), abs=1e-5)
        assert row.tokens == 10


def test_equal_experts_have_cosine_one(model):
    with torch.no_grad():
        for adapter in adapters(model).values():
            r = adapter.expert_rank
            for e in range(1, adapter.num_experts):
                adapter.experts_a.weight[e * r : (e + 1) * r] = adapter.experts_a.weight[:r]
                adapter.experts_b.weight[:, e * r : (e + 1) * r] = -adapter.experts_b.weight[:, :r]
    found = expert_similarity(model, PROMPTS, pad_id=0)
    two = [row for row in found if row.layer == 0]
    assert [row.between for row in two] == pytest.approx([-1.0] * len(two))
    assert [row.between_absolute for row in found] == pytest.approx([1.0] * len(found))


def test_untrained_and_missing_experts_are_refused(tiny):
    import peft

    fresh = peft.get_peft_model(tiny.llama(), tiny.moe_config(init_adapter_weights=True))
    with pytest.raises(AdapterError, match="train the adapter first"):
        expert_similarity(fresh, PROMPTS, pad_id=0)
    single = peft.get_peft_model(tiny.llama(), tiny.moe_config(num_experts=1, top_k=1))
    with pytest.raises(AdapterError, match="two experts or more"):
        expert_similarity(single, PROMPTS, pad_id=0)
