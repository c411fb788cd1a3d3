"""Stored schedules: 201 then 200, immutable bytes, every export, validation, and what an API without a disk does."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet
import pytest
from alphalloc_service.routes.exports import MEDIA_TYPES
from starlette.testclient import TestClient

from alphalloc.allocation import ExpertSchedule, allocate
from alphalloc.export import EXPORTERS, ExportOptions, export

PATH = "/v1/allocations"


@pytest.fixture(scope="module")
def stored(client: TestClient) -> ExpertSchedule:
    body = {"source": {"alphas": [2.2, 2.9, 3.4, 2.7]}, "budget": {"total": 21}}
    assert client.post(PATH, json=body).status_code in (200, 201)
    return allocate([2.2, 2.9, 3.4, 2.7], 21)


def test_new_then_known(client: TestClient) -> None:
    body = {"source": {"alphas": [2.125, 3.0625]}, "budget": {"total": 11}}
    expected = allocate([2.125, 3.0625], 11)
    assert client.get(f"{PATH}/{expected.id}").status_code == 404
    answers = [client.post(PATH, json=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert {answer.content for answer in answers} == {expected.to_json().encode()}
    assert {answer.headers["location"] for answer in answers} == {f"{PATH}/{expected.id}"}
    found = client.get(f"{PATH}/{expected.id}")
    assert found.content == expected.to_json().encode()
    assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert found.headers["etag"] == answers[0].headers["etag"]
    assert not found.headers["etag"].startswith("W/")


def test_what_is_not_to_be_stored_is_not(client: TestClient) -> None:
    body = {"source": {"alphas": [2.375, 3.125]}, "budget": {"total": 13}, "store": False}
    answer = client.post(PATH, json=body)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert "location" not in answer.headers
    assert client.get(f"{PATH}/{answer.json()['id']}").status_code == 404


def test_mean_budget_is_the_total(client: TestClient) -> None:
    body = {"source": {"alphas": [2.1, 2.9, 3.3, 2.2]}, "budget": {"per_layer_mean": 2.5}, "store": False}
    assert client.post(PATH, json=body).json()["id"] == allocate([2.1, 2.9, 3.3, 2.2], 10).id
    answer = client.post(PATH, json={**body, "budget": {"per_layer_mean": 2.6}})
    assert (answer.status_code, answer.json()["code"]) == (422, "infeasible-budget")


def test_not_modified_and_head(client: TestClient, stored: ExpertSchedule) -> None:
    place = f"{PATH}/{stored.id}"
    etag = client.get(place).headers["etag"]
    again = client.get(place, headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    head = client.head(place)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)
    assert int(head.headers["content-length"]) == len(stored.to_json().encode())
    assert client.head(f"{PATH}/al_{'0' * 32}").status_code == 404


def test_every_exporter_is_offered(client: TestClient) -> None:
    assert set(MEDIA_TYPES) == {*EXPORTERS, "parquet"}
    assert {form["name"] for form in client.get("/v1/methods").json()["exports"]} == set(MEDIA_TYPES)


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_exports_are_the_librarys(client: TestClient, stored: ExpertSchedule, name: str) -> None:
    options = ExportOptions(r=4, target_modules=("q_proj", "v_proj"), average=True)
    query = {"format": name, "r": 4, "target_modules": "q_proj,v_proj", "average": True}
    answer = client.get(f"{PATH}/{stored.id}/export", params=query)
    expected = export(stored, name, options)
    assert answer.status_code == 200, answer.text
    assert answer.text == expected.text
    assert answer.headers["content-type"].startswith(MEDIA_TYPES[name])
    assert json.loads(answer.headers.get("x-alphalloc-notes", "[]")) == list(expected.notes)
    if MEDIA_TYPES[name] == "application/json":
        json.loads(answer.text)


def test_parquet(client: TestClient, stored: ExpertSchedule, tmp_path: Any) -> None:
    (tmp_path / "t.parquet").write_bytes(client.get(f"{PATH}/{stored.id}/export?format=parquet").content)
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table["num_experts"].to_pylist() == list(stored.num_experts)
    assert table["alpha"].to_pylist() == list(stored.alphas)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("format=xml", 406, "not-acceptable"),
        ("r=0", 422, "invalid-request"),
        ("lora_alpha=nan", 422, "invalid-request"),
        ("target_modules=a b", 422, "invalid-request"),
        ("format=mixlora", 422, "adapter-error"),
    ],
)
def test_exports_that_are_refused(
    client: TestClient, stored: ExpertSchedule, query: str, status: int, code: str
) -> None:
    answer = client.get(f"{PATH}/{stored.id}/export?{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_validation(client: TestClient, stored: ExpertSchedule) -> None:
    def check(document: Any) -> Any:
        answer = client.post("/v1/schedules/validate", json=document)
        assert answer.status_code == 200
        return answer.json()

    assert check(stored.document()) == {"valid": True, "errors": []}
    edited = stored.document()
    edited["layers"][0]["num_experts"] += 1
    assert not check(edited)["valid"]
    assert "the layers add up to" in check(edited)["errors"][0]["detail"]
    for other in ({}, [], 7, "text", {"kind": "LoRAExpertSchedule", "schema_version": "2.0"}):
        assert not check(other)["valid"]


@pytest.mark.parametrize("name", ["schedule-1.0.json", "alphas-1.0.json", "problem-1.0.json"])
def test_schemas(client: TestClient, name: str) -> None:
    answer = client.get(f"/v1/schemas/{name}")
    assert answer.headers["content-type"] == "application/schema+json"
    assert answer.json()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert client.get(f"/v1/schemas/{name}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_swagger_ui_comes_from_here(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!doctype", "")
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js"):
        assert f"docs/{name}" in page.text
        assert client.get(f"/docs/{name}").status_code == 200
    assert client.get("/docs/../app.py").status_code == 404
