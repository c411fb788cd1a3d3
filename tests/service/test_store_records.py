"""What the store keeps and gives back, on SQLite and PostgreSQL: pages, events, results, allocations, keys, pruning."""

from __future__ import annotations

import math

import pytest
from alphalloc_service.store import AllocationRow, KeyNameTakenError, LayerEvent
from alphalloc_service.store.upkeep import PURGE_SECONDS
from stores import REQUEST, running


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


def test_a_purge_tells_which_spectra_are_to_go(store, clock):
    made = (("a", ["k1", "k2"], True), ("b", ["k1"], False), ("c", None, True), ("d", [], True))
    for content, spectra, purge in made:
        id = running(store, content)
        assert not store.delete_analysis(id, purge=purge)  # it runs yet
        store.finish(id, "w", "succeeded", result=b"{}", total=1, spectra=spectra)
        clock.now += 1
        assert store.delete_analysis(id, purge=purge)
    failed = running(store, "e")
    store.finish(failed, "w", "failed", error={"code": "x"})
    assert store.delete_analysis(failed, purge=True)
    first, second = store.purges()
    assert (first.spectra, first.created_at, second.spectra) == (("k1", "k2"), 1001.0, ())
    assert store.purges(first.seq) == [second]
    clock.now += PURGE_SECONDS
    store.prune(1e9, "analyses")
    assert store.purges() == [second]


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
