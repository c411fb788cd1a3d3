"""Plain LoRA by pattern: on real models, exactly the planned ranks on exactly the planned modules."""

from __future__ import annotations

import json
import re
from typing import Any

import hypothesis.strategies as st
import peft
import pytest
import torch
from hypothesis import given, settings
from laws import EXAMPLES
from peft.utils.other import get_pattern_key
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from alphalloc.allocation import (
    Budget,
    ExpertSchedule,
    LayerRef,
    ModuleShapes,
    Slot,
    allocate,
    allocate_ranks,
    count_parameters,
    external_scores,
)
from alphalloc.errors import AdapterError
from alphalloc.export import ExportOptions, export
from alphalloc.export.lora import lora_plan, slot_key

LAYERS = 12
ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALPHAS = [2.0 + (i * 5 % 12) / 4 for i in range(LAYERS)]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def shapes_of(model: torch.nn.Module) -> ModuleShapes:
    found = []
    for path, module in model.named_modules():
        match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)", path)
        if match and isinstance(module, torch.nn.Linear):
            found.append((int(match[1]), match[2], module.in_features, module.out_features))
    from alphalloc.allocation import ModuleShape

    return ModuleShapes(tuple(ModuleShape(layer, "", role, i, o) for layer, role, i, o in found))


def built(model: torch.nn.Module, schedule: ExpertSchedule, options: ExportOptions | None = None) -> dict[str, Any]:
    """The LoRA layers of the model that the exported text builds: path -> layer."""
    fields = json.loads(export(schedule, "peft", options).text)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**fields))
    return {
        path.removeprefix("base_model.model."): module
        for path, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }


def ranks(layers: dict[str, Any]) -> dict[str, int]:
    return {path: layer.r["default"] for path, layer in layers.items()}


def block_index(path: str) -> int:
    found = re.search(r"\.(\d+)\.", path)
    assert found is not None
    return int(found[1])


# The whole way, on a model of more than ten layers: layer 1 must not be layer 10 or 11.


def test_every_layer_has_its_rank_and_the_scale_stays() -> None:
    schedule = allocate(ALPHAS, 60)
    layers = built(tiny_llama(), schedule, ExportOptions(r=2, lora_alpha=6))
    assert len(layers) == LAYERS * len(ROLES)
    for path, layer in layers.items():
        assert layer.r["default"] == 2 * schedule.num_experts[block_index(path)]
        assert layer.scaling["default"] == pytest.approx(3.0)
    assert len(set(ranks(layers).values())) > 2


def test_trainable_parameters_are_those_counted() -> None:
    model = tiny_llama()
    shapes = shapes_of(model)
    schedule = allocate_ranks(ALPHAS, Budget.ranks(48), max_rank=8)
    layers = built(model, schedule)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == count_parameters(schedule, shapes).parameters
    assert {block_index(path): rank for path, rank in ranks(layers).items()} == dict(enumerate(schedule.ranks))


def test_layers_without_experts_are_not_adapted() -> None:
    schedule = allocate(ALPHAS, 40, constraints={"frozen": ["1", "3-4"]})
    layers = built(tiny_llama(), schedule)
    assert {block_index(path) for path in layers} == set(range(LAYERS)) - {1, 3, 4}


def test_every_module_has_its_own_rank() -> None:
    scores = {
        Slot(layer, "", role): 1.0 + (layer * 7 + place * 3) % 11
        for layer in range(LAYERS)
        for place, role in enumerate(ROLES)
    }
    schedule = allocate(
        external_scores(scores),
        200,
        level="module",
        target_modules=["q_proj", "down_proj"],
        constraints={"frozen": ["2.q_proj"]},
    )
    planned = dict(zip(schedule.slots, (e.num_experts for e in schedule.slot_entries), strict=True))
    found = ranks(built(tiny_llama(), schedule, ExportOptions(r=1, lora_alpha=1)))
    assert found == {
        f"model.layers.{slot.layer}.{'self_attn' if slot.role == 'q_proj' else 'mlp'}.{slot.role}": count
        for slot, count in planned.items()
        if count
    }


def test_target_modules_are_the_option_then_the_schedule() -> None:
    schedule = allocate(ALPHAS, 60)
    layers = built(tiny_llama(), schedule, ExportOptions(target_modules=("q_proj", "v_proj")))
    assert {path.rpartition(".")[2] for path in layers} == {"q_proj", "v_proj"}
    assert len(layers) == 2 * LAYERS


