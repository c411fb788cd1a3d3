"""Who runs an analysis, on SQLite and PostgreSQL: claims, leases, lost workers, releases and cancelling."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from alphalloc_service.store import LayerEvent, Store
from stores import REQUEST, running


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


def test_the_database_is_asked_for_the_time_without_a_clock(url):
    store = Store.open(url)
    before = time.time()
    created = store.submit("a", REQUEST).analysis.created_at
    assert before - 1 <= created <= time.time() + 1
    store.close()
