"""`alphalloc db`: upgrade, prune and check, as an operator runs them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from alphalloc_service.store import Store

from alphalloc.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command on a database of its own; return its exit code, stdout and stderr."""
    monkeypatch.setenv("ALPHALLOC_DATABASE_URL", f"sqlite:///{tmp_path / 'a.db'}")

    def run(*arguments):
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_database_is_made_checked_and_pruned(run, tmp_path):
    assert "run: alphalloc db upgrade" in run("db", "check")[2]
    assert run("db", "upgrade") == (0, "the database is at the schema of this release\n", "")
    store = Store.open(f"sqlite:///{tmp_path / 'a.db'}")
    id = store.submit("a", {}).analysis.id
    store.claim("w", 30)
    store.finish(id, "w", "failed")
    assert run("db", "check") == (0, "sound; 0 queued, 0 running, 0 succeeded, 1 failed, 0 cancelled\n", "")
    code, _, error = run("db", "prune")
    assert code == 2
    assert "nothing is old: give --jobs-older-than" in error
    assert run("db", "prune", "--jobs-older-than", "1")[1] == "deleted 0 analyses, deleted 0 allocations\n"
    assert run("db", "prune", "--jobs-older-than", "0")[1] == "deleted 1 analyses, deleted 0 allocations\n"
    store.submit("b", {})
    store.close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("UPDATE analyses SET owner = 'nobody'")
        connection.commit()
    code, _, error = run("db", "check")
    assert code != 0
    assert "1 things are wrong" in error
    assert "an owner without running" in error