def test_a_uniform_schedule_needs_no_pattern() -> None:
    fields = json.loads(export(allocate(ALPHAS, 60, rule="uniform"), "peft").text)
    assert (fields["r"], fields["lora_alpha"]) == (40, 80)
    assert fields["rank_pattern"] == fields["alpha_pattern"] == {}
    assert "exclude_modules" not in fields


# Other families: the list of blocks has another name, or there are two of them.


def test_gpt2() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=11, n_head=2, n_embd=8, vocab_size=32, n_positions=16))
    schedule = ExpertSchedule.from_counts([1 + i % 3 for i in range(11)])
    options = ExportOptions(r=1, target_modules=("c_attn", "c_fc"), module_paths=_modules(model))
    layers = built(model, schedule, options)
    assert ranks(layers) == {
        f"transformer.h.{i}.{name}": 1 + i % 3 for i in range(11) for name in ("attn.c_attn", "mlp.c_fc")
    }


def test_bert_roles_with_dots() -> None:
    model = BertModel(
        BertConfig(num_hidden_layers=11, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=32)
    )
    scores = {
        Slot(layer, "", role): score
        for layer in range(11)
        for role, score in (("attention.output.dense", 1.0), ("output.dense", 3.0))
    }
    schedule = allocate(external_scores(scores), 88, level="module", rule="alpha_power", beta=1)
    found = ranks(built(model, schedule, ExportOptions(r=1, block_list="layer")))
    expected = {}
    for layer in range(11):
        expected[f"encoder.layer.{layer}.attention.output.dense"] = 2
        expected[f"encoder.layer.{layer}.output.dense"] = 6
    assert found == expected


def test_two_stacks() -> None:
    model = T5ForConditionalGeneration(
        T5Config(num_layers=2, num_decoder_layers=2, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=32)
    )
    refs = [LayerRef(layer=i, stack=stack) for stack in ("encoder", "decoder") for i in range(2)]
    schedule = ExpertSchedule.from_counts([1, 2, 3, 4], layer_refs=refs)
    options = ExportOptions(r=1, target_modules=("q", "v"), module_paths=_modules(model))
    for path, rank in ranks(built(model, schedule, options)).items():
        stack, _, layer = path.split(".")[:3]
        assert (
            rank == {("encoder", "0"): 1, ("encoder", "1"): 2, ("decoder", "0"): 3, ("decoder", "1"): 4}[stack, layer]
        )


def _modules(model: torch.nn.Module) -> tuple[str, ...]:
    return tuple(path for path, module in model.named_modules() if not list(module.children()))


# Keys, without a model.


@given(layer=st.integers(0, 200), other=st.integers(0, 200), stack=st.sampled_from(["", "encoder", "language_model"]))
@settings(max_examples=EXAMPLES)
def test_a_key_matches_its_own_layer_only(layer: int, other: int, stack: str) -> None:
    key = slot_key(Slot(layer, stack), "layers")
    prefix = f"model.{stack}.layers" if stack else "model.layers"
    path = f"{prefix}.{other}.self_attn.q_proj"
    assert (get_pattern_key([key], path) == key) is (layer == other)
    module_key = slot_key(Slot(layer, stack, "q_proj"), "layers")
    assert (get_pattern_key([module_key], path) == module_key) is (layer == other)
    assert get_pattern_key([module_key], f"{prefix}.{layer}.self_attn.k_proj") != module_key


def test_keys_are_checked_against_the_model() -> None:
    schedule = ExpertSchedule.from_counts([3, 5])
    paths = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert lora_plan(schedule, ExportOptions(module_paths=tuple(paths))).rank == 24
    with pytest.raises(
        AdapterError, match=r"no module of the model matches 'layers.+\.1.+', the key of 1; .*another depth"
    ):
        lora_plan(schedule, ExportOptions(module_paths=tuple(paths[:1])))
    both = [*paths, *(f"vision.layers.{i}.attn.q_proj" for i in range(2))]
    with pytest.raises(AdapterError, match=r"matches modules under 'model\.' and under 'vision\.'"):
        lora_plan(schedule, ExportOptions(module_paths=tuple(both)))


def test_nothing_to_export() -> None:
    with pytest.raises(AdapterError, match="no layer has experts"):
        export(ExpertSchedule.from_counts([0, 0]), "peft")
