"""The schedule document: round trip, id, schema, hand-written schedules, and everything that must be refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import hypothesis.strategies as st
import jsonschema
import pytest
from hypothesis import given, settings
from laws import EXAMPLES
from pydantic import ValidationError

from alphalloc.allocation import (
    Budget,
    ExpertSchedule,
    LayerRef,
    ModelRef,
    Slot,
    allocate,
    allocate_ranks,
    external_scores,
    schedule_schema,
)
from alphalloc.errors import DocumentError, SchemaVersionError


def a_schedule() -> ExpertSchedule:
    return allocate([2.0, 3.0, 4.0], 15)


def edited(**changes) -> str:
    return json.dumps({**a_schedule().document(), **changes})


def with_layer(index: int, **changes) -> str:
    document = a_schedule().document()
    document["layers"][index].update(changes)
    return json.dumps(document)


# Exact cases.


def test_the_document_of_a_small_schedule() -> None:
    document = json.loads(a_schedule().to_json())
    assert document.pop("created_by")["tool"] == "alphalloc"
    assert document == {
        "kind": "LoRAExpertSchedule",
        "schema_version": "1.0",
        "id": "al_6b53598f56f7a0ffa90c5e0b7b0d772b",
        "model": None,
        "analysis": None,
        "rule": {"name": "alpha_power", "params": {"beta": 2.5}},
        "rounding": "largest_remainder",
        "budget": {"unit": "experts", "total": 15},
        "bounds": {"min_experts": 1, "max_experts": None},
        "max_top_k": 2,
        "layers": [
            {"layer": 0, "stack": "", "alpha": 2.0, "num_experts": 2, "top_k": 2},
            {"layer": 1, "stack": "", "alpha": 3.0, "num_experts": 4, "top_k": 2},
            {"layer": 2, "stack": "", "alpha": 4.0, "num_experts": 9, "top_k": 2},
        ],
        "totals": {"num_layers": 3, "num_experts": 15, "fewest_experts": 2, "most_experts": 9},
        "warnings": [],
    }


def test_the_id_is_the_hash_of_the_content_alone() -> None:
    import hashlib

    schedule = a_schedule()
    document = schedule.document()
    hashed = {key: value for key, value in document.items() if key not in ("id", "created_by", "warnings")}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    assert schedule.id == "al_" + hashlib.sha256(text.encode()).hexdigest()[:32]
    other = json.dumps({**document, "created_by": {"tool": "x", "version": "9"}, "warnings": ["careful"]})
    assert ExpertSchedule.from_json(other).id == schedule.id
    assert allocate([2.0, 3.0, 4.0], 16).id != schedule.id


def test_save_and_load(tmp_path: Path) -> None:
    path = a_schedule().save(tmp_path / "deep" / "schedule.json")
    assert ExpertSchedule.load(path) == a_schedule()
    assert os.listdir(path.parent) == ["schedule.json"]


def test_numbers_rewritten_by_another_program_are_the_same_content() -> None:
    text = a_schedule().to_json().replace("3.0", "3").replace("2.0", "2.00")
    assert ExpertSchedule.from_json(text) == a_schedule()


def test_by_hand() -> None:
    schedule = ExpertSchedule.from_counts([3, 5, 1], top_k=2)
    assert (schedule.num_experts, schedule.top_k, schedule.alphas) == ((3, 5, 1), (2, 2, 1), (None,) * 3)
    assert (schedule.rule.name, schedule.rounding, schedule.budget.total) == ("explicit", "none", 9)
    assert ExpertSchedule.from_counts([3, 5], top_k=[1, 3]).top_k == (1, 3)
    assert ExpertSchedule.from_counts([0, 5]).top_k == (0, 2)
    named = ExpertSchedule.from_counts(
        [3, 5],
        model=ModelRef(id="t5", num_layers=2),
        layer_refs=[LayerRef(layer=0, stack="encoder"), LayerRef(layer=0, stack="decoder")],
    )
    assert [layer.stack for layer in named.layers] == ["encoder", "decoder"]
    assert ExpertSchedule.from_json(named.to_json()) == named


@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=60), top_k=st.integers(1, 9))
@settings(max_examples=EXAMPLES)
def test_by_hand_law(counts: list[int], top_k: int) -> None:
    schedule = ExpertSchedule.from_counts(counts, top_k=top_k)
    assert schedule.num_experts == tuple(counts)
    assert schedule.top_k == tuple(min(top_k, n) for n in counts)
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


def test_a_schedule_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_schedule().rounding = "other"


def test_the_schema_accepts_what_is_written_and_refuses_what_is_not() -> None:
    schema = schedule_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    by_module = external_scores({Slot(i, "", role): 1.0 + i for i in range(2) for role in "qv"})
    for schedule in (
        a_schedule(),
        ExpertSchedule.from_counts([0, 5]),
        allocate([2.0, 3.0], 9, constraints={"frozen": ["0"], "groups": [["0"]], "max_experts": {"1": 9}}),
        allocate_ranks([2.0, 3.0], Budget.ranks(16), multiple_of=8),
        allocate(by_module, 12, level="module"),
    ):
        validator.validate(json.loads(schedule.to_json()))
    for broken in (
        edited(id="x"),
        edited(layers=[]),
        with_layer(0, num_experts=-1),
        with_layer(0, num_experts="3"),
        edited(schema_version="2.0"),
        edited(totals=None),
    ):
        assert not validator.is_valid(json.loads(broken))


# Reading what was edited, written by others or by the future.


@pytest.mark.parametrize(
    "text",
    [
        with_layer(0, num_experts=3),
        with_layer(0, alpha=2.5),
        with_layer(0, top_k=1),
        edited(rounding="reference"),
        edited(id="al_" + "0" * 32),
        edited(totals={"num_layers": 3, "num_experts": 16, "fewest_experts": 2, "most_experts": 9}),
    ],
)
def test_edited_content_is_found_and_the_way_out_is_named(text: str) -> None:
    with pytest.raises(DocumentError, match=r"re-stamp it: ExpertSchedule\.load\(path, restamp=True\)\.save\(path\)"):
        ExpertSchedule.from_json(text)


def test_restamping_makes_an_edit_honest() -> None:
    schedule = ExpertSchedule.from_json(with_layer(0, num_experts=3), restamp=True)
    assert schedule.num_experts == (3, 4, 9)
    assert (schedule.budget.total, schedule.totals.num_experts) == (16, 16)
    assert schedule.rule.model_dump() == {"name": "explicit", "params": {"edited_from": "alpha_power"}}
    assert schedule.alphas == (2.0, 3.0, 4.0)
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule
    with pytest.raises(DocumentError, match="cannot re-stamp"):
        ExpertSchedule.from_json(edited(layers=3), restamp=True)
    with pytest.raises(DocumentError, match=r"layer 0: top_k 2 does not fit 1 experts"):
        ExpertSchedule.from_json(with_layer(0, num_experts=1), restamp=True)


def test_a_newer_minor_version_is_read_without_its_news() -> None:
    document = a_schedule().document()
    document.update(schema_version="1.7", surprise={"x": 1})
    document["layers"][1]["surprise"] = 3
    from alphalloc.documents import content_id

    document["id"] = content_id("al_", {k: v for k, v in document.items() if k not in ("id", "created_by", "warnings")})
    read = ExpertSchedule.from_json(json.dumps(document))
    assert read == a_schedule()
    assert read.id == a_schedule().id


def test_a_newer_major_version_is_refused() -> None:
    with pytest.raises(SchemaVersionError, match=r"schema version 2\.0, this release reads up to 1\.x"):
        ExpertSchedule.from_json(edited(schema_version="2.0"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected kind 'LoRAExpertSchedule', found None"),
        (edited(kind="ModelAlphas"), "found 'ModelAlphas'"),
        (edited(id=None), "the schedule has no id"),
        (edited(schema_version=1), "schema_version is missing or not of the form"),
        (edited(layers=[]), "layers: "),
        (edited(layers=None), "layers: "),
        (edited(budget={"unit": "experts"}), r"budget\.total: Field required"),
        (with_layer(1, num_experts=4.0), r"layers\.1\.num_experts: "),
        (with_layer(1, num_experts=True), r"layers\.1\.num_experts: "),
        (with_layer(1, num_experts=-4), r"layers\.1\.num_experts: "),
        (with_layer(1, alpha="3"), r"layers\.1\.alpha: "),
        (with_layer(1, layer=0), "layer 0 of stack '' is listed twice"),
        (with_layer(1, top_k=9), "layer 1: top_k 9 does not fit 4 experts"),
        (with_layer(1, top_k=0), "layer 1: top_k 0 does not fit 4 experts"),
        (edited(bounds={"min_experts": 3, "max_experts": None}), "layer 0 has 2 experts, outside its bounds, min 3"),
        (
            edited(bounds={"min_experts": 1, "max_experts": 8}),
            "layer 2 has 9 experts, outside its bounds, min 1 and max 8",
        ),
        (edited(budget={"unit": "experts", "total": 14}), "have 15 experts, the budget says 14"),
        (a_schedule().to_json().replace("3.0", "NaN"), "NaN is not a JSON number"),
        (a_schedule().to_json().replace("3.0", "1e999"), "beyond the range of float64"),
    ],
)
def test_what_is_no_schedule(text: str, match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        ExpertSchedule.from_json(text)


@pytest.mark.parametrize("bad", [[], [3, -1], [3, 2.5], [3, True], "3,5", 3, None, [3, "5"], [3, math.nan]])
def test_counts_that_make_no_schedule(bad) -> None:
    with pytest.raises(DocumentError, match=r"layer|list"):
        ExpertSchedule.from_counts(bad)


def test_top_k_that_does_not_fit() -> None:
    with pytest.raises(DocumentError, match="top_k 4 does not fit 3 experts"):
        ExpertSchedule.from_counts([3, 5], top_k=[4, 2])
    with pytest.raises(DocumentError, match="2 counts, 1 top_k and 2 layer references do not match"):
        ExpertSchedule.from_counts([3, 5], top_k=[2])
    for bad in (0, -1, 2.5, True, "2", None):
        with pytest.raises(DocumentError, match=r"top_k|expected a list"):
            ExpertSchedule.from_counts([3, 5], top_k=bad)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"nothing\.json: cannot be read"):
        ExpertSchedule.load(tmp_path / "nothing.json")
