"""Signals other than alphas: metrics, files of scores, modules; and rules that take any number."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.allocation import (
    AnalysisRef,
    ExpertSchedule,
    LayerRef,
    LayerScores,
    ModelRef,
    Slot,
    allocate,
    external_scores,
    metric_scores,
    read_scores,
)
from alphalloc.allocation.rules import RULES
from alphalloc.errors import InvalidParameterError, InvalidScoresError


@dataclass(frozen=True)
class Matrix:
    layer: int
    role: str
    alpha: float | None
    stable_rank: float | None = None
    stack: str = ""
    sigma: float | None = None
    num_tail: int = 50
    stability_band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Analysis:
    """An analysis with its matrices."""

    per_layer: tuple[float, ...]
    matrices: tuple[Matrix, ...]
    model_ref: ModelRef | None = field(default_factory=lambda: ModelRef(id="a/b", num_layers=2))
    analysis_ref: AnalysisRef | None = field(default_factory=lambda: AnalysisRef(estimator="ks"))
    notes: tuple[str, ...] = ()

    @property
    def layer_refs(self) -> tuple[LayerRef, ...]:
        return tuple(LayerRef(layer=i) for i in range(len(self.per_layer)))


def an_analysis() -> Analysis:
    return Analysis(
        per_layer=(2.5, 4.0),
        matrices=(
            Matrix(0, "q_proj", 2.0, 10.0),
            Matrix(0, "v_proj", 3.0, 20.0),
            Matrix(1, "q_proj", 4.0, 5.0),
            Matrix(1, "v_proj", None, 7.0),
            Matrix(-1, "lm_head", 9.0, 90.0),
        ),
    )


# Metrics.


def test_a_metric_is_averaged_and_named() -> None:
    scores = metric_scores(an_analysis(), "stable_rank", direction="lower")
    assert isinstance(scores, LayerScores)
    assert scores.per_layer == (15.0, 6.0)
    schedule = allocate(scores, 14, beta=1)
    assert schedule.num_experts == (4, 10)  # 1/15 : 1/6
    assert schedule.alphas == (None, None)
    assert [layer.score for layer in schedule.layers] == [15.0, 6.0]
    assert schedule.signal is not None
    assert schedule.signal.model_dump() == {"name": "stable_rank", "direction": "lower", "source": None}
    assert schedule.analysis == AnalysisRef(estimator="ks")
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule
    assert allocate(metric_scores(an_analysis(), "stable_rank", direction="higher"), 14, beta=1).num_experts == (10, 4)


def test_the_experts_of_a_mixture_count_once() -> None:
    matrices = (Matrix(0, "q", 2.0, 1.0), *(Matrix(0, "experts", 2.0, 4.0) for _ in range(9)), Matrix(1, "q", 2.0, 1.0))
    analysis = Analysis(per_layer=(2.0, 2.0), matrices=matrices)
    assert metric_scores(analysis, "stable_rank", direction="higher").per_layer == (2.5, 1.0)


def test_metrics_that_are_none() -> None:
    with pytest.raises(InvalidParameterError, match="no metric is called 'colour'; there are: stable_rank, entropy"):
        metric_scores(an_analysis(), "colour", direction="higher")
    with pytest.raises(InvalidParameterError, match="direction must be 'higher' or 'lower' .*found 'up'"):
        metric_scores(an_analysis(), "stable_rank", direction="up")  # type: ignore[arg-type]
    with pytest.raises(InvalidScoresError, match="needs an analysis with its matrices"):
        metric_scores(Analysis(per_layer=(2.0,), matrices=()), "stable_rank", direction="higher")
    with pytest.raises(InvalidScoresError, match="no matrix of layer 1 has a stable_rank"):
        metric_scores(Analysis((2.0, 3.0), (Matrix(0, "q", 2.0, 1.0),)), "stable_rank", direction="higher")


# Rules for any number.


def test_linear_maps_to_one_plus_minus_eps() -> None:
    assert RULES["linear"].weights([2.0, 3.0, 4.0], eps=0.3) == pytest.approx((0.7, 1.0, 1.3))
    assert RULES["linear"].weights([3.0, 3.0], eps=0.3) == (1.0, 1.0)
    assert RULES["linear"].weights([-1e308, 1e308]) == (1.0, 1.0)


def test_softmax_has_the_proportions_of_the_exponentials() -> None:
    weights = RULES["softmax"].weights([1.0, 2.0], temperature=0.5)
    assert weights[1] / weights[0] == pytest.approx(math.exp(2))


def test_explicit_counts_are_taken_as_they_are() -> None:
    schedule = allocate([3.0] * 3, 9, rule="explicit:[5,3,1]")
    assert (schedule.num_experts, schedule.rounding) == ((5, 3, 1), "none")
    assert schedule.rule.params == {"counts": [5, 3, 1]}
    assert allocate([3.0] * 3, 9, rule="explicit", params={"counts": [5, 3, 1]}) == schedule


@pytest.mark.parametrize(
    ("rule", "budget", "match"),
    [
        ("explicit:5,3", 8, "2 explicit counts do not fit 3 layers"),
        ("explicit:5,3,-1", 7, "must be whole numbers from 0 to 1000000000, found -1"),
        ("explicit:5,3," + "9" * 4000, 7, "found a larger one"),
        ("explicit:5,3,1.5", 9, r"found 1\.5"),
        ("explicit:5,3,1", 10, "add up to 9 experts, the budget says 10"),
        ("explicit:9,0,1", 10, "explicit count 0 of 1 is outside its bounds, min 1"),
        ("explicit", 9, "rule 'explicit' needs counts"),
        ("linear", 9, "eps must lie between 0 and 1"),
        ("softmax", 9, "temperature must be positive"),
    ],
)
def test_bad_rules(rule: str, budget: int, match: str) -> None:
    params = {"linear": {"eps": 1}, "softmax": {"temperature": 0}}.get(rule)
    with pytest.raises(Exception, match=match) as caught:
        allocate([3.0, 2.0, 4.0], budget, rule=rule, params=params)
    assert caught.type.__module__ == "alphalloc.errors"


def test_a_softmax_that_vanishes_says_so() -> None:
    with pytest.raises(InvalidParameterError, match=r"vanishes at temperature 0\.001: raise it"):
        allocate([3.0, 2.0], 9, rule="softmax", params={"temperature": 0.001})


@given(
    values=st.lists(st.floats(-50, 50), min_size=2, max_size=12),
    rule=st.sampled_from(["linear", "softmax"]),
    direction=st.sampled_from(["higher", "lower"]),
    budget=st.integers(12, 90),
)
@settings(max_examples=EXAMPLES)
def test_order_follows_the_direction(values: list[float], rule: str, direction: Any, budget: int) -> None:
    scores = external_scores({Slot(i): value for i, value in enumerate(values)}, direction=direction)
    counts = allocate(scores, budget, rule=rule).num_experts
    assert sum(counts) == budget
    for i, first in enumerate(values):
        for j, second in enumerate(values):
            if first < second - 1e-9 * 50:
                assert counts[i] <= counts[j] if direction == "higher" else counts[i] >= counts[j]


def test_negative_scores_do_not_go_with_a_power() -> None:
    scores = external_scores({Slot(0): -1.0, Slot(1): 2.0}, name="influence")
    with pytest.raises(InvalidScoresError, match="layer 0: influence must be a positive finite number, found -1"):
        allocate(scores, 9)
    assert sum(allocate(scores, 9, rule="linear").num_experts) == 9


# Modules.


def test_every_module_has_its_own_count() -> None:
    schedule = allocate(an_analysis(), 26, level="module", beta=1)
    assert schedule.level == "module"
    assert [str(slot) for slot in schedule.slots] == ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj"]
    # 2 : 3 : 4 : 4, the last being the mean of its layer
    assert [entry.num_experts for entry in schedule.slot_entries] == [4, 6, 8, 8]
    assert schedule.num_experts == (10, 16)
    assert [entry.alpha for entry in schedule.slot_entries] == [2.0, 3.0, 4.0, 4.0]
    assert schedule.warnings == ("1 modules without a score have their layer's mean: 1.v_proj",)
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


def test_rules_over_the_depth_count_layers_not_modules() -> None:
    """Layer 7 of 30 lies in the second quarter with all its modules, though slot 52.5 is the border of the slots."""
    scores = external_scores({Slot(i, "", f"m{k}"): 1.0 for i in range(30) for k in range(7)})
    by_module = allocate(scores, 7 * 152, level="module", rule="mola_triangle")
    by_layer = allocate([1.0] * 30, 152, rule="mola_triangle")
    assert by_module.num_experts == tuple(7 * n for n in by_layer.num_experts)


def test_target_modules_choose_roles() -> None:
    schedule = allocate(an_analysis(), 6, level="module", target_modules=["q_proj"], beta=1)
    assert [entry.num_experts for entry in schedule.slot_entries] == [2, 4]


def test_levels_that_are_none() -> None:
    with pytest.raises(InvalidParameterError, match="level must be 'layer' or 'module', found 'block'"):
        allocate([3.0], 5, level="block")
    with pytest.raises(InvalidScoresError, match="needs an analysis with its matrices"):
        allocate([3.0], 5, level="module")
    with pytest.raises(InvalidScoresError, match="these scores only know layers"):
        allocate(external_scores({Slot(0): 1.0}), 5, level="module")
    with pytest.raises(InvalidParameterError, match="no module has the role 'x'; there are: q_proj, v_proj"):
        allocate(an_analysis(), 9, level="module", target_modules=["x"])
    with pytest.raises(InvalidParameterError, match="target_modules choose roles of level 'module'"):
        allocate(an_analysis(), 9, target_modules=["q_proj"])


# Files.


def write(tmp_path: Path, text: str, name: str = "influence.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file(tmp_path: Path) -> None:
    path = write(tmp_path, "layer, score\n1, 3.5\n0, -2\n")
    scores = read_scores(path)
    assert scores.layer_refs == (LayerRef(layer=1), LayerRef(layer=0))  # the order of the file
    assert scores.per_layer == (3.5, -2.0)
    assert scores.signal.model_dump() == {"name": "influence", "direction": "higher", "source": "influence.csv"}


def test_csv_with_modules_of_two_stacks(tmp_path: Path) -> None:
    rows = ["stack,layer,role,score"] + [f"{s},{i},{r},{i + 1}" for s in ("enc", "dec") for i in range(2) for r in "qv"]
    scores = read_scores(write(tmp_path, "\n".join(rows)), name="fisher", direction="lower")
    assert scores.per_layer == (1.0, 2.0, 1.0, 2.0)
    assert scores.per_module[Slot(1, "dec", "v")] == 2.0
    assert len(allocate(scores, 40, level="module").slots) == 8


@pytest.mark.parametrize(
    "document",
    [
        [1.0, 2, 3.5],
        [{"layer": 0, "score": 1.0}, {"layer": 1, "score": 2}, {"layer": 2, "score": 3.5}],
        {"scores": [1.0, 2, 3.5], "name": "similarity", "direction": "lower"},
    ],
)
def test_json_files(tmp_path: Path, document: Any) -> None:
    scores = read_scores(write(tmp_path, json.dumps(document), "scores.json"))
    assert scores.per_layer == (1.0, 2.0, 3.5)
    said = isinstance(document, dict)
    assert (scores.signal.name, scores.signal.direction) == (("similarity", "lower") if said else ("scores", "higher"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "header: expected 'layer' among the fields, found none"),
        ("layer,score\n", "expected one score a layer, found none"),
        ("layer,value\n0,1\n", "expected 'score' among the fields, found layer, value"),
        ("layer,score,colour\n0,1,red\n", "unknown field 'colour'; known are layer, score, stack, role"),
        ("layer,score\n0,1\n0,2\n", "line 3: layer 0 is there twice"),
        ("layer,score\n0,1\n2,2\n", r"layer 1 has no score \(1 missing\)"),
        ("layer,score\n0,nan\n", "line 2: score must be a finite number, found 'nan'"),
        ("layer,score\n0,inf\n", "line 2: score must be a finite number, found 'inf'"),
        ("layer,score\n0,\n", "line 2: score must be a finite number, found ''"),
        ("layer,score\n0\n", "line 2: expected 2 values"),
        ("layer,score\n0,1,2\n", "line 2: expected 2 values"),
        ("layer,score\n-1,1\n", "line 2: layer must be a whole number from 0, found '-1'"),
        ("layer,score\n1.5,1\n", "line 2: layer must be a whole number"),
        ("layer,score\n0,1\n999999999,1\n", "layers are missing: 2 scores, layers up to 999999999"),
        ("layer,score,role\n0,1,q\n1,1,\n", "some scores have a role and some have none"),
        ("[1, 2", "not valid JSON"),
        ("{}", "expected a list of scores, or an object with the list 'scores'"),
        ("[1, null]", "entry 1: score must be a finite number, found None"),
        ("[1, true]", "entry 1: score must be a finite number, found True"),
        ("[1, NaN]", "entry 1: score must be a finite number, found nan"),
        ('[{"layer": true, "score": 1}]', "entry 0: layer must be a whole number"),
        ('[{"layer": 0, "score": 1, "role": 3}]', "entry 0: stack and role must be text"),
        ('{"scores": [1], "direction": "up"}', "direction must be 'higher' or 'lower'"),
    ],
)
@pytest.mark.timeout(5)
def test_files_that_are_no_scores(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises((InvalidScoresError, InvalidParameterError), match=match):
        read_scores(write(tmp_path, text))


def test_scores_for_another_model(tmp_path: Path) -> None:
    path = write(tmp_path, "layer,score\n0,1\n1,2\n2,3\n")
    with pytest.raises(InvalidScoresError, match=r"layer 3 has no score \(1 missing\)"):
        read_scores(path, expected=[LayerRef(layer=i) for i in range(4)])
    with pytest.raises(InvalidScoresError, match="layer 2 is not one of the model's 2 layers"):
        read_scores(path, expected=[LayerRef(layer=i) for i in range(2)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidScoresError, match=r"nothing\.csv: cannot be read as scores"):
        read_scores(tmp_path / "nothing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidScoresError, match=r"binary\.csv: cannot be read as scores"):
        read_scores(tmp_path / "binary.csv")
    with pytest.raises(InvalidScoresError, match="cannot be read as scores"):
        read_scores(tmp_path)
