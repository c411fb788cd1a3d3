"""Schedules against a model, against each other, and in other people's notation."""

from __future__ import annotations

import json

import pytest

from alphalloc.allocation import (
    ExpertSchedule,
    LayerRef,
    ModuleShape,
    ModuleShapes,
    Slot,
    allocate,
    check_against_model,
    diff_schedules,
    external_scores,
)
from alphalloc.errors import DocumentError

SIZES = {"q_proj": (8, 8), "v_proj": (8, 4)}


def by_module() -> ExpertSchedule:
    return allocate(external_scores({Slot(i, "", r): 1.0 + i for i in range(2) for r in SIZES}), 12, level="module")


def test_a_difference_is_traced_to_slots_and_settings() -> None:
    first, second = allocate([2.0, 3.0, 4.0], 15), allocate([2.0, 3.0, 4.0], 16, beta=1, top_k=3)
    diff = diff_schedules(first, second)
    assert [(str(slot.slot), slot.experts) for slot in diff.slots] == [("0", (2, 4)), ("1", (4, 5)), ("2", (9, 7))]
    assert not diff.same_allocation
    assert diff.moved == 3
    assert set(diff.settings) == {"rule", "budget", "max_top_k"}
    assert diff.settings["rule"] == (first.rule.model_dump(), second.rule.model_dump())


def test_equal_schedules_have_no_difference() -> None:
    schedule = allocate([2.0, 3.0, 4.0], 15)
    diff = diff_schedules(schedule, schedule)
    assert (diff.same_allocation, diff.changed, diff.settings, diff.moved) == (True, (), {}, 0)
    hand = ExpertSchedule.from_counts(schedule.num_experts)
    assert diff_schedules(schedule, hand).same_allocation
    assert "rule" in diff_schedules(schedule, hand).settings


def test_schedules_of_different_depth_differ_in_the_missing_layers() -> None:
    diff = diff_schedules(ExpertSchedule.from_counts([2, 3]), ExpertSchedule.from_counts([2, 3, 4]))
    assert [(str(slot.slot), slot.experts) for slot in diff.changed] == [("2", (None, 4))]
    assert diff.moved == 4


def test_a_schedule_of_this_model_is_accepted() -> None:
    check_against_model(ExpertSchedule.from_counts([1, 2]), ModuleShapes.uniform(2, SIZES))
    check_against_model(by_module(), ModuleShapes.uniform(2, SIZES))


def test_a_schedule_of_another_model_is_refused() -> None:
    shapes = ModuleShapes.uniform(2, SIZES)
    with pytest.raises(DocumentError, match="the schedule has 3 layers, the model 2 layers; allocate again"):
        check_against_model(ExpertSchedule.from_counts([1, 2, 3]), shapes)
    stacks = [LayerRef(layer=0, stack="encoder"), LayerRef(layer=0, stack="decoder")]
    with pytest.raises(DocumentError, match="1 layers in 'encoder' and 1 layers in 'decoder', the model 2 layers"):
        check_against_model(ExpertSchedule.from_counts([1, 2], layer_refs=stacks), shapes)
    moved = [LayerRef(layer=0), LayerRef(layer=5)]
    with pytest.raises(DocumentError, match="layer 1: only the model has it"):
        check_against_model(ExpertSchedule.from_counts([1, 2], layer_refs=moved), shapes)
    other = ModuleShapes(tuple(ModuleShape(i, "", "c_attn", 8, 8) for i in range(2)))
    with pytest.raises(DocumentError, match=r"the model has no module 0\.q_proj; its roles: c_attn"):
        check_against_model(by_module(), other)


def test_comma_strings() -> None:
    schedule = ExpertSchedule.from_comma_strings("1,3,5,", "1, 2, 2", '"8,8,4"')
    assert (schedule.num_experts, schedule.top_k, schedule.ranks) == ((1, 3, 5), (1, 2, 2), (8, 8, 4))
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule
    assert ExpertSchedule.from_comma_strings("1,3", 2).top_k == (1, 2)
    assert ExpertSchedule.from_comma_strings("1,3", "2", "8").top_k == (1, 2)
    assert ExpertSchedule.from_comma_strings("1,3", lora_r="8").ranks == (8, 8)
    published = "1,3,5,4,4,5,4,4,3,3,2,2,2,2,3,4,9,4,8,7,8,7,8,7,9,8,6,10,6,7,3,2"  # AlphaLoRA's script for Mistral-7B
    assert ExpertSchedule.from_comma_strings(published).totals.num_experts == 160


@pytest.mark.parametrize(
    ("strings", "match"),
    [
        (("",), "num_experts must be whole numbers with commas between, found ''"),
        (("1,,3",), "found ''"),
        (("1,x",), "found 'x'"),
        (("1,2.5",), "found '2.5'"),
        (("1,-2",), "found '-2'"),
        (([1, 2],), "num_experts must be a string such as"),
        (("1,2", "1,2,3"), "2 counts, 3 top_k"),
        (("1,2", "2,2"), "layer 0: top_k 2 does not fit 1 experts"),
        (("1,2", 2, "8,8,8"), "lora_r has 3 numbers, num_experts has 2"),
        (("1,2", 2, "8,0"), "layer 1 has rank 0 and 2 experts"),
    ],
)
def test_comma_strings_that_are_none(strings: tuple, match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        ExpertSchedule.from_comma_strings(*strings)


# The document of schedules by module.


def broken(**changes) -> str:
    document = by_module().document()
    document["layers"][0].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (broken(modules=[]), "layer 0: expected one entry for each of its modules"),
        (broken(top_k=2), "layer 0: top_k 2 is not the largest of its modules"),
        (broken(modules=by_module().document()["layers"][0]["modules"][:1]), "its modules add up to another number"),
        (json.dumps({**by_module().document(), "level": "layer"}), "layer 0 has modules, but the level"),
    ],
)
def test_documents_by_module_that_contradict_themselves(text: str, match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        ExpertSchedule.from_json(text)


def test_schedules_by_module_are_not_edited_by_hand() -> None:
    with pytest.raises(DocumentError, match="too entangled to be edited by hand; allocate it anew"):
        ExpertSchedule.from_json(by_module().to_json(), restamp=True)


def test_optional_fields_that_say_nothing_are_left_out() -> None:
    document = allocate([2.0, 3.0], 8).document()
    assert {"level", "signal", "constraints", "adapter", "rank_bounds", "confidence"}.isdisjoint(document)
    assert {"score", "rank", "modules"}.isdisjoint(document["layers"][0])
    explicit_nulls = {**document, "level": "layer", "signal": None, "confidence": None}
    assert ExpertSchedule.from_json(json.dumps(explicit_nulls)).id == document["id"]


def test_whole_settings_are_whole_numbers_whoever_wrote_them() -> None:
    assert allocate([2.0, 3.0], 8, beta=2.0) == allocate([2.0, 3.0], 8, beta=2)
    text = allocate([2.0, 3.0], 8, beta=2).to_json().replace('"beta": 2', '"beta": 2.0')
    assert ExpertSchedule.from_json(text) == allocate([2.0, 3.0], 8, beta=2)
