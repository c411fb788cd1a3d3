"""The store answers the same on SQLite and PostgreSQL: submitting, looking, cancelling, events, allocations, keys."""

from __future__ import annotations

import math
import re
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import postgres
import pytest
from alphalloc_service.store import (
    AllocationRow,
    IdempotencyConflictError,
    KeyNameTakenError,
    LayerEvent,
    QueueFullError,
    Store,
    upgrade,
)
from databases import DATABASES, new_url

from alphalloc.errors import StorageError

REQUEST = {"model": {"id": "org/model", "revision": "main"}, "estimator": "ks", "priority": 0}


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return new_url(request.param, tmp_path)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(url, clock):
    store = Store.open(url, clock=clock)
    yield store
    store.close()


def running(store: Store, content: str = "a", owner: str = "w", **submit) -> str:
    id = store.submit(content, REQUEST, **submit).analysis.id
    assert store.claim(owner, 30).id == id
    return id


def test_a_new_analysis_has_every_field(store):
    analysis = store.submit("key", REQUEST, priority=3).analysis
    assert re.fullmatch(r"an_[0-9a-f]{32}", analysis.id)
    assert (analysis.status, analysis.version, analysis.priority) == ("queued", 1, 3)
    assert (analysis.request, analysis.content_key) == (REQUEST, "key")
    assert (analysis.done, analysis.total, analysis.attempt, analysis.cancel_requested) == (0, 0, 0, False)
    assert (analysis.created_at, analysis.started_at, analysis.finished_at) == (1000.0, None, None)
    assert analysis.owner is analysis.lease_until is analysis.model is analysis.error is analysis.summary is None
    assert store.analysis(analysis.id) == store.analysis_by_content("key") == analysis
    assert not analysis.finished


def test_one_content_has_one_analysis_until_it_fails_or_is_cancelled(store):
    first = store.submit("key", REQUEST)
    assert first.created
    again = store.submit("key", REQUEST)
    assert (again.created, again.analysis) == (False, first.analysis)
    store.claim("w", 30)
    assert store.submit("key", REQUEST).analysis.status == "running"
    assert store.finish(first.analysis.id, "w", "succeeded", result=b"{}")
    assert store.submit("key", REQUEST).analysis.id == first.analysis.id
    for status in ("failed", "cancelled"):
        id = running(store, status)
        assert store.finish(id, "w", status, error={"code": "x"})
        assert store.analysis_by_content(status) is None
        assert store.submit(status, REQUEST).created
        store.claim("w2", 30)


def test_numbers_grow_and_pages_are_newest_first(store):
    ids = [store.submit(f"k{i}", {"model": {"path": f"/m{i % 2}"}}).analysis.id for i in range(5)]
    pages, before = [], None
    while page := store.list_analyses(limit=2, before_seq=before):
        pages.append([analysis.id for analysis in page])
        before = page[-1].seq
    assert [id for page in pages for id in page] == ids[::-1]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [one.id for one in store.list_analyses(model="/m1")] == [ids[3], ids[1]]
    store.claim("w", 30)
    assert [one.id for one in store.list_analyses(status="running")] == [ids[0]]
    assert store.list_analyses(status="succeeded") == []


def test_the_number_of_a_deleted_analysis_is_not_given_again(store):
    id = running(store)
    store.finish(id, "w", "failed")
    seq = store.analysis(id).seq
    assert store.delete_analysis(id)
    assert store.submit("b", REQUEST).analysis.seq > seq


def test_an_idempotency_key_names_one_analysis_whatever_became_of_it(store):
    def submit(content, key="k", digest="d"):
        return store.submit(content, REQUEST, idempotency_key=key, request_digest=digest)

    first = submit("a")
    assert submit("a").analysis == first.analysis
    store.claim("w", 30)
    store.finish(first.analysis.id, "w", "failed")
    again = submit("a")
    assert (again.created, again.analysis.id, again.analysis.status) == (False, first.analysis.id, "failed")
    with pytest.raises(IdempotencyConflictError, match="another request"):
        submit("b", digest="other")
    assert store.analysis_by_content("b") is None
    fresh = submit("a", key="another")  # the failed one does not count without its key
    assert fresh.created
    assert submit("a", key="third").analysis.id == fresh.analysis.id  # found by content, and remembered under that key
    store.delete_analysis(first.analysis.id)
    assert submit("a").analysis.id == fresh.analysis.id


