"""Bringing a database to the present schema: by an explicit command, never by a worker on its own."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table, text

from alphalloc.errors import StorageError

from .database import WAIT_SECONDS, Database, parse_url, sqlite_path, storage_errors
from .tables import metadata

HEAD = "0002"  # the newest file of migrations/versions
MIGRATIONS = Path(__file__).with_name("migrations")
LOCK = 0x616C7068  # any number that no one else locks in this database


def upgrade(url: str) -> None:
    """Create or upgrade the database at ``url``. Several processes may do it at once: one does, the others wait.

    An SQLite file is made with its folder, readable by its owner alone. Raises StorageError.
    """
    place = parse_url(url)
    with storage_errors():
        if place.drivername == "sqlite":
            _prepare_file(sqlite_path(place))
        database = Database.open(url)
        try:
            with database.writing() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
                _require_known(revision(connection))
                _run_migrations(connection)
        finally:
            database.dispose()


def revision(connection: Connection) -> str | None:
    """Return the schema's revision in the database, None when it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()
    return None if found is None else str(found)


def require_current(connection: Connection) -> None:
    """Raise StorageError unless the database is at the schema of this release."""
    found = revision(connection)
    _require_known(found)
    if found != HEAD:
        what = "holds no tables of alphalloc yet" if found is None else f"is at schema {found}, not at {HEAD}"
        raise StorageError(f"the database {what}; run: alphalloc db upgrade")


def _require_known(found: str | None) -> None:
    if found is not None and not (MIGRATIONS / "versions" / f"v{found}.py").exists():
        raise StorageError(f"the database is at schema {found}, which a newer release made; upgrade alphalloc")


def _run_migrations(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes.update(connection=connection, metadata=metadata)
    command.upgrade(config, "head")


def _prepare_file(path: Path) -> None:
    """Create the file and switch it to write-ahead logging, which stays with it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as exc:
        raise StorageError(f"{path}: the database cannot be created: {exc.strerror or exc}") from exc
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            # Two processes that switch at once refuse each other without waiting.
            if "locked" not in str(exc) or time.monotonic() > give_up:
                raise
            time.sleep(0.05)
