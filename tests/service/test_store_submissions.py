"""Submitting to the store, on SQLite and PostgreSQL: one analysis for one content or key, and a queue with an end."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from alphalloc_service.store import IdempotencyConflictError, QueueFullError, Store
from stores import REQUEST, running


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