def test_a_full_queue_refuses_new_content_alone(store):
    first = store.submit("a", REQUEST, max_queued=2)
    store.submit("b", REQUEST, max_queued=2)
    with pytest.raises(QueueFullError, match="2 analyses wait"):
        store.submit("c", REQUEST, max_queued=2, idempotency_key="k", request_digest="d")
    assert not store.submit("a", REQUEST, max_queued=2).created
    store.claim("w", 30)
    assert store.submit("c", REQUEST, max_queued=2, idempotency_key="k", request_digest="e").created
    assert store.counts() == {"queued": 2, "running": 1, "succeeded": 0, "failed": 0, "cancelled": 0}
    assert first.created


def test_eight_hundred_concurrent_submissions_of_twenty_contents_make_twenty_analyses(url):
    stores = [Store.open(url) for _ in range(3)]  # as three replicas of the API
    start = threading.Barrier(32)

    def submit(client):
        start.wait()
        answers = []
        for i in range(25):
            number = client * 25 + i
            content = f"model{number % 20}"
            # Every second one with a key, each key used twice, at about the same time.
            key = f"key{number // 40}-{number % 20}" if number % 2 else None
            answers.append(stores[client % 3].submit(content, REQUEST, idempotency_key=key, request_digest=content))
        return answers

    with ThreadPoolExecutor(32) as pool:
        answers = [answer for part in pool.map(submit, range(32)) for answer in part]
    assert len(answers) == 800
    assert len({answer.analysis.id for answer in answers}) == 20
    assert sum(answer.created for answer in answers) == 20
    assert stores[0].counts()["queued"] == 20
    assert {(answer.analysis.content_key, answer.analysis.id) for answer in answers} == {
        (analysis.content_key, analysis.id) for analysis in stores[1].list_analyses(limit=100)
    }
    for store in stores:
        store.close()


def test_concurrent_claims_give_every_analysis_to_one_worker(url):
    stores = [Store.open(url) for _ in range(2)]
    for i in range(40):
        stores[0].submit(f"k{i}", REQUEST)
    start = threading.Barrier(8)

    def claim(worker):
        start.wait()
        taken = []
        while (analysis := stores[worker % 2].claim(f"w{worker}-{len(taken)}", 30)) is not None:
            taken.append(analysis.id)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [id for part in pool.map(claim, range(8)) for id in part]
    assert len(taken) == len(set(taken)) == 40
    for store in stores:
        store.close()


def test_claims_go_by_priority_then_age(store):
    for content, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
        store.submit(content, REQUEST, priority=priority)
    order = []
    while (analysis := store.claim(f"w{len(order)}", 30)) is not None:
        order.append(analysis.content_key)
    assert order == ["b", "d", "a", "c", "e"]


def test_cancelling(store, clock):
    queued = store.submit("q", REQUEST).analysis.id
    assert store.request_cancel(queued).status == "cancelled"
    assert store.request_cancel(queued).status == "cancelled"  # again is no error
    assert store.claim("w", 30) is None
    assert [event.data for event in store.events(queued)] == [{"status": "cancelled"}]

    asked = running(store, "r")
    stopping = store.request_cancel(asked)
    assert (stopping.status, stopping.cancel_requested) == ("running", True)
    assert store.request_cancel(asked) == stopping
    other = store.submit("r", REQUEST)
    assert other.created, "whoever asks now does not want the analysis that stops"
    assert store.finish(asked, "w", "succeeded", result=b"{}")
    assert (store.analysis(asked).status, store.result(asked)) == ("cancelled", None)  # a cancel was promised

    assert store.claim("w2", 30).id == other.analysis.id
    assert store.finish(other.analysis.id, "w2", "succeeded", result=b"{}")
    assert store.request_cancel(other.analysis.id).status == "succeeded"

    silent = running(store, "s")
    clock.now += 31
    assert store.request_cancel(silent).status == "cancelled"  # its worker is gone: nobody else would do it
    released = running(store, "t")
    store.request_cancel(released)
    assert store.release(released, "w")
    assert store.analysis(released).status == "cancelled"
    assert store.request_cancel("an_none") is None
    assert store.check() == []


