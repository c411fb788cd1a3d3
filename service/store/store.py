"""Store: every question that the API and the workers ask the database, each one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from .rows import MAX_ATTEMPTS, AllocationRow, Analysis, Event, Key, LayerEvent, Status, Submitted


class Store:
    """An open database. Safe to share between threads; every method raises StorageError when it cannot be reached."""

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] | None = None) -> Store:
        """Return the store at ``url``: "sqlite:///path" or "postgresql+psycopg://user@host/name".

        ``clock`` replaces the database's own (tests). Raises StorageError when it is not at the present schema.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close all connections."""
        raise NotImplementedError

    def ping(self) -> None:
        """Write and commit one row, as proof that writing works."""
        raise NotImplementedError

    def check(self) -> list[str]:
        """Return what is wrong inside the database, nothing when it is sound."""
        raise NotImplementedError

    def counts(self) -> dict[Status, int]:
        """Return the number of analyses of every status."""
        raise NotImplementedError

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
        raise NotImplementedError

    def analysis(self, id: str) -> Analysis | None:
        """Return the analysis, or None."""
        raise NotImplementedError

    def analysis_by_content(self, content_key: str) -> Analysis | None:
        """Return the queued, running or succeeded analysis of this content, without making one."""
        raise NotImplementedError

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
        raise NotImplementedError

    def request_cancel(self, id: str) -> Analysis | None:
        """Cancel a queued analysis, ask the worker of a running one to stop, leave a finished one; return it.

        The promise: an analysis whose cancelling was accepted ends as cancelled.
        """
        raise NotImplementedError

    def delete_analysis(self, id: str) -> bool:
        """Delete a finished analysis with its result and events; False when there is none that is finished."""
        raise NotImplementedError

    def events(self, id: str, after: int = 0) -> list[Event]:
        """Return the events with a larger ``seq`` than ``after``, in order."""
        raise NotImplementedError

    def result(self, id: str) -> bytes | None:
        """Return the ModelAlphas document (canonical JSON) of a succeeded analysis."""
        raise NotImplementedError

    def latest_result_for_model(
        self, model: dict[str, Any], estimator: str | None = None, revision: str | None = None
    ) -> Analysis | None:
        """Return the newest succeeded analysis whose request named this model ({"id": .., "revision"?} or {"path"})."""
        raise NotImplementedError

    # -- analyses, as workers see them; every write needs the lease and answers whether it was still there

    def claim(self, owner: str, lease_seconds: float, *, max_attempts: int = MAX_ATTEMPTS) -> Analysis | None:
        """Take the next analysis that waits or whose lease ran out. ``owner`` must be new for every claim.

        On the way, analyses without a live owner that were to be cancelled are, and those that used up their attempts
        fail with the code ``worker-lost``.
        """
        raise NotImplementedError

    def renew(self, id: str, owner: str, lease_seconds: float) -> bool:
        """Make the lease last ``lease_seconds`` from now."""
        raise NotImplementedError

    def progress(
        self, id: str, owner: str, done: int, total: int, *, name: str = "", layer_events: Iterable[LayerEvent] = ()
    ) -> bool:
        """Record that ``done`` of ``total`` matrices are measured, ``name`` the last."""
        raise NotImplementedError

    def finish(
        self,
        id: str,
        owner: str,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        result: bytes | None = None,
        model: dict[str, Any] | None = None,
        summary: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        layer_events: Sequence[LayerEvent] = (),
    ) -> bool:
        """End the analysis; one that was to be cancelled ends as cancelled, whatever its worker says."""
        raise NotImplementedError

    def release(self, id: str, owner: str, *, count_attempt: bool = True) -> bool:
        """Put the analysis back into the queue; ``count_attempt=False`` when it was not the analysis's fault."""
        raise NotImplementedError

    # -- allocations

    def put_allocations(self, rows: Sequence[AllocationRow]) -> list[bool]:
        """Write all rows in one transaction; answer for each whether it is new. The first of one id stays."""
        raise NotImplementedError

    def allocation(self, id: str) -> AllocationRow | None:
        """Return the allocation, or None."""
        raise NotImplementedError

    # -- keys

    def add_key(self, name: str, sha256_hex: str, scopes: Sequence[str]) -> Key:
        """Add a key. Raises KeyNameTakenError."""
        raise NotImplementedError

    def list_keys(self) -> list[Key]:
        """Return all keys, revoked ones too, oldest first."""
        raise NotImplementedError

    def revoke_key(self, name_or_id: str) -> bool:
        """Revoke the key of that name or id; False when none is in use."""
        raise NotImplementedError

    def key_by_hash(self, sha256_hex: str) -> Key | None:
        """Return the key in use whose secret has this SHA-256, or None."""
        raise NotImplementedError

    # -- retention

    def prune(self, older_than_seconds: float, what: Literal["analyses", "allocations"]) -> int:
        """Delete finished analyses, or allocations, older than that; return how many."""
        raise NotImplementedError
