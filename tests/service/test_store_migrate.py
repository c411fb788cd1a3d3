"""Databases are made and upgraded by a command alone, safely from two processes; all else refuses what is not ready."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alphalloc_service.store import Store, upgrade
from alphalloc_service.store.database import Database
from alphalloc_service.store.migrate import HEAD, MIGRATIONS
from alphalloc_service.store.tables import metadata
from databases import DATABASES, empty_url, new_url
from sqlalchemy import text

from alphalloc.errors import StorageError


@pytest.fixture(params=DATABASES)
def empty(request, tmp_path):
    return empty_url(request.param, tmp_path)


def test_the_migrations_make_exactly_the_tables_of_the_code(empty):
    upgrade(empty)
    database = Database.open(empty)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.dispose()


def test_the_head_named_in_the_code_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]
    assert {path.stem for path in (MIGRATIONS / "versions").glob("v*.py")} == {
        f"v{script.revision}" for script in ScriptDirectory.from_config(config).walk_revisions()
    }


def test_what_the_first_schema_held_is_there_after_the_upgrade(empty, monkeypatch):
    monkeypatch.setattr(command, "upgrade", partial(_upgrade_to, command.upgrade, "0001"))
    upgrade(empty)
    with pytest.raises(StorageError, match="is at schema 0001, not at .*; run: alphalloc db upgrade"):
        Store.open(empty)
    database = Database.open(empty)
    with database.writing() as connection:
        connection.execute(
            text(
                "INSERT INTO analyses (id, version, status, request, content_key, active_key, model_name, done, total,"
                " attempt, cancel_requested, created_at, finished_at, priority)"
                " VALUES ('an_1', 1, 'succeeded', '{}', 'a', 'a', 'm', 1, 1, 1, :no, 1.0, 2.0, 0)"
            ),
            {"no": False},
        )
        connection.execute(text("INSERT INTO results VALUES ('an_1', :document)"), {"document": b"{}"})
    database.dispose()
    monkeypatch.undo()
    upgrade(empty)
    store = Store.open(empty)
    assert (store.analysis("an_1").status, store.result("an_1")) == ("succeeded", b"{}")
    assert store.delete_analysis("an_1", purge=True)  # its spectra are not known: nothing is told to go
    assert store.purges() == []
    store.close()


def _upgrade_to(upgrade, revision, config, _):
    upgrade(config, revision)


def test_two_processes_may_upgrade_at_once_and_again(empty):
    code = "import sys; from alphalloc_service.store import upgrade; sys.stdin.readline(); upgrade(sys.argv[1])"
    command = [sys.executable, "-c", code, empty]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    upgrade(empty)
    store = Store.open(empty)
    store.ping()
    store.close()


def test_an_upgrade_that_fails_leaves_nothing_half_done(empty):
    database = Database.open(empty)
    if empty.startswith("sqlite"):
        Path(database.write.url.database).touch()
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE pings (something TEXT)"))  # the last table of the first migration
    with pytest.raises(StorageError, match="pings"):
        upgrade(empty)
    with database.writing() as connection:
        connection.execute(text("DROP TABLE pings"))
    upgrade(empty)
    Store.open(empty).close()
    database.dispose()


def test_a_database_that_is_not_ready_is_refused_with_what_to_do(empty, tmp_path):
    with pytest.raises(StorageError, match="run: alphalloc db upgrade"):
        Store.open(empty)
    assert list(tmp_path.iterdir()) == [], "looking at a database that is not there must not make one"
    database = Database.open(empty)
    upgrade(empty)
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for refuse in (Store.open, upgrade):
        with pytest.raises(StorageError, match="9999, which a newer release made; upgrade alphalloc"):
            refuse(empty)
    with database.writing() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
    with pytest.raises(StorageError, match="holds no tables of alphalloc yet"):
        Store.open(empty)
    database.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "mysql://root:secret@host/x",
        "postgresql://user:secret@host/x",
        "secret",
        "",
    ],
)
def test_other_urls_are_refused_without_repeating_them(url):
    with pytest.raises(StorageError, match="expected a database URL of the form sqlite:///FILE") as caught:
        upgrade(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_cannot_be_reached_is_named_without_its_password():
    for act in (upgrade, Store.open):
        with pytest.raises(StorageError, match="cannot be read or written now") as caught:
            act("postgresql+psycopg://user:secret@127.0.0.1:1/x")
        assert "secret" not in str(caught.value)


def test_an_sqlite_file_is_made_for_its_owner_alone_and_logs_ahead(tmp_path):
    path = tmp_path / "new folder" / "a%b.db"
    upgrade(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database = Database.open(f"sqlite:///{path}")
    with database.writing() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS]
    assert found == list(PRAGMAS.values())
    database.dispose()


PRAGMAS = {"busy_timeout": 10_000, "synchronous": 1, "foreign_keys": 1, "journal_mode": "wal"}


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the database cannot be created"):
        upgrade(f"sqlite:///{tmp_path / 'file' / 'a.db'}")


def test_a_writer_sees_nothing_change_between_its_look_and_its_write(tmp_path):
    """BEGIN IMMEDIATE: the second writer waits for the first, it does not read what is about to be old."""
    database = Database.open(new_url("sqlite", tmp_path))
    other = Database.open(f"sqlite:///{tmp_path / 'alphalloc.db'}")
    with database.writing() as connection:
        connection.execute(text("SELECT 1"))
        with closing(sqlite3.connect(tmp_path / "alphalloc.db", timeout=0, isolation_level=None)) as third:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                third.execute("BEGIN IMMEDIATE")
            third.execute("SELECT count(*) FROM analyses").fetchone()  # readers are not kept waiting
    with other.writing() as connection:
        connection.execute(text("SELECT 1"))
    database.dispose()
    other.dispose()