def test_a_stale_owner_changes_nothing(store, clock):
    id = running(store, owner="first")
    clock.now += 31
    assert store.claim("second", 30).id == id
    before = store.analysis(id)
    assert not store.renew(id, "first", 30)
    assert not store.progress(id, "first", 5, 10, layer_events=[LayerEvent("0", {})])
    assert not store.finish(id, "first", "succeeded", result=b"stale")
    assert not store.release(id, "first")
    assert (store.analysis(id), store.events(id), store.result(id)) == (before, [], None)
    assert store.finish(id, "second", "succeeded", result=b"{}")
    assert not store.finish(id, "second", "failed")


def test_a_lease_that_is_renewed_is_kept(store, clock):
    id = running(store)
    for _ in range(5):
        clock.now += 29
        assert store.renew(id, "w", 30)
        assert store.claim("thief", 30) is None
    assert store.analysis(id).lease_until == clock.now + 30
    clock.now += 29.9
    assert store.claim("thief", 30) is None
    clock.now += 0.2
    assert store.claim("thief", 30).attempt == 2


def test_a_clock_set_back_does_not_keep_a_dead_worker_alive(store, clock):
    id = running(store)
    clock.now -= 3600
    assert store.claim("next", 30).id == id


def test_attempts_are_bounded(store, clock):
    id = running(store)
    for attempt in (2, 3):
        clock.now += 31
        assert store.claim(f"w{attempt}", 30, max_attempts=3).attempt == attempt
    clock.now += 31
    assert store.claim("w4", 30, max_attempts=3) is None
    failed = store.analysis(id)
    assert (failed.status, failed.error["code"], failed.error["status"]) == ("failed", "worker-lost", 500)
    assert "3 workers" in failed.error["detail"]
    assert [event.kind for event in store.events(id)] == ["done"]
    assert store.submit("a", REQUEST).created


def test_a_release_goes_back_to_the_queue_and_may_not_count(store):
    id = running(store)
    assert store.release(id, "w", count_attempt=False)
    released = store.analysis(id)
    assert (released.status, released.attempt, released.owner, released.lease_until) == ("queued", 0, None, None)
    assert store.claim("w2", 30).attempt == 1
    assert store.release(id, "w2")
    assert store.claim("w3", 30).attempt == 2


def test_events_are_numbered_and_progress_is_the_latest_alone(store):
    id = running(store)
    assert store.events(id) == []
    store.progress(id, "w", 1, 4, name="a")
    store.progress(id, "w", 2, 4, name="b", layer_events=[LayerEvent("0", {"alpha": 2.5})])
    kinds = [(event.kind, event.data) for event in store.events(id)]
    assert kinds == [("layer", {"alpha": 2.5}), ("progress", {"done": 2, "total": 4, "name": "b"})]
    last = store.events(id)[-1].seq
    layers = [LayerEvent("0", {"alpha": 2.5}), LayerEvent("1", {"alpha": math.pi})]
    store.finish(id, "w", "succeeded", result=b"{}", total=4, layer_events=layers)
    later = store.events(id, last)
    assert [(event.kind, event.data) for event in later] == [
        ("layer", {"alpha": math.pi}),  # the first was told before
        ("progress", {"done": 4, "total": 4}),
        ("done", {"status": "succeeded"}),
    ]
    numbers = [event.seq for event in store.events(id)]
    assert numbers == sorted(set(numbers))
    assert store.analysis(id).version == numbers[-1]
    assert store.events(id, numbers[-1]) == store.events("an_none") == []


