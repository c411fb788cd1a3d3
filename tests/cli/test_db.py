"""`alphalloc db`: upgrade, prune and check, as an operator runs them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from alphalloc_service.store import Store


@pytest.fixture
def run(tmp_path):
    """Run the command on a database of its own."""
    environment = os.environ | {"ALPHALLOC_DATABASE_URL": f"sqlite:///{tmp_path / 'a.db'}"}

    def run(*arguments):
        command = [sys.executable, "-m", "alphalloc", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


def test_a_database_is_made_checked_and_pruned(run, tmp_path):
    assert "run: alphalloc db upgrade" in run("db", "check").stderr
    done = run("db", "upgrade")
    assert (done.returncode, done.stdout) == (0, "the database is at the schema of this release\n"), done.stderr
    store = Store.open(f"sqlite:///{tmp_path / 'a.db'}")
    id = store.submit("a", {}).analysis.id
    store.claim("w", 30)
    store.finish(id, "w", "failed")
    assert run("db", "check").stdout == "sound; 0 queued, 0 running, 0 succeeded, 1 failed, 0 cancelled\n"
    refused = run("db", "prune")
    assert refused.returncode == 2
    assert "nothing is old: give --jobs-older-than" in refused.stderr
    assert run("db", "prune", "--jobs-older-than", "1").stdout == "deleted 0 analyses, deleted 0 allocations\n"
    assert run("db", "prune", "--jobs-older-than", "0").stdout == "deleted 1 analyses, deleted 0 allocations\n"
    store.submit("b", {})
    store.close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("UPDATE analyses SET owner = 'nobody'")
        connection.commit()
    wrong = run("db", "check")
    assert wrong.returncode != 0
    assert "1 things are wrong" in wrong.stderr
    assert "an owner without running" in wrong.stderr
