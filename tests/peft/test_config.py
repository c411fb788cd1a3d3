"""The configuration: what it accepts, refuses and carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest

import alphalloc
from alphalloc.allocation import Budget, ModuleShapes, Slot, allocate, allocate_ranks, external_scores
from alphalloc.documents import package_version
from alphalloc.errors import AdapterError
from alphalloc.peft import PRESETS, MoELoraConfig


@pytest.fixture
def schedule() -> Any:
    return alphalloc.allocate([2.0, 3.0, 4.0], budget=9)


def test_from_schedule_takes_experts_and_top_k_and_carries_the_document(schedule: Any) -> None:
    config = MoELoraConfig.from_schedule(schedule, r=4, lora_alpha=8, target_modules=["q_proj"])
    assert config.num_experts == list(schedule.num_experts)
    assert config.top_k == list(schedule.top_k)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, ["q_proj"])
    assert isinstance(config.schedule, dict)
    assert config.schedule["id"] == schedule.id


def test_a_document_and_a_file_give_the_same_as_the_schedule(schedule: Any, tmp_path: Path) -> None:
    schedule.save(tmp_path / "schedule.json")
    whole = MoELoraConfig.from_schedule(schedule)
    assert MoELoraConfig.from_schedule(json.loads(schedule.to_json())) == whole
    assert MoELoraConfig.from_schedule(tmp_path / "schedule.json") == whole
    assert MoELoraConfig.from_schedule(str(tmp_path / "schedule.json")) == whole


def test_saving_and_loading_gives_the_same_configuration(schedule: Any, tmp_path: Path) -> None:
    config = MoELoraConfig.from_schedule(schedule, target_modules=["v_proj", "q_proj"], balance="switch")
    config.save_pretrained(str(tmp_path))
    loaded = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, MoELoraConfig)
    assert loaded == config
    assert loaded.alphalloc_version == package_version()
    text = json.loads((tmp_path / "adapter_config.json").read_text())
    assert text["schedule"]["layers"][2]["num_experts"] == schedule.num_experts[2]


def test_sets_are_saved_in_sorted_order() -> None:
    config = MoELoraConfig(target_modules={"v_proj", "k_proj", "q_proj"})
    assert config.to_dict()["target_modules"] == ["k_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alphalora", {"balance": "none", "contrastive": "none"}),
        ("mola", {"balance": "mola", "balance_coef": 1e-3, "contrastive": "none"}),
        ("moelora", {"balance_coef": 1e-3, "contrastive": "moelora", "contrastive_coef": 1e-2}),
    ],
)
def test_presets(name: str, expected: dict[str, Any], schedule: Any) -> None:
    config = MoELoraConfig.preset(name, r=3)
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.r == 3
    carried = MoELoraConfig.from_schedule(schedule, preset=name)
    assert {key: getattr(carried, key) for key in expected} == expected
    assert carried.num_experts == list(schedule.num_experts)


def test_every_preset_is_valid_and_an_unknown_one_refused() -> None:
    for name in PRESETS:
        MoELoraConfig.preset(name)
    with pytest.raises(AdapterError, match="expected a preset among alphalora, moelora, mola, got 'x'"):
        MoELoraConfig.preset("x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 2, "top_k": 3}, r"expected 1 <= top_k <= 2, the most experts of any layer, got 3"),
        ({"num_experts": [2, 4], "top_k": [2, 5]}, r"entry 1 has top_k 5 and 4 experts"),
        ({"num_experts": [2, 4], "top_k": [0, 2]}, r"entry 0 has top_k 0 and 2 experts"),
        ({"num_experts": [2, 4], "top_k": [2]}, r"expected one top_k a layer, as many as num_experts has \(2\), got 1"),
        ({"num_experts": 4, "top_k": [2, 2]}, r"expected one top_k a layer"),
        ({"num_experts": 0}, r"at least one of them positive"),
        ({"num_experts": []}, r"at least one of them positive"),
        ({"num_experts": [2, -1]}, r"integers >= 0"),
        ({"num_experts": [2, 1.5]}, r"integers >= 0"),
        ({"num_experts": True}, r"integers >= 0"),
        ({"r": 0}, r"expected r to be a positive integer, got 0"),
        ({"r": 2.5}, r"expected r to be a positive integer"),
        ({"lora_alpha": -1}, r"expected lora_alpha to be positive"),
        ({"lora_alpha": float("nan")}, r"expected lora_alpha to be positive"),
        ({"lora_dropout": 1.0}, r"expected lora_dropout in \[0, 1\)"),
        ({"balance": "yes"}, r"expected balance to be one of none, switch, mola, got 'yes'"),
        ({"contrastive": "yes"}, r"expected contrastive to be one of none, moelora, comoe"),
        ({"normalize_topk": True}, r"expected normalize_topk to be one of auto, always, never, got True"),
        ({"bias": "lora_only"}, r"expected bias to be one of none, all"),
        ({"rank_mode": "x"}, r"expected rank_mode to be one of per_expert, total"),
        ({"share_router": "model"}, r"expected share_router to be one of none, block"),
        ({"balance_coef": -1e-3}, r"expected balance_coef to be zero or positive"),
        ({"tau": 0}, r"expected tau to be positive"),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        MoELoraConfig(**fields)


def test_top_k_as_one_number_is_an_upper_bound() -> None:
    config = MoELoraConfig(num_experts=[0, 1, 2, 5], top_k=2)
    assert [config.experts_at(i) for i in range(4)] == [(0, 0), (1, 1), (2, 2), (5, 2)]


def test_what_is_not_a_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="expected an expert schedule whose `layers` hold"):
        MoELoraConfig.from_schedule({"layers": [{"layer": 0}]})
    with pytest.raises(AdapterError, match=r"expected a saved schedule at .*nowhere.json"):
        MoELoraConfig.from_schedule(tmp_path / "nowhere.json")


def test_schedules_by_module_or_with_ranks_are_refused() -> None:
    shapes = ModuleShapes.uniform(3, {"q_proj": (8, 8), "v_proj": (8, 8)})
    scores = external_scores({Slot(s.layer, s.stack, s.role): 1.0 + s.layer for s in shapes.modules}, name="fisher")
    with pytest.raises(AdapterError, match="one a module"):
        MoELoraConfig.from_schedule(allocate(scores, 12, level="module"))
    ranks = allocate_ranks([2.0, 3.0, 4.0], Budget.ranks(48), multiple_of=4)
    with pytest.raises(AdapterError, match=r"the schedule sets \[\d+, "):
        MoELoraConfig.from_schedule(ranks)
    equal = allocate_ranks([2.0, 2.0, 2.0], Budget.ranks(48), num_experts=2)
    assert MoELoraConfig.from_schedule(equal, r=16).r == 16