def test_a_finished_analysis_has_its_result_and_its_facts(store, clock):
    id = running(store)
    clock.now += 5
    document = bytes(range(256)) * 1000
    model, summary = {"id": "org/model", "commit": "f" * 40}, {"mean_alpha": 0.1 + 0.2}
    assert store.finish(id, "w", "succeeded", result=document, model=model, summary=summary, total=7)
    analysis = store.analysis(id)
    assert (analysis.status, analysis.done, analysis.total) == ("succeeded", 7, 7)
    assert (analysis.model, analysis.summary, analysis.finished_at) == (model, summary, 1005.0)
    assert analysis.finished
    assert store.result(id) == document
    error = {"code": "gated-model", "detail": "é \x00 ☃"}
    failed = running(store, "b")
    store.finish(failed, "w", "failed", error=error)
    assert store.analysis(failed).error == error
    assert store.events(failed)[-1].data == {"status": "failed", "error": error}


def test_only_finished_analyses_are_deleted_with_all_they_have(store):
    id = running(store)
    assert not store.delete_analysis(id)
    store.finish(id, "w", "succeeded", result=b"{}", total=1)
    assert store.delete_analysis(id)
    assert store.analysis(id) is store.result(id) is None
    assert store.events(id) == []
    assert not store.delete_analysis(id)
    assert store.check() == []


def test_the_latest_result_of_a_model(store):
    for content, revision, estimator in (("a", None, "ks"), ("b", "main", "ks"), ("c", "main", "xmin_median")):
        request = {"model": {"id": "org/model", "revision": revision}, "estimator": estimator}
        id = store.submit(content, request).analysis.id
        store.claim("w", 30)
        store.finish(id, "w", "succeeded", result=b"{}")
    store.submit("d", {"model": {"id": "org/model"}, "estimator": "ks"})  # not finished

    def latest(model, *args):
        found = store.latest_result_for_model(model, *args)
        return None if found is None else found.content_key

    assert latest({"id": "org/model"}) == "c"
    assert latest({"id": "org/model"}, "ks") == "b"
    assert latest({"id": "org/model"}, "ks", "dev") is None
    assert latest({"id": "org/model", "revision": "main"}, "ks") == "b"
    assert latest({"path": "/elsewhere"}) is None


def test_text_that_no_database_can_hold_is_not_found(store):
    for text in ("a\x00b", "\ud800"):
        assert store.analysis(text) is store.result(text) is store.allocation(text) is None
        assert store.request_cancel(text) is None
        assert store.events(text) == store.list_analyses(model=text) == []
        assert not store.delete_analysis(text)
        assert store.latest_result_for_model({"id": text}) is None
    assert store.submit("a", {"model": {"path": "a\x00b"}}).analysis.request == {"model": {"path": "a\x00b"}}


def test_allocations_stay_as_they_were_first_written(store, clock):
    rows = [AllocationRow("al_1", b"one", {"a": 1}), AllocationRow("al_2", b"two", {}, "an_1")]
    assert store.put_allocations(rows) == [True, True]
    clock.now += 1
    later = [AllocationRow("al_2", b"other", {}), AllocationRow("al_3", b"3", {}), AllocationRow("al_3", b"4", {})]
    assert store.put_allocations(later) == [False, True, False]
    assert store.allocation("al_1") == AllocationRow("al_1", b"one", {"a": 1}, None, 1000.0)
    assert store.allocation("al_2") == AllocationRow("al_2", b"two", {}, "an_1", 1000.0)
    assert store.allocation("al_3").document == b"3"
    assert store.allocation("al_4") is None
    assert store.put_allocations([]) == []


