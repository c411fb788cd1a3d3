"""The store says what is wrong: rows that contradict each other, a damaged file, a server that went away."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import postgres
import pytest
from alphalloc_service.store import Store, upgrade
from databases import new_url
from stores import REQUEST

from alphalloc.errors import StorageError


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
