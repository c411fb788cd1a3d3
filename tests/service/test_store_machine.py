"""Whatever workers, clients and clocks do, in any order: the store agrees with a queue of dictionaries, row by row."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from alphalloc_service.store import QueueFullError, Store
from alphalloc_service.store.tables import metadata
from databases import DATABASES, new_url
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from naive_queue import FINAL, NaiveQueue

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
MAX_ATTEMPTS, MAX_QUEUED = 3, 4
LEASES = st.sampled_from([10.0, 30.0])


class QueueMachine(RuleBasedStateMachine):
    """Clients submit and cancel, workers claim, renew and finish, or fall silent; clocks jump both ways.

    ``leases`` holds every lease that was ever given: those of crashed and overtaken workers are used again and again.
    """

    store: Store
    leases = Bundle("leases")
    analyses = Bundle("analyses")

    @initialize(target=leases)
    def two_jobs_run(self):
        with self.store._database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.naive = NaiveQueue(MAX_ATTEMPTS, MAX_QUEUED)
        self.now = 1_000_000.0
        type(self).clock = self.now
        self.claims = 0
        self.finished: dict[str, tuple[object, ...]] = {}
        self.versions: dict[str, int] = {}
        for content in "ab":
            self.submit(content, 0)
        return multiple(self.claim(10.0), self.claim(30.0))

    @rule(target=leases, content=st.sampled_from("abcdef"), seconds=LEASES)
    def submit_and_claim(self, content, seconds):
        self.submit(content, 1)
        return self.claim(seconds)

    @rule(target=analyses, content=st.sampled_from("abcdef"), priority=st.integers(-1, 1))
    def submit(self, content, priority):
        try:
            answer = self.store.submit(content, {}, priority=priority, max_queued=MAX_QUEUED)
        except QueueFullError:
            assert self.naive.submit("", content, priority) is None
            return multiple()
        expected = self.naive.submit(answer.analysis.id, content, priority)
        assert expected == (answer.analysis.id, answer.created)
        return answer.analysis.id

    @precondition(lambda self: any(self.naive.lapsed(row, self.now) for row in self.naive.rows))
    @rule(target=leases, seconds=LEASES)
    def take_over(self, seconds):
        return self.claim(seconds)

    @precondition(lambda self: any(row["status"] not in FINAL for row in self.naive.rows))
    @rule(target=leases, seconds=LEASES)
    def claim(self, seconds):
        self.claims += 1
        owner = f"worker{self.claims}"
        claimed = self.store.claim(owner, seconds, max_attempts=MAX_ATTEMPTS)
        expected = self.naive.claim(self.now, owner, seconds)
        assert (claimed and claimed.id) == expected
        return multiple() if claimed is None else (claimed.id, owner)

    @rule(lease=leases, seconds=LEASES)
    def renew(self, lease, seconds):
        assert self.store.renew(*lease, seconds) == self.naive.renew(self.now, *lease, seconds)

    @rule(lease=leases, done=st.integers(0, 9))
    def progress(self, lease, done):
        assert self.store.progress(*lease, done, 9) == self.naive.progress(*lease, done)

    @rule(lease=leases, status=st.sampled_from(["succeeded", "succeeded", "failed", "cancelled"]))
    def finish(self, lease, status):
        result = b"{}" if status == "succeeded" else None
        error = {"code": "broken"} if status == "failed" else None
        done = self.store.finish(*lease, status, result=result, error=error)
        assert done == self.naive.finish(*lease, status, "broken" if status == "failed" else None)

    @rule(lease=leases, count=st.booleans())
    def release(self, lease, count):
        assert self.store.release(*lease, count_attempt=count) == self.naive.release(*lease, count)

    @rule(lease=leases)
    def cancel_what_was_claimed(self, lease):
        self.cancel(lease[0])

    @rule(id=analyses)
    def cancel(self, id):
        if self.store.request_cancel(id) is not None:
            self.naive.cancel(self.now, id)

    @rule(id=analyses)
    def delete(self, id):
        if self.store.analysis(id) is None:
            assert not self.store.delete_analysis(id)
            return
        assert self.store.delete_analysis(id) == self.naive.delete(id)
        if self.store.analysis(id) is None:
            self.finished.pop(id, None)

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0, 29.0, 31.0, 3600.0, -5.0, -25.0, -70.0, -3600.0]))
    def time_passes_or_the_clock_is_set(self, seconds):
        self.now += seconds
        type(self).clock = self.now

    @invariant()
    def every_row_agrees(self):
        if not hasattr(self, "naive"):
            return
        found = {row.id: row for row in self.store.list_analyses(limit=1000)}
        assert set(found) == {row["id"] for row in self.naive.rows}
        for expected in self.naive.rows:
            row = found[expected["id"]]
            assert (row.status, row.owner, row.attempt) == (expected["status"], expected["owner"], expected["attempt"])
            assert (row.cancel_requested, row.done) == (expected["cancel"], expected["done"])
            assert row.lease_until == expected["until"]
            assert (row.error and row.error["code"]) == expected["code"]
            assert 0 <= row.attempt <= MAX_ATTEMPTS
            assert row.version >= self.versions.get(row.id, 0)
            self.versions[row.id] = row.version
            if row.status in FINAL:  # for good
                facts = (row, self.store.result(row.id))
                assert self.finished.setdefault(row.id, facts) == facts
        answering = [row["content"] for row in self.naive.rows if row["answers"]]
        assert len(answering) == len(set(answering))
        assert self.store.check() == []


@pytest.mark.parametrize("kind", DATABASES)
def test_the_store_agrees_with_a_naive_queue(kind):
    with tempfile.TemporaryDirectory() as folder:
        Machine = type("Machine", (QueueMachine,), {"clock": 0.0})
        Machine.store = Store.open(new_url(kind, Path(folder)), clock=lambda: Machine.clock)
        chosen = settings(
            max_examples=300 if LONG else 10,
            stateful_step_count=50 if LONG else 40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(Machine, settings=chosen)
        Machine.store.close()
