"""Group commit: a future is resolved after its commit and never before, whatever the database does."""

from __future__ import annotations

import sqlite3
from concurrent.futures import Future, wait
from contextlib import closing

import pytest
from alphalloc_service.store import AllocationRow, AllocationWriter, Store
from databases import DATABASES, new_url

from alphalloc.errors import StorageError


@pytest.fixture(params=DATABASES)
def store(request, tmp_path):
    store = Store.open(new_url(request.param, tmp_path))
    yield store
    store.close()


def row(number: int, document: bytes = b"x") -> AllocationRow:
    return AllocationRow(f"al_{number}", document, {"n": number})


def test_every_row_is_there_when_its_future_says_so(store):
    writer = AllocationWriter(store)
    futures: list[Future[bool]] = [writer.put(row(number % 700)) for number in range(1000)]
    for number, future in enumerate(futures):
        assert future.result(60) == (number < 700)
        assert store.allocation(f"al_{number % 700}") is not None
    writer.close()


def test_closing_writes_what_waits_and_refuses_the_rest(store):
    writer = AllocationWriter(store, max_batch=10)
    futures = [writer.put(row(number)) for number in range(95)]
    writer.close()
    assert all(future.done() and future.result() for future in futures)
    with pytest.raises(StorageError, match="is stopping"):
        writer.put(row(1000))
    writer.close()


def locked(path):
    """A transaction of someone else that keeps all writers out."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


def test_a_batch_is_one_transaction(tmp_path):
    store = Store.open(new_url("sqlite", tmp_path))
    writer = AllocationWriter(store, max_batch=256)
    with locked(tmp_path / "alphalloc.db"):
        futures = [writer.put(row(number)) for number in range(200)]
    assert all(future.result(60) for future in futures)
    with closing(sqlite3.connect(tmp_path / "alphalloc.db")) as connection:
        # The first may have gone alone, the others waited together for the lock: a time a transaction.
        (times,) = connection.execute("SELECT count(DISTINCT created_at) FROM allocations").fetchone()
    assert times <= 3
    writer.close()
    store.close()


def test_more_than_may_wait_are_refused_at_once(tmp_path):
    store = Store.open(new_url("sqlite", tmp_path))
    writer = AllocationWriter(store, max_pending=5, max_batch=2)
    with locked(tmp_path / "alphalloc.db"):
        accepted = []
        with pytest.raises(StorageError, match="too many allocations wait"):
            accepted += [writer.put(row(number)) for number in range(8)]
    writer.close()
    store.close()


def test_a_commit_that_fails_fails_every_waiter_and_the_next_rows_are_tried_anew(tmp_path):
    store = Store.open(new_url("sqlite", tmp_path))
    writer = AllocationWriter(store)
    with closing(sqlite3.connect(tmp_path / "alphalloc.db")) as connection:
        connection.execute("ALTER TABLE allocations RENAME TO elsewhere")
        connection.commit()
        futures = [writer.put(row(number)) for number in range(20)]
        wait(futures, 60)
        for future in futures:
            assert isinstance(future.exception(), StorageError)
        connection.execute("ALTER TABLE elsewhere RENAME TO allocations")
        connection.commit()
    assert writer.put(row(0)).result(60)
    writer.close()
    store.close()


def test_what_its_caller_gave_up_before_is_not_written(tmp_path):
    store = Store.open(new_url("sqlite", tmp_path))
    writer = AllocationWriter(store, max_batch=1)
    with locked(tmp_path / "alphalloc.db"):
        first, second = writer.put(row(1)), writer.put(row(2))
        while not first.running():  # it waits for the lock
            pass
        assert second.cancel()
    assert first.result(60)
    writer.close()
    assert store.allocation("al_2") is None
    store.close()
