"""Store: every question that the API and the workers ask the database, each one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from alphalloc.errors import StorageError

from . import analyses, leases, records, tables, upkeep
from .database import Database, parse_url, sqlite_path
from .migrate import require_current
from .rows import MAX_ATTEMPTS, AllocationRow, Analysis, Event, Key, LayerEvent, Purge, Submitted


class Store:
    """An open database. Safe to share between threads; every method raises StorageError when it cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] | None = None) -> Store:
        """Return the store at ``url``: "sqlite:///path" or "postgresql+psycopg://user@host/name".

        ``clock`` replaces the database's own (tests). Raises StorageError when it is not at the present schema.
        """
        database = Database.open(url, clock)
        store = cls(database)
        try:
            place = parse_url(url)
            if place.drivername == "sqlite" and not sqlite_path(place).exists():
                raise StorageError(f"there is no database at {sqlite_path(place)}; run: alphalloc db upgrade")
            with database.reading() as connection:
                require_current(connection)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close all connections."""
        self._database.dispose()

    def ping(self) -> None:
        """Write and commit one row, as proof that writing works."""
        with self._database.writing() as connection:
            upkeep.ping(connection, self._database.now())

    def check(self) -> list[str]:
        """Return what is wrong inside the database, nothing when it is sound."""
        with self._database.reading() as connection:
            return upkeep.check(connection)

    def counts(self) -> dict[str, int]:
        """Return the number of analyses of every status."""
        with self._database.reading() as connection:
            return upkeep.counts(connection)

    # -- analyses, as clients see them

    def submit(
        self,
        content_key: str,
        request: dict[str, Any],
        *,
        priority: int = 0,
        max_queued: int = 1000,
        idempotency_key: str | None = None,
        request_digest: str | None = None,
    ) -> Submitted:
        """Return the analysis of this content: the queued, running or succeeded one, else a new one.

        An analysis that failed or was cancelled does not count. With ``idempotency_key`` the analysis that the same
        key and ``request_digest`` named before, whatever became of it; IdempotencyConflictError when the digest
        differs. Raises QueueFullError when ``max_queued`` wait already and a new one would be needed.
        """
        with self._database.writing() as connection:
            return analyses.submit(
                connection,
                self._database.now(),
                content_key,
                request,
                priority=priority,
                max_queued=max_queued,
                idempotency_key=idempotency_key,
                request_digest=request_digest or content_key,
            )

    def analysis(self, id: str) -> Analysis | None:
        """Return the analysis, or None."""
        if not analyses.storable(id):
            return None
        with self._database.reading() as connection:
            return analyses.by_id(connection, id)

    def analysis_by_content(self, content_key: str) -> Analysis | None:
        """Return the queued, running or succeeded analysis of this content, without making one."""
        with self._database.reading() as connection:
            return analyses.by_content(connection, content_key)

    def list_analyses(
        self,
        *,
        limit: int = 20,
        before_seq: int | None = None,
        status: str | None = None,
        model: str | None = None,
    ) -> list[Analysis]:
        """Return up to ``limit`` analyses, newest first, those with a smaller ``seq`` than ``before_seq`` only.

        ``model``: the id or path of the request.
        """
        table = tables.analyses.c
        conditions = [] if before_seq is None else [table.seq < before_seq]
        for column, wanted in ((table.status, status), (table.model_name, model)):
            if wanted is not None:
                if not analyses.storable(wanted):
                    return []
                conditions.append(column == wanted)
        with self._database.reading() as connection:
            return analyses.newest(connection, limit, *conditions)

    def request_cancel(self, id: str) -> Analysis | None:
        """Cancel a queued analysis, ask the worker of a running one to stop, leave a finished one; return it.

        The promise: an analysis whose cancelling was accepted ends as cancelled.
        """
        if not analyses.storable(id):
            return None
        with self._database.writing() as connection:
            return analyses.request_cancel(connection, self._database.now(), id)

    def delete_analysis(self, id: str, *, purge: bool = False) -> bool:
        """Delete a finished analysis with its result and events; False when there is none that is finished.

        ``purge``: the spectra that it was made of are to be deleted too, by the workers that have them.
        """
        if not analyses.storable(id):
            return False
        with self._database.writing() as connection:
            return analyses.delete_finished(connection, self._database.now(), id, purge=purge)

    def events(self, id: str, after: int = 0) -> list[Event]:
        """Return the events with a larger ``seq`` than ``after``, in order."""
        if not analyses.storable(id):
            return []
        with self._database.reading() as connection:
            return analyses.events_after(connection, id, after)

    def result(self, id: str) -> bytes | None:
        """Return the ModelAlphas document (canonical JSON) of a succeeded analysis."""
        if not analyses.storable(id):
            return None
        with self._database.reading() as connection:
            return analyses.result(connection, id)

    def latest_result_for_model(
        self, model: dict[str, Any], estimator: str | None = None, revision: str | None = None
    ) -> Analysis | None:
        """Return the newest succeeded analysis whose request named this model ({"id": .., "revision"?} or {"path"})."""
        table = tables.analyses.c
        name = model.get("id") or model.get("path") or ""
        wanted = (
            (table.model_name, name),
            (table.estimator, estimator),
            (table.model_revision, revision if revision is not None else model.get("revision")),
        )
        if not all(text is None or analyses.storable(text) for _, text in wanted):
            return None
        conditions = [column == text for column, text in wanted if text is not None]
        with self._database.reading() as connection:
            found = analyses.newest(connection, 1, table.status == "succeeded", *conditions)
        return found[0] if found else None

    # -- analyses, as workers see them; every write needs the lease and answers whether it was still there

    def claim(self, owner: str, lease_seconds: float, *, max_attempts: int = MAX_ATTEMPTS) -> Analysis | None:
        """Take the next analysis that waits or whose lease ran out. ``owner`` must be new for every claim.

        On the way, analyses without a live owner that were to be cancelled are, and those that used up their attempts
        fail with the code ``worker-lost``.
        """
        with self._database.reading() as connection:
            if not leases.work_to_do(connection, self._database.now()):
                return None  # most claims: the writers are not disturbed
        with self._database.writing() as connection:
            return leases.claim(connection, self._database.now(), owner, lease_seconds, max_attempts)

    def renew(self, id: str, owner: str, lease_seconds: float) -> bool:
        """Make the lease last ``lease_seconds`` from now."""
        with self._database.writing() as connection:
            return leases.renew(connection, self._database.now(), id, owner, lease_seconds)

    def progress(
        self, id: str, owner: str, done: int, total: int, *, name: str = "", layer_events: Iterable[LayerEvent] = ()
    ) -> bool:
        """Record that ``done`` of ``total`` matrices are measured, ``name`` the last."""
        with self._database.writing() as connection:
            return leases.progress(connection, id, owner, done, total, name, list(layer_events))

    def finish(
        self,
        id: str,
        owner: str,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        result: bytes | None = None,
        spectra: Sequence[str] | None = None,
        model: dict[str, Any] | None = None,
        summary: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        total: int | None = None,
        layer_events: Sequence[LayerEvent] = (),
    ) -> bool:
        """End the analysis; one that was to be cancelled ends as cancelled, whatever its worker says.

        ``total`` of a succeeded one: its matrices, all of them done; ``layer_events``: those not told before;
        ``spectra``: the keys of the spectra that ``result`` was made of.
        """
        with self._database.writing() as connection:
            return leases.finish(
                connection,
                self._database.now(),
                id,
                owner,
                status,
                result=result,
                spectra=spectra,
                layers=list(layer_events),
                total=total,
                model=model,
                summary=summary,
                error=error,
            )

    def release(self, id: str, owner: str, *, count_attempt: bool = True) -> bool:
        """Put the analysis back into the queue; ``count_attempt=False`` when it was not the analysis's fault."""
        with self._database.writing() as connection:
            return leases.release(connection, self._database.now(), id, owner, count_attempt=count_attempt)

    def purges(self, after: int = 0) -> list[Purge]:
        """Return which spectra were to be deleted, those with a larger ``seq`` than ``after``, in order."""
        with self._database.reading() as connection:
            return analyses.purges_after(connection, after)

    # -- allocations

    def put_allocations(self, rows: Sequence[AllocationRow]) -> list[bool]:
        """Write all rows in one transaction; answer for each whether it is new. The first of one id stays."""
        with self._database.writing() as connection:
            return records.put_allocations(connection, self._database.now(), rows)

    def allocation(self, id: str) -> AllocationRow | None:
        """Return the allocation, or None."""
        if not analyses.storable(id):
            return None
        with self._database.reading() as connection:
            return records.allocation(connection, id)

    # -- keys

    def add_key(self, name: str, sha256_hex: str, scopes: Sequence[str]) -> Key:
        """Add a key. Raises KeyNameTakenError."""
        with self._database.writing() as connection:
            return records.add_key(connection, self._database.now(), name, sha256_hex, scopes)

    def list_keys(self) -> list[Key]:
        """Return all keys, revoked ones too, oldest first."""
        with self._database.reading() as connection:
            return records.list_keys(connection)

    def revoke_key(self, name_or_id: str) -> bool:
        """Revoke the key of that name or id; False when none is in use."""
        with self._database.writing() as connection:
            return records.revoke_key(connection, self._database.now(), name_or_id)

    def key_by_hash(self, sha256_hex: str) -> Key | None:
        """Return the key in use whose secret has this SHA-256, or None."""
        with self._database.reading() as connection:
            return records.key_by_hash(connection, sha256_hex)

    # -- retention

    def prune(self, older_than_seconds: float, what: Literal["analyses", "allocations"]) -> int:
        """Delete finished analyses, or allocations, older than that; return how many."""
        gone = 0
        while True:
            with self._database.writing() as connection:
                batch = upkeep.prune_batch(connection, self._database.now(), older_than_seconds, what)
            gone += batch
            if batch < upkeep.BATCH:
                return gone
