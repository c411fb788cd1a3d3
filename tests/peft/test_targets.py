"""Which linears are adapted, by architecture, and which requests are refused."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from alphalloc.errors import AdapterError
from alphalloc.peft import MoELoraLayer, named_adapters
from alphalloc.peft.blocks import Block, block_of, inside_routed_expert, layer_entries
from alphalloc.peft.targets import features, place, router_group


def wrapped(model: Any) -> list[str]:
    return [path for path, _ in named_adapters(model, "default")]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("model.layers.3.self_attn.q_proj", Block("model.layers", 3)),
        ("transformer.h.11.attn.c_attn", Block("transformer.h", 11)),
        ("bert.encoder.layer.0.attention.self.query", Block("bert.encoder.layer", 0)),
        ("decoder.block.2.layer.1.EncDecAttention.q", Block("decoder.block", 2)),
        ("model.layers.1.mlp.experts.7.up_proj", Block("model.layers", 1)),
        ("lm_head", None),
        ("bert.pooler.dense", None),
    ],
)
def test_the_outermost_block_is_found(path: str, block: Block | None) -> None:
    assert block_of(path) == block


def test_a_list_of_another_name_is_found_when_named() -> None:
    assert block_of("net.stages.4.proj") is None
    assert block_of("net.stages.4.proj", ["stages"]) == Block("net.stages", 4)


FAMILIES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "qwen2_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_its_linears_trains_and_reloads(family: str, tiny: Any, tmp_path: Any) -> None:
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    base = getattr(tiny, family)()
    expected = tiny.logits(base)
    model = peft.get_peft_model(base, tiny.moe_config(task_type=task, init_adapter_weights=True))
    paths = wrapped(model)
    assert len(paths) == 3 * len(FAMILIES[family])
    assert all(sum(path.endswith(name) for path in paths) >= 3 for name in FAMILIES[family])
    assert not any(inside_routed_expert(path) or ".experts" in path for path in paths)
    assert torch.equal(tiny.logits(model), expected)  # B = 0
    assert [a.num_experts for p, a in named_adapters(model, "default") if p == paths[0]] == [2]
    assert [a.num_experts for p, a in named_adapters(model, "default") if p == paths[-1]] == [4]

    model.train()
    output = model(input_ids=tiny.tokens(), labels=torch.tensor([0, 1]) if family == "bert" else tiny.tokens())
    output.loss.backward()
    trained = tiny.adapter_parameters(model)
    # B is zero, so nothing but B has a gradient in the first step.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in trained.items() if "experts_b" in n)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05)
    changed = tiny.logits(model)
    assert not torch.equal(changed, expected)
    model.save_pretrained(str(tmp_path))
    again = peft.PeftModel.from_pretrained(getattr(tiny, family)(), str(tmp_path))
    assert torch.equal(tiny.logits(again), changed)


def test_fused_experts_keep_their_parameters_untouched(tiny: Any) -> None:
    base = tiny.qwen3_moe()
    fused = [name for name, p in base.named_parameters() if p.dim() == 3]
    assert fused  # three-dimensional weights that no linear stands for
    model = peft.get_peft_model(base, tiny.moe_config())
    assert fused == [n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.dim() == 3]
    assert not any(p.requires_grad for _, p in model.named_parameters() if p.dim() == 3)


def test_asking_for_fused_experts_says_that_they_are_left_alone(tiny: Any) -> None:
    with pytest.raises(AdapterError, match=r"\['up_proj'\] match no linear.*routed experts of this model .*left alone"):
        peft.get_peft_model(tiny.qwen3_moe(), tiny.moe_config(target_modules=["q_proj", "up_proj"]))


def test_all_linear_stays_inside_the_blocks(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.bert(), tiny.moe_config(target_modules="all-linear", task_type="SEQ_CLS"))
    assert len(wrapped(model)) == 18
    assert all(".layer." in path for path in wrapped(model))


def test_an_encoder_decoder_takes_one_entry_a_layer_of_both_stacks(tiny: Any) -> None:
    config = tiny.moe_config(num_experts=[1, 2, 3, 4, 5], top_k=1, task_type="SEQ_2_SEQ_LM", target_modules=["q"])
    model = peft.get_peft_model(tiny.t5(), config)
    experts = {path: adapter.num_experts for path, adapter in named_adapters(model, "default")}
    assert experts["encoder.block.0.layer.0.SelfAttention.q"] == 1
    assert experts["encoder.block.1.layer.0.SelfAttention.q"] == 2
    assert experts["decoder.block.0.layer.0.SelfAttention.q"] == 3
    assert experts["decoder.block.2.layer.1.EncDecAttention.q"] == 5


def test_a_schedule_that_names_its_stacks_is_followed_by_name(tiny: Any) -> None:
    layers = [{"layer": i, "stack": "decoder", "num_experts": 2 + i, "top_k": 1} for i in range(3)]
    layers += [{"layer": i, "stack": "encoder", "num_experts": 6 + i, "top_k": 1} for i in range(2)]
    config = tiny.MoELoraConfig.from_schedule({"layers": layers}, r=2, target_modules=["v"])
    places = place(tiny.t5(), config)
    assert places["encoder.block.1.layer.0.SelfAttention.v"].num_experts == 7
    assert places["decoder.block.0.layer.0.SelfAttention.v"].num_experts == 2


def test_targets_in_several_stacks_and_a_list_for_one_are_ambiguous(tiny: Any) -> None:
    with pytest.raises(AdapterError, match=r"2 in encoder.block . 3 in decoder.block.*target modules are ambiguous"):
        place(tiny.t5(), tiny.moe_config(num_experts=[2, 2, 2], top_k=1, target_modules=["q"]))
    only = tiny.moe_config(num_experts=[2, 2, 2], top_k=1, target_modules=r"decoder\..*\.q")
    assert {p.block.list_path for p in place(tiny.t5(), only).values() if p.block} == {"decoder.block"}


@pytest.mark.parametrize("entries", [2, 4])
def test_a_schedule_of_another_depth_is_refused(entries: int, tiny: Any) -> None:
    message = rf"the model has 3 in model.layers, but the schedule has {entries}; make the schedule from this model"
    with pytest.raises(AdapterError, match=message):
        peft.get_peft_model(tiny.llama(), tiny.moe_config(num_experts=[2] * entries, top_k=1))


def test_depth_counts_layers_that_are_not_adapted(tiny: Any) -> None:
    places = place(tiny.llama(), tiny.moe_config(layers_to_transform=[2], target_modules=["q_proj"]))
    assert [(p.path, p.num_experts) for p in places.values()] == [("model.layers.2.self_attn.q_proj", 4)]


def test_a_refused_adapter_leaves_the_model_as_it_was(tiny: Any) -> None:
    model = tiny.llama()
    with pytest.raises(AdapterError):
        peft.get_peft_model(model, tiny.moe_config(num_experts=[2, 2], top_k=1))
    assert not any(isinstance(module, MoELoraLayer) for module in model.modules())


def test_layers_without_experts_are_not_wrapped(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(num_experts=[0, 2, 0], top_k=[0, 1, 0]))
    assert {path.split(".")[2] for path in wrapped(model)} == {"1"}
    assert model.base_model.targeted_module_names == wrapped(model)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "nothing"], r"target_modules \['nothing'\] match no linear of the model; its linears are"),
        (["self_attn"], r"matches 'model.layers.0.self_attn', a LlamaAttention, which is not a linear"),
        (r".*self_attn", r"matches 'model.layers.0.self_attn', a LlamaAttention, which is not a linear"),
        (r"nothing\..*", r"matches no linear of the model"),
        (["q_proj", "lm_head"], r"'lm_head' lies outside the blocks, so the schedule has no entry for it"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(targets: Any, message: str, tiny: Any) -> None:
    with pytest.raises(AdapterError, match=message):
        peft.get_peft_model(tiny.llama(), tiny.moe_config(target_modules=targets))


def test_one_number_for_all_layers_may_go_outside_the_blocks(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(num_experts=2, top_k=1, target_modules=["lm_head"]))
    assert wrapped(model) == ["lm_head"]


def test_an_unknown_model_type_asks_for_targets() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)

    from alphalloc.peft import MoELoraConfig

    with pytest.raises(AdapterError, match=r"no target modules are known for the model type 'custom'.*\['up'\]"):
        peft.get_peft_model(Net(), MoELoraConfig(num_experts=2))  # type: ignore[arg-type]


def test_a_linear_that_is_never_called_is_refused() -> None:
    attention = nn.MultiheadAttention(4, 1)
    assert features(attention.out_proj) is None
    assert features(nn.Linear(3, 5)) == (3, 5)
    assert features(nn.Embedding(3, 5)) is None


def test_linears_that_read_the_same_input_share_a_router() -> None:
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    assert router_group(f"{attention}.q_proj") == router_group(f"{attention}.v_proj") != None  # noqa: E711
    assert router_group(f"{mlp}.gate_proj") == router_group(f"{mlp}.up_proj")
    assert router_group(f"{attention}.o_proj") is router_group(f"{mlp}.down_proj") is None
    cross = "decoder.block.0.layer.1.EncDecAttention"
    assert router_group(f"{cross}.q") is None
    assert router_group(f"{cross}.k") == router_group(f"{cross}.v") != None  # noqa: E711


def test_entries_follow_the_layer_numbers_of_the_schedule(tiny: Any) -> None:
    layers = [{"layer": i, "num_experts": i + 1, "top_k": 1} for i in (2, 0, 1)]
    config = tiny.MoELoraConfig.from_schedule({"layers": layers})
    block = Block("model.layers", 2)
    assert layer_entries(tiny.llama(), [block], config) == {block: 0}
    doubled = tiny.MoELoraConfig.from_schedule({"layers": [*layers[:2], layers[0]]})
    with pytest.raises(AdapterError, match=r"expected every layer 0..2 once in the schedule, got layers \[0, 2, 2\]"):
        layer_entries(tiny.llama(), [block], doubled)
