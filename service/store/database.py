"""Connections: one engine that reads and one that writes, the clock, and foreign errors turned into StorageError."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Table,
    cast,
    create_engine,
    event,
    extract,
    func,
    literal,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from alphalloc.errors import MissingExtraError, StorageError

# Chosen here: how long a transaction waits for another one, or for a connection, before it gives up.
WAIT_SECONDS = 10


class UnstorableError(StorageError):
    """The database takes writes, but never this content; trying again is of no use."""


@dataclass(frozen=True)
class Database:
    """Two engines on one database (on PostgreSQL they are the same) and its clock (None: the database's own)."""

    read: Engine
    write: Engine
    clock: Callable[[], float] | None = None

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] | None = None) -> Database:
        """Return the database at ``url`` without touching it. Raises StorageError for a URL of another kind."""
        place = parse_url(url)
        if place.drivername == "sqlite":
            return cls(_sqlite(place, "BEGIN"), _sqlite(place, "BEGIN IMMEDIATE"), clock)
        engine = _postgresql(place)
        return cls(engine, engine, clock)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one consistent look. Raises StorageError."""
        with storage_errors(), self.read.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end, or rolled back by any error.

        On SQLite it has the right to write from its first statement on (BEGIN IMMEDIATE): what it read cannot change
        before it writes. Raises StorageError.
        """
        with storage_errors(), self.write.begin() as connection:
            yield connection

    def now(self) -> ColumnElement[float]:
        """The time as an SQL expression. Hosts may disagree about it, so PostgreSQL is asked for its own."""
        if self.clock is None and self.write.dialect.name == "postgresql":
            return cast(extract("epoch", func.clock_timestamp()), Double)
        return literal((self.clock or time.time)(), Double)

    def dispose(self) -> None:
        """Close all connections."""
        self.read.dispose()
        self.write.dispose()


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the database, its driver or the pool of connections complain about into a StorageError, what they say
    of the content itself into an UnstorableError.
    """
    try:
        yield
    except DataError as exc:
        raise UnstorableError(f"the database cannot hold this: {exc.orig}") from exc
    except DBAPIError as exc:
        reason = str(exc.orig).strip().partition("\n")[0] or type(exc.orig).__name__
        raise StorageError(f"the database cannot be read or written now: {reason}; try again later") from exc
    except sqlite3.Error as exc:
        raise StorageError(f"the database cannot be read or written now: {exc}; try again later") from exc
    except PoolTimeoutError as exc:
        raise StorageError("the database is busy: no connection became free; try again later") from exc


def insert_or_skip(connection: Connection, table: Table) -> Any:
    """Return an INSERT into ``table`` that leaves a row be that is there already (ON CONFLICT DO NOTHING)."""
    return insert(connection, table).on_conflict_do_nothing()


def insert(connection: Connection, table: Table) -> Any:
    """Return the database's own INSERT into ``table``, which knows ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def parse_url(url: str) -> URL:
    """Return ``url`` in its parts. Raises StorageError, whose message never repeats the URL: it may hold a password."""
    try:
        place = make_url(url)
    except ArgumentError as exc:
        raise StorageError(_EXPECTED) from exc
    if place.drivername == "sqlite":
        if not place.database or place.database.startswith((":", "file:")) or place.query:
            raise StorageError(f"{_EXPECTED}; a database in memory would be lost")
    elif place.drivername != "postgresql+psycopg":
        raise StorageError(_EXPECTED)
    return place


def sqlite_path(place: URL) -> Path:
    """Return the file of an SQLite URL."""
    return Path(place.database or "")


_EXPECTED = "expected a database URL of the form sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"


def _sqlite(place: URL, begin: str) -> Engine:
    # isolation_level None: the driver begins no transactions on its own, so that BEGIN is ours to choose.
    # One writer, because SQLite has one: threads then wait in line for it here and not by polling the file.
    pool = {"pool_size": 1, "max_overflow": 0} if begin == "BEGIN IMMEDIATE" else {"pool_size": 5, "max_overflow": 59}
    engine = create_engine(
        place,
        connect_args={"isolation_level": None, "timeout": WAIT_SECONDS},
        hide_parameters=True,
        pool_timeout=WAIT_SECONDS,
        **pool,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")  # with WAL no crash of a process loses a commit
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql(place: URL) -> Engine:
    try:
        return create_engine(
            place,
            # A host that vanished is noticed in seconds and not in the hours of the system's defaults.
            connect_args={
                "connect_timeout": WAIT_SECONDS,
                "keepalives_idle": WAIT_SECONDS,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 1000 * WAIT_SECONDS,
                "application_name": "alphalloc",
            },
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=15,
            pool_timeout=WAIT_SECONDS,
        )
    except ImportError as exc:
        raise MissingExtraError("PostgreSQL needs psycopg: pip install 'alphalloc[server,postgres]'") from exc