def test_keys(store, clock):
    key = store.add_key("ci", "a" * 64, ["read", "write"])
    assert (key.name, key.scopes, key.created_at, key.revoked_at) == ("ci", ("read", "write"), 1000.0, None)
    assert store.key_by_hash("a" * 64) == key
    assert store.key_by_hash("b" * 64) is None
    with pytest.raises(KeyNameTakenError, match="'ci'"):
        store.add_key("ci", "b" * 64, [])
    clock.now += 1
    assert store.revoke_key("ci")
    assert store.key_by_hash("a" * 64) is None
    assert not store.revoke_key("ci")
    second = store.add_key("ci", "b" * 64, [])  # the name is free again
    assert [one.revoked_at for one in store.list_keys()] == [1001.0, None]
    assert store.revoke_key(second.id)
    assert not store.revoke_key("nobody")


def test_pruning_takes_what_is_old_and_finished(store, clock):
    def finished(content):
        id = running(store, content)
        store.finish(id, "w", "succeeded", result=b"{}", total=1)
        return id

    old = [finished(f"old{i}") for i in range(3)]
    waiting = store.submit("waits", REQUEST, idempotency_key="k", request_digest="d").analysis.id
    store.put_allocations([AllocationRow("al_old", b"", {})])
    clock.now += 100
    store.put_allocations([AllocationRow("al_new", b"", {})])
    assert store.claim("w", 1e6).id == waiting
    young = finished("young")
    assert store.prune(50, "analyses") == 3
    assert [store.analysis(id) for id in old] == [None] * 3
    assert store.analysis(young).status == "succeeded"
    assert store.prune(50, "allocations") == 1
    assert store.allocation("al_old") is None
    assert store.allocation("al_new") is not None
    assert store.prune(50, "analyses") == 0
    clock.now += 25 * 3600  # a key is remembered for a day
    store.prune(1e11, "analyses")
    assert store.submit("other", REQUEST, idempotency_key="k", request_digest="e").created
    assert store.check() == []


def test_the_database_is_asked_for_the_time_without_a_clock(url):
    store = Store.open(url)
    before = time.time()
    created = store.submit("a", REQUEST).analysis.created_at
    assert before - 1 <= created <= time.time() + 1
    store.close()


def test_check_names_rows_that_contradict_each_other(tmp_path):
    url = new_url("sqlite", tmp_path)
    store = Store.open(url)
    id = store.submit("a", REQUEST).analysis.id
    assert store.check() == []
    with closing(sqlite3.connect(tmp_path / "alphalloc.db")) as connection:
        connection.execute("UPDATE analyses SET status = 'succeeded'")
        connection.commit()
    assert store.check() == [f"{id}: succeeded without a result", f"{id}: finished without a time"]
    store.close()


def test_a_damaged_file_is_a_storage_error(tmp_path):
    url = new_url("sqlite", tmp_path)
    store = Store.open(url)
    for i in range(200):
        store.submit(f"k{i}", REQUEST)
    store.close()
    path = tmp_path / "alphalloc.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    with pytest.raises(StorageError, match=r"malformed|not a database|schema"):
        Store.open(url).list_analyses()


def test_a_server_that_went_away_is_a_storage_error_and_comes_back():
    folder = Path(tempfile.mkdtemp(prefix="alphalloc-postgres-"))  # pytest's folders are closed to PostgreSQL's user
    server = postgres.start(folder)
    try:
        upgrade(server.url("postgres"))
        store = Store.open(server.url("postgres"))
        id = store.submit("a", REQUEST).analysis.id
        server.stop(signal.SIGQUIT)
        for ask in (store.ping, store.counts, lambda: store.analysis(id), lambda: store.submit("b", REQUEST)):
            with pytest.raises(StorageError, match="cannot be read or written now"):
                ask()
        server = postgres.start(folder, port=server.port)
        store.ping()
        assert [analysis.id for analysis in store.list_analyses()] == [id]
        store.close()
    finally:
        server.stop()
        shutil.rmtree(folder)
