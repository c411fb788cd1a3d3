"""Every other target: its text, read as its reader would, and what it must refuse."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alphalloc.allocation import (
    Adapter,
    Budget,
    ExpertSchedule,
    LayerRef,
    ModelRef,
    ModuleShapes,
    Slot,
    allocate,
    allocate_ranks,
    count_parameters,
    external_scores,
)
from alphalloc.errors import AdapterError, InvalidParameterError
from alphalloc.export import EXPORTERS, ExportOptions, export, write_init_adapter
from alphalloc.peft import MoELoraConfig

SIZES = {
    "q_proj": (16, 16),
    "k_proj": (16, 8),
    "v_proj": (16, 8),
    "o_proj": (16, 16),
    "gate_proj": (16, 24),
    "up_proj": (16, 24),
    "down_proj": (24, 16),
}
LAYERS = 12


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


def a_schedule(**options: Any) -> ExpertSchedule:
    return allocate([2.0 + (i * 5 % 12) / 4 for i in range(LAYERS)], 60, **options)


def by_module() -> ExpertSchedule:
    scores = {Slot(i, "", role): 1.0 + i for i in range(3) for role in ("q_proj", "v_proj")}
    return allocate(external_scores(scores), 12, level="module")


# Our own adapter.


def test_alphalloc_peft_is_the_configuration_of_our_adapter(tmp_path: Path) -> None:
    schedule = a_schedule()
    (tmp_path / "adapter_config.json").write_text(export(schedule, "alphalloc-peft", ExportOptions(r=2)).text)
    config = MoELoraConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, MoELoraConfig)
    expected = MoELoraConfig.from_schedule(schedule, r=2)
    assert (config.num_experts, config.top_k, config.r, config.lora_alpha) == (
        expected.num_experts,
        expected.top_k,
        2,
        16,
    )
    assert config.schedule == expected.schedule == schedule.document()


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_parameters_are_the_trainable_numel_of_the_model(targets: list[str] | None) -> None:
    """A budget in parameters is what the built model trains, to the last one."""
    shapes = ModuleShapes.uniform(LAYERS, SIZES)
    adapter = Adapter.on(shapes, r=2, target_modules=targets)
    budget = Budget.parameters(12_000, adapter)
    schedule = allocate([2.0 + (i * 5 % 12) / 4 for i in range(LAYERS)], budget, constraints={"frozen": ["4"]})
    fields = json.loads(export(schedule, "alphalloc-peft").text)
    for name in ("peft_type", "task_type"):
        fields.pop(name)
    model = peft.get_peft_model(tiny_llama(), MoELoraConfig(**fields))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert schedule.adapter is not None
    assert trainable == schedule.adapter.num_parameters <= 12_000
    assert trainable == count_parameters(schedule, adapter.shapes, r=2).parameters
    assert 12_000 - trainable < sum(2 * (i + o) + 2 * i for i, o in SIZES.values())  # not one expert more would fit


def test_alphalloc_peft_refuses_what_it_does_not_have() -> None:
    with pytest.raises(AdapterError, match="one number of experts a layer, this schedule one a module"):
        export(by_module(), "alphalloc-peft")
    ranks = allocate_ranks([2.0, 3.0], Budget.ranks(12))
    with pytest.raises(AdapterError, match="one rank for all experts, this schedule has"):
        export(ranks, "alphalloc-peft")


# An untouched adapter, for LLaMA-Factory.


@pytest.mark.parametrize("method", ["lora", "moe"])
def test_init_adapter_changes_nothing_and_trains_what_was_planned(tmp_path: Path, method: Any) -> None:
    schedule = a_schedule()
    options = ExportOptions(r=2, method=method)
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    write_init_adapter(schedule, options, str(tmp_path / "base"), tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "adapter"), is_trainable=True)
    tokens = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, base.eval()(tokens).logits)
    trainable = sum(p.numel() for p in loaded.parameters() if p.requires_grad)
    shapes = ModuleShapes.uniform(LAYERS, SIZES)
    if method == "moe":
        assert trainable == count_parameters(schedule, shapes, r=2).parameters
    else:
        assert trainable == sum(2 * n * sum(i + o for i, o in SIZES.values()) for n in schedule.num_experts)
        matrices = [p for name, p in loaded.named_parameters() if "lora_A" in name]
        assert all(p.abs().max() > 0 for p in matrices)


def test_init_adapter_is_the_same_again(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    files = []
    for name in ("one", "two"):
        write_init_adapter(a_schedule(), ExportOptions(r=1), str(tmp_path / "base"), tmp_path / name, seed=3)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_init_adapter_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"a model folder or hub id with a config\.json"):
        write_init_adapter(a_schedule(), ExportOptions(), str(tmp_path), tmp_path / "adapter")


def test_llamafactory_names_the_folder() -> None:
    result = export(a_schedule(), "llamafactory", ExportOptions(init_adapter="saves/init"))
    assert result.text == "finetuning_type: lora\nadapter_name_or_path: saves/init\ncreate_new_adapter: false\n"
    assert "'saves/init'" in result.notes[0]
    moe = export(a_schedule(), "llamafactory", ExportOptions(method="moe"))
    assert "import alphalloc.peft" in moe.notes[1]


# Strings and YAML.


def test_mola_strings_come_back() -> None:
    schedule = a_schedule()
    text = export(schedule, "mola", ExportOptions(r=4)).text
    words = shlex.split(text.replace("\\\n", " "))
    arguments = dict(zip(words[::2], words[1::2], strict=True))
    assert set(arguments) == {"--number_experts", "--top_k", "--lora_r"}
    again = ExpertSchedule.from_comma_strings(
        arguments["--number_experts"], arguments["--top_k"], arguments["--lora_r"]
    )
    assert (again.num_experts, again.top_k) == (schedule.num_experts, schedule.top_k)
    assert again.ranks == (4,) * LAYERS


def test_mola_refuses_what_it_fails_on() -> None:
    with pytest.raises(AdapterError, match="fails on layers without experts, and layer 1 has none"):
        export(ExpertSchedule.from_counts([3, 0]), "mola")
    stacks = [LayerRef(layer=0, stack="encoder"), LayerRef(layer=0, stack="decoder")]
    with pytest.raises(AdapterError, match="one stack of layers only"):
        export(ExpertSchedule.from_counts([3, 3], layer_refs=stacks), "mola")


def test_axolotl() -> None:
    result = export(a_schedule(), "axolotl", ExportOptions(r=2, lora_alpha=4, lora_dropout=0.05))
    plain = json.loads(export(a_schedule(), "peft", ExportOptions(r=2, lora_alpha=4, lora_dropout=0.05)).text)
    from ruamel.yaml import YAML

    read = YAML(typ="safe").load(result.text)
    assert read["adapter"] == "lora"
    assert read["lora_target_linear"] is True
    assert (read["lora_r"], read["lora_alpha"], read["lora_dropout"]) == (plain["r"], plain["lora_alpha"], 0.05)
    assert read["lora_rank_pattern"] == plain["rank_pattern"]
    assert read["lora_alpha_pattern"] == plain["alpha_pattern"]
    assert all(type(value) is int for value in read["lora_alpha_pattern"].values())


def test_axolotl_leaves_layers_out_by_index() -> None:
    frozen = a_schedule(constraints={"frozen": ["0", "5"]})
    settings = export(frozen, "axolotl").settings
    assert settings is not None
    assert settings["peft_layers_to_transform"] == [i for i in range(LAYERS) if i not in (0, 5)]


def test_axolotl_refuses() -> None:
    with pytest.raises(AdapterError, match="choose a lora_alpha that is a multiple of the rank"):
        export(a_schedule(), "axolotl", ExportOptions(r=2, lora_alpha=1.5))
    with pytest.raises(AdapterError, match="by configuration alone"):
        export(a_schedule(), "axolotl", ExportOptions(method="moe"))
    frozen = allocate(
        external_scores({Slot(i, "", r): 1.0 for i in range(2) for r in "ab"}),
        6,
        level="module",
        constraints={"frozen": ["1.a"]},
    )
    with pytest.raises(AdapterError, match="whole layers of a single stack only"):
        export(frozen, "axolotl")


# Python.


@pytest.mark.parametrize("method", ["lora", "moe"])
def test_trl_snippet_defines_the_peft_config(method: Any) -> None:
    schedule = a_schedule(constraints={"frozen": ["3"]})
    names: dict[str, Any] = {}
    exec(export(schedule, "trl", ExportOptions(r=2, method=method)).text, names)
    config = names["peft_config"]
    model = peft.get_peft_model(tiny_llama(), config)
    shapes = ModuleShapes.uniform(LAYERS, SIZES)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if method == "moe":
        assert config.schedule == schedule.id
        assert trainable == count_parameters(schedule, shapes, r=2).parameters
    else:
        assert trainable == sum(2 * n * sum(i + o for i, o in SIZES.values()) for n in schedule.num_experts)


@pytest.mark.parametrize("method", ["lora", "moe"])
def test_ms_swift_plugin_registers_a_tuner(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    """ms-swift itself is too large for this environment: its two names are stood in for."""
    stand_in = types.ModuleType("swift.tuner_plugin")
    stand_in.PeftTuner = type("PeftTuner", (), {})  # type: ignore[attr-defined]
    stand_in.tuners_map = {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.tuner_plugin", stand_in)
    schedule = a_schedule()
    exec(export(schedule, "ms-swift", ExportOptions(r=2, method=method)).text, {})
    tuner = stand_in.tuners_map["alphalloc"]
    model = tuner.prepare_model(types.SimpleNamespace(task_type="causal_lm"), tiny_llama())
    adapted = [m for m in model.modules() if hasattr(m, "lora_A") or hasattr(m, "alphalloc_molora_adapters")]
    assert len(adapted) == LAYERS * len(SIZES)


def test_unsloth_arguments_are_those_of_lora_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """unsloth needs a GPU: its one function is stood in for by PEFT, to which it hands these arguments."""
    stand_in = types.ModuleType("unsloth")

    class FastLanguageModel:
        @staticmethod
        def get_peft_model(model: Any, **arguments: Any) -> Any:
            return peft.get_peft_model(model, peft.LoraConfig(**arguments))

    stand_in.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    schedule = a_schedule(constraints={"frozen": ["11"]})
    names: dict[str, Any] = {"model": tiny_llama()}
    exec(export(schedule, "unsloth", ExportOptions(r=1)).text, names)
    found = {
        int(path.split(".")[4]): module.r["default"]
        for path, module in names["model"].named_modules()
        if hasattr(module, "lora_A")
    }
    assert found == {i: n for i, n in enumerate(schedule.num_experts) if n}
    with pytest.raises(AdapterError, match="plain LoRA only"):
        export(schedule, "unsloth", ExportOptions(method="moe"))


# One number for all layers.


@pytest.mark.parametrize("target", ["mixlora", "moe-peft"])
def test_single_numbers(target: str) -> None:
    uniform = json.loads(export(a_schedule(rule="uniform"), target).text)
    assert (uniform["num_experts"], uniform["top_k"], uniform["r"]) == (5, 2, 8)
    with pytest.raises(
        AdapterError, match=r"one number of experts for all layers, this schedule has \d+ to \d+.*--average"
    ):
        export(a_schedule(), target)
    averaged = export(a_schedule(), target, ExportOptions(average=True))
    assert json.loads(averaged.text)["num_experts"] == 5
    assert "wrote the mean, 5, everywhere" in averaged.notes[0]


def test_mixlora_has_the_fields_its_reader_asks_for() -> None:
    schedule = ExpertSchedule.from_counts([4] * 3, model=ModelRef(id="a/b", commit="0" * 40, num_layers=3))
    fields = json.loads(export(schedule, "mixlora").text)
    assert fields["peft_type"] == "MIXLORA"
    assert fields["routing_strategy"] == "mixtral"
    assert fields["base_model_name_or_path"] == "a/b"
    assert {"task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "num_experts", "top_k"} <= set(fields)


# The schedule itself.


def test_json_yaml_toml_csv() -> None:
    from ruamel.yaml import YAML

    schedule = a_schedule(constraints={"frozen": ["2"], "groups": [["0", "1"]]})
    assert ExpertSchedule.from_json(export(schedule, "json").text) == schedule
    assert YAML(typ="safe").load(export(schedule, "yaml").text) == schedule.document()
    read = tomllib.loads(export(schedule, "toml").text)
    assert ExpertSchedule.from_json(json.dumps(read)) == schedule  # what is missing is null
    rows = list(csv.DictReader(io.StringIO(export(schedule, "csv").text)))
    assert [int(row["num_experts"]) for row in rows] == list(schedule.num_experts)
    assert [float(row["alpha"]) for row in rows] == list(schedule.alphas)
    modules = list(csv.DictReader(io.StringIO(export(by_module(), "csv").text)))
    assert [row["role"] for row in modules] == ["q_proj", "v_proj"] * 3


# All of them.


@pytest.mark.parametrize("target", EXPORTERS)
def test_the_same_text_every_time(target: str) -> None:
    schedule = a_schedule(rule="uniform")
    first = export(schedule, target)
    assert first == export(schedule, target)
    assert first.text.endswith("\n")


def test_unknown_targets_and_options() -> None:
    with pytest.raises(InvalidParameterError, match=r"'peftt'; there are: peft, alphalloc-peft, mola"):
        export(a_schedule(), "peftt")
    for bad in ({"r": 0}, {"r": True}, {"r": 2.5}, {"lora_alpha": 0}, {"lora_dropout": 1}, {"method": "dora"}):
        with pytest.raises(InvalidParameterError, match=next(iter(bad))):
            ExportOptions(**bad)
