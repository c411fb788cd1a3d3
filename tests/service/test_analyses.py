"""Analyses through the API: one job a content, waiting, pages, events, cancelling, deleting; the worker is played."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import AllocationRow, LayerEvent, Store, upgrade
from made_alphas import made_alphas
from starlette.testclient import TestClient

import alphalloc
from alphalloc.documents import canonical_json
from alphalloc.errors import StorageError

PATH = "/v1/analyses"
NOBODY = f"{PATH}/an_{'0' * 32}"
ALPHAS = made_alphas(6)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    upgrade(url)
    return Store.open(url)


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'a.db'}", rate_limit=None, max_queued=3, max_streams=2)
    app = create_app(settings, store)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def ask(name: str = "some/model", **more: Any) -> dict[str, Any]:
    return {"model": {"id": name}, **more}


def work(store: Store, *, fail: bool = False) -> str:
    """Do what a worker does with the next analysis; return its id."""
    deadline = time.monotonic() + 20
    while (analysis := store.claim("worker", 30)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if fail:
        error = {"type": "urn:alphalloc:problem:gated-model", "title": "Forbidden", "status": 403}
        store.finish(analysis.id, "worker", "failed", error={**error, "code": "gated-model", "detail": "accept it"})
        return analysis.id
    store.progress(analysis.id, "worker", 1, 2, name="a", layer_events=[LayerEvent("0", {"layer": 0})])
    store.finish(
        analysis.id,
        "worker",
        "succeeded",
        result=canonical_json(ALPHAS.model_dump(mode="json")).encode(),
        model=ALPHAS.model.model_dump(mode="json"),
        summary=ALPHAS.summary(),
    )
    return analysis.id


def test_from_queued_to_succeeded(client: TestClient, store: Store) -> None:
    first = client.post(PATH, json=ask())
    assert first.status_code == 202
    place = first.headers["location"]
    assert place == f"{PATH}/{first.json()['id']}"
    assert int(first.headers["retry-after"]) > 0
    assert (first.json()["status"], first.json()["progress"]) == ("queued", {"done": 0, "total": 0, "unit": "matrices"})
    assert client.post(PATH, json=ask(device="cpu", priority=5)).json()["id"] == first.json()["id"]
    assert client.post(PATH, json=ask(estimator="ks")).json()["id"] != first.json()["id"]
    assert client.get(f"{place}/layers").json()["code"] == "not-finished"
    store.request_cancel(client.post(PATH, json=ask(estimator="ks")).json()["id"])
    work(store)
    done = client.get(place).json()
    assert (done["status"], done["result"]["summary"]) == ("succeeded", ALPHAS.summary())
    assert client.post(PATH, json=ask()).status_code == 200
    assert client.get(f"{place}/alphas").content == ALPHAS.to_json().encode()


def test_layers_in_three_forms(client: TestClient, store: Store) -> None:
    client.post(PATH, json=ask())
    place = f"{PATH}/{work(store)}/layers"
    table = client.get(place).json()
    assert [row[table["columns"].index("alpha")] for row in table["rows"]] == list(ALPHAS.per_layer)
    matrices = client.get(place, params={"level": "matrix"}).json()
    assert [row[0] for row in matrices["rows"]] == [matrix.name for matrix in ALPHAS.matrices]
    lines = client.get(place, headers={"Accept": "text/csv"}).text.splitlines()
    assert len(lines) == len(ALPHAS.layers) + 1
    parquet = client.get(place, headers={"Accept": "application/vnd.apache.parquet"})
    assert parquet.content[:4] == parquet.content[-4:] == b"PAR1"
    refused = client.get(place, headers={"Accept": "text/html"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not-acceptable")


def test_allocations_from_analyses(client: TestClient, store: Store) -> None:
    total = 5 * len(ALPHAS.layers)
    by_model = {"source": {"model": {"id": "some/model"}}, "budget": {"total": total}}
    waiting = client.post("/v1/allocations", json=by_model)
    assert (waiting.status_code, waiting.json()["object"]) == (202, "analysis")
    by_analysis = {"source": {"analysis_id": waiting.json()["id"]}, "budget": {"per_layer_mean": 5}}
    assert client.post("/v1/allocations", json=by_analysis).status_code == 202
    work(store)
    expected = alphalloc.allocate(ALPHAS, total)
    first, second = (client.post("/v1/allocations", json=body) for body in (by_model, by_analysis))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.content == second.content == expected.to_json().encode()
    sure = client.post("/v1/allocations", json={**by_model, "confidence": True, "store": False})
    assert sure.content == alphalloc.allocate(ALPHAS, total, confidence=True).to_json().encode()
    fits = client.post("/v1/schedules/validate", params={"analysis_id": waiting.json()["id"]}, json=expected.document())
    assert fits.json() == {"valid": True, "errors": []}


def test_failures_have_a_reason_and_are_tried_anew(client: TestClient, store: Store) -> None:
    asked = client.post(PATH, json=ask()).json()["id"]
    assert work(store, fail=True) == asked
    failed = client.get(f"{PATH}/{asked}").json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "gated-model")
    assert client.get(f"{PATH}/{asked}/layers").json()["code"] == "analysis-failed"
    body = {"source": {"analysis_id": asked}, "budget": {"total": 20}}
    refused = client.post("/v1/allocations", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "analysis-failed")
    assert "accept it" in refused.json()["detail"]
    assert client.post(PATH, json=ask()).json()["id"] != asked


def test_waiting_ends_with_the_analysis(client: TestClient, store: Store) -> None:
    thread = threading.Timer(0.3, work, [store])
    thread.start()
    answer = client.post(PATH, json=ask(), headers={"Prefer": "wait=20"})
    thread.join()
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=20"


def test_polling_is_cheap_and_wakes_with_a_change(client: TestClient, store: Store) -> None:
    place = client.post(PATH, json=ask()).headers["location"]
    etag = client.get(place).headers["etag"]
    assert etag.startswith("W/")
    same = client.get(place, headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    thread = threading.Timer(0.3, store.claim, ["worker", 30])
    thread.start()
    changed = client.get(place, headers={"If-None-Match": etag, "Prefer": "wait=20"})
    thread.join()
    assert (changed.status_code, changed.json()["status"]) == (200, "running")


def test_pages_neither_repeat_nor_miss(client: TestClient, store: Store, tmp_path: Path) -> None:
    made = [store.submit(f"key{i}", {"model": {"id": f"m/{i % 2}"}}).analysis.id for i in range(7)]
    seen, cursor = [], None
    while True:
        page = client.get(PATH, params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [analysis["id"] for analysis in page["data"]]
        if len(seen) == 3:
            store.submit("late", {"model": {"id": "m/late"}})
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    assert len(client.get(PATH, params={"model": "m/1"}).json()["data"]) == 3
    assert client.get(PATH, params={"status": "running"}).json() == {"object": "list", "data": [], "next_cursor": None}
    for query, code in (
        ("cursor=x", "invalid-cursor"),
        ("limit=0", "invalid-request"),
        ("status=lost", "invalid-request"),
    ):
        assert client.get(f"{PATH}?{query}").json()["code"] == code


def events(client: TestClient, id: str, **headers: str) -> list[tuple[str, int, Any]]:
    text = client.get(f"{PATH}/{id}/events", headers=headers).text
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if "event:" in block
    ]
    return [(block["event"], int(block["id"]), json.loads(block["data"])) for block in blocks]


def test_events_go_on_where_they_were_cut(client: TestClient, store: Store) -> None:
    id = client.post(PATH, json=ask()).json()["id"]
    thread = threading.Timer(0.3, work, [store])
    thread.start()
    told = events(client, id)
    thread.join()
    assert {kind for kind, _, _ in told} >= {"layer", "done"}
    assert told[-1][0] == "done"
    assert [seq for _, seq, _ in told] == sorted({seq for _, seq, _ in told})
    assert events(client, id, **{"Last-Event-ID": str(told[0][1])}) == told[1:]
    assert client.get(f"{PATH}/{id}/events", headers={"Last-Event-ID": str(told[-1][1])}).status_code == 204


def test_streams_are_refused_before_they_start(client: TestClient, store: Store) -> None:
    id = client.post(PATH, json=ask()).json()["id"]
    assert client.get(f"{NOBODY}/events").status_code == 404
    assert client.get(f"{PATH}/{id}/events", headers={"Last-Event-ID": "x"}).status_code == 422
    followers = [threading.Thread(target=events, args=[client, id]) for _ in range(2)]
    for follower in followers:
        follower.start()
    deadline = time.monotonic() + 20
    while client.app.state.waiters.held < 2:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused = client.head(f"{PATH}/{id}/events")
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
    assert client.get(f"{PATH}/{id}/events").json()["code"] == "too-many-streams"
    # A long poll finds no place either, and answers at once instead.
    assert client.get(f"{PATH}/{id}", headers={"Prefer": "wait=60"}).json()["status"] == "queued"
    work(store)
    for follower in followers:
        follower.join(20)
    assert events(client, id)[-1][0] == "done"


def test_cancel_and_delete(client: TestClient, store: Store) -> None:
    id = client.post(PATH, json=ask()).json()["id"]
    running = client.delete(f"{PATH}/{id}")
    assert (running.status_code, running.json()["code"]) == (409, "still-running")
    for _ in range(2):
        cancelled = client.post(f"{PATH}/{id}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert client.delete(f"{PATH}/{id}").status_code == 204
    assert client.delete(f"{PATH}/{id}").status_code == 404
    client.post(PATH, json=ask())
    done = work(store)
    late = client.post(f"{PATH}/{done}/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "not-cancellable")
    for method, path in (("GET", NOBODY), ("POST", f"{NOBODY}/cancel"), ("GET", f"{NOBODY}/layers")):
        assert client.request(method, path).json()["code"] == "analysis-not-found"


def test_a_repeated_key_names_the_same_analysis(client: TestClient) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post(PATH, json=ask(), headers=key).json()["id"]
    client.post(f"{PATH}/{first}/cancel")
    again = client.post(PATH, json=ask(), headers=key)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first, "cancelled")
    other = client.post(PATH, json=ask("other/model"), headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    assert client.post(PATH, json=ask()).json()["id"] != first


def test_a_full_queue_says_when_to_come_back(client: TestClient) -> None:
    answers = [client.post(PATH, json=ask(f"m/{i}")) for i in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert (answers[3].json()["code"], int(answers[3].headers["retry-after"]) > 0) == ("queue-full", True)
    assert client.post(PATH, json=ask("m/0")).status_code == 202


REFUSED = [
    ({"model": {"id": "../../etc/passwd"}}, 422, ""),
    ({"model": {"id": "a/b", "revision": "../x"}}, 422, ""),
    ({"model": {"path": "/etc/passwd"}}, 403, ""),
    ({"model": {"id": "a/b", "path": "/x"}}, 422, "/model/path"),
    ({"model": {"id": 7}}, 422, "/model/id"),
    ({"model": {"id": "a/b", "token": "hf_x"}}, 422, "/model/token"),
    ({"model": {"url": "http://host/"}}, 422, "/model/id"),
    ({"model": {"id": "a/b"}, "estimator": "best"}, 422, "/estimator"),
    ({"model": {"id": "a/b"}, "device": "gpu"}, 422, "/device"),
    ({"model": {"id": "a/b"}, "priority": 1.0}, 422, "/priority"),
    ({"model": {"id": "a/b"}, "layer_filter": {"include": [""]}}, 422, "/layer_filter/include/0"),
    ({}, 422, "/model"),
]


@pytest.mark.parametrize(("body", "status", "pointer"), REFUSED)
def test_what_is_refused(client: TestClient, store: Store, body: Any, status: int, pointer: str) -> None:
    answer = client.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    if pointer:
        assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert store.list_analyses() == []


def test_without_a_disk_what_is_known_is_still_answered(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"source": {"alphas": [2.0, 3.0]}, "budget": {"total": 9}}
    id = client.post("/v1/allocations", json=known).json()["id"]

    def full(_rows: list[AllocationRow]) -> list[bool]:
        raise StorageError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(store, "put_allocations", full)
        new = {"source": {"alphas": [2.0, 3.5]}, "budget": {"total": 9}}
        refused = client.post("/v1/allocations", json=new)
        assert (refused.status_code, refused.json()["code"]) == (503, "storage-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert client.get(f"/v1/allocations/{id}").status_code == 200
        assert client.post("/v1/allocations", json=known).status_code == 200
        assert client.post("/v1/allocations", json={**new, "store": False}).status_code == 200
    assert client.post("/v1/allocations", json=new).status_code == 201
