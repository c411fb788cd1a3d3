"""POST /v1/allocations answers as the library does, and refuses by name what it refuses."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from alphalloc.allocation import ROUNDINGS, RULES, ExpertSchedule, allocate
from alphalloc.errors import AllocationError

PATH = "/v1/allocations"


def test_answer_is_the_librarys_schedule_byte_for_byte(client: TestClient, question: dict[str, Any]) -> None:
    answer = client.post(PATH, json=question)
    expected = allocate([2.1, 2.9, 3.4, 2.6], 20, beta=2.5)
    assert answer.status_code in (200, 201)
    assert answer.headers["content-type"] == "application/json"
    assert answer.content == expected.to_json().encode()
    assert ExpertSchedule.from_json(answer.text).id == expected.id
    assert answer.json()["id"].startswith("al_")
    assert [layer["num_experts"] for layer in answer.json()["layers"]] == list(expected.num_experts)


def test_defaults_are_the_librarys(client: TestClient) -> None:
    answer = client.post(PATH, json={"source": {"alphas": [2.5, 4]}, "budget": {"total": 9}})
    assert answer.content == allocate([2.5, 4.0], 9).to_json().encode()


@pytest.mark.parametrize("rounding", sorted(ROUNDINGS))
@pytest.mark.parametrize("rule", sorted(name for name, rule in RULES.items() if None not in rule.parameters.values()))
def test_every_rule_and_rounding(client: TestClient, rule: str, rounding: str) -> None:
    alphas = [2.1, 2.9, 3.4, 2.6, 2.2, 3.0, 2.7, 2.4]
    body = {"source": {"alphas": alphas}, "budget": {"total": 40}, "method": rule, "rounding": rounding, "top_k": 3}
    answer = client.post(PATH, json={**body, "store": False})
    content = answer.content if answer.status_code == 200 else answer.json()["code"]
    assert (answer.status_code, content) == library_answer(alphas, 40, rule=rule, rounding=rounding, top_k=3)


def library_answer(alphas: list[float], total: int, **settings: Any) -> tuple[int, bytes | str]:
    try:
        return 200, allocate(alphas, total, **settings).to_json().encode()
    except AllocationError as exc:
        return 422, exc.code


def test_settings_of_a_rule_go_through_params(client: TestClient, question: dict[str, Any]) -> None:
    question |= {"method": "pattern", "params": {"pattern": [8, 2]}}
    assert client.post(PATH, json=question).json()["rule"] == {"name": "pattern", "params": {"pattern": [8, 2]}}
    expected = allocate([2.1, 2.9, 3.4, 2.6], 20, rule="pattern", params={"pattern": [8, 2]})
    assert client.post(PATH, json=question).content == expected.to_json().encode()


@settings(max_examples=50, deadline=None)
@given(
    alphas=st.lists(st.floats(1.01, 20), min_size=1, max_size=40),
    mean=st.integers(1, 9),
    beta=st.floats(-5, 5),
    top_k=st.integers(1, 4),
)
def test_same_question_same_bytes(client: TestClient, alphas: list[float], mean: int, beta: float, top_k: int) -> None:
    total = mean * len(alphas)
    body = {"source": {"alphas": alphas}, "budget": {"total": total}, "params": {"beta": beta}, "top_k": top_k}
    expected = allocate(alphas, total, beta=beta, top_k=top_k).to_json().encode()
    assert client.post(PATH, json={**body, "store": False}).content == expected
    assert client.post(PATH, json=body).content == expected


REFUSED = [
    ({"budget": {"total": 3}}, "infeasible-budget", "3 experts is below 4 layers"),
    ({"bounds": {"min": 1, "max": 4}}, "infeasible-budget", "20 experts is above 4 layers"),
    ({"bounds": {"min": 5, "max": 4}}, "invalid-parameter", "contradict"),
    ({"method": "alpha_pover"}, "unknown-method", "alpha_power"),
    ({"rounding": "floor"}, "unknown-rounding", "largest_remainder"),
    ({"params": {"gamma": 1}}, "invalid-parameter", "has no setting 'gamma'"),
    ({"params": {"beta": [1]}}, "invalid-parameter", "finite number"),
    ({"params": {"beta": 1e300}}, "invalid-parameter", "leaves the range of numbers"),
    ({"method": "uniform"}, "invalid-parameter", "has no setting 'beta'"),
]


@pytest.mark.parametrize(("change", "code", "detail"), REFUSED)
def test_what_the_library_refuses(
    client: TestClient, question: dict[str, Any], change: dict[str, Any], code: str, detail: str
) -> None:
    answer = client.post(PATH, json=question | change)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert detail in answer.json()["detail"]


INVALID = [
    ("/source/alphas/1", lambda q: q["source"]["alphas"].__setitem__(1, 0)),
    ("/source/alphas/1", lambda q: q["source"]["alphas"].__setitem__(1, -2.5)),
    ("/source/alphas/2", lambda q: q["source"]["alphas"].__setitem__(2, "2.5")),
    ("/source/alphas/2", lambda q: q["source"]["alphas"].__setitem__(2, None)),
    ("/source/alphas/2", lambda q: q["source"]["alphas"].__setitem__(2, True)),
    ("/source/alphas", lambda q: q["source"].update(alphas=[])),
    ("/source/alphas", lambda q: q["source"].update(alphas=[2.5] * 513)),
    ("/source/alphas", lambda q: q["source"].update(alphas={"0": 2.5})),
    ("/source/model", lambda q: q["source"].update(model="some/model")),
    ("/source", lambda q: q.pop("source")),
    ("/budget", lambda q: q.pop("budget")),
    ("/budget/total", lambda q: q["budget"].update(total=True)),
    ("/budget/total", lambda q: q["budget"].update(total=20.0)),
    ("/budget/total", lambda q: q["budget"].update(total="20")),
    ("/budget/total", lambda q: q["budget"].update(total=0)),
    ("/budget/total", lambda q: q["budget"].update(total=10**30)),
    ("/budget/per_layer_mean", lambda q: q["budget"].update(per_layer_mean=5)),
    ("/method", lambda q: q.update(method=7)),
    ("/method", lambda q: q.update(method="x" * 101)),
    ("/params", lambda q: q.update(params=[2.5])),
    ("/params/beta", lambda q: q.update(params={"beta": "2.5"})),
    ("/params/beta", lambda q: q.update(params={"beta": False})),
    ("/params/beta", lambda q: q.update(params={"beta": {"value": 1}})),
    ("/bounds/min", lambda q: q["bounds"].update(min=-1)),
    ("/bounds/max", lambda q: q["bounds"].update(max=0)),
    ("/bounds/most", lambda q: q["bounds"].update(most=9)),
    ("/rounding", lambda q: q.update(rounding=None)),
    ("/top_k", lambda q: q.update(top_k=0)),
    ("/top_k", lambda q: q.update(top_k=1.5)),
    ("/a~1b~0c", lambda q: q.update({"a/b~c": 1})),
]


@pytest.mark.parametrize(("pointer", "spoil"), INVALID)
def test_what_the_schema_refuses(client: TestClient, question: dict[str, Any], pointer: str, spoil: Any) -> None:
    body = deepcopy(question)
    spoil(body)
    answer = client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


def test_the_most_layers_pass(client: TestClient) -> None:
    body = {"source": {"alphas": [2.5] * 512}, "budget": {"total": 1024}}
    assert client.post(PATH, json=body).json()["totals"]["num_experts"] == 1024


def test_many_mistakes_are_cut_short(client: TestClient, question: dict[str, Any]) -> None:
    question["source"]["alphas"] = ["x"] * 512
    problem = client.post(PATH, json=question).json()
    assert len(problem["errors"]) == 20
    assert "and 511 more" in problem["detail"]
