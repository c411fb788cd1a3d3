"""Leases: which worker has which analysis, and until when.

A claim gives an analysis to an owner for some seconds. Whoever renews in time keeps it; when the owner falls silent the
next claim gives it to another. Every write of an owner needs the lease (``owner`` is still its own, the status still
``running``), so a process that was thought dead and wakes up changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select, update

from . import analyses as rows
from .analyses import COLUMNS, Now, lapsed
from .database import insert
from .rows import Analysis, LayerEvent
from .tables import analyses, results

WORKER_LOST = {
    "type": "urn:alphalloc:problem:worker-lost",
    "title": "Internal Server Error",
    "status": 500,
    "code": "worker-lost",
}


def work_to_do(connection: Connection, now: Now) -> bool:
    """Whether a claim could find anything: a look that takes no lock."""
    return bool(connection.scalar(select(exists().where(_available(now)))))


def claim(connection: Connection, now: Now, owner: str, lease_seconds: float, max_attempts: int) -> Analysis | None:
    """Take the next analysis; see ``Store.claim``."""
    _end_hopeless(connection, now, max_attempts)
    following = (
        select(analyses.c.seq)
        .where(_available(now))
        .order_by(analyses.c.priority.desc(), analyses.c.seq)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL: what another worker is taking is passed over, not waited for
        .scalar_subquery()
    )
    taken = (
        update(analyses)
        .where(analyses.c.seq == following)
        .values(
            status="running",
            owner=owner,
            lease_until=now + lease_seconds,
            lease_seconds=lease_seconds,
            attempt=analyses.c.attempt + 1,
            started_at=func.coalesce(analyses.c.started_at, now),
            version=analyses.c.version + 1,
        )
    )
    row = connection.execute(taken.returning(*COLUMNS)).first()
    return None if row is None else rows.analysis_of(row)


def _available(now: Now) -> ColumnElement[bool]:
    return or_(analyses.c.status == "queued", lapsed(now))


def _end_hopeless(connection: Connection, now: Now, max_attempts: int) -> None:
    """End what no worker has and none should take: cancelled meanwhile, or begun too often."""
    hopeless = and_(_available(now), or_(analyses.c.cancel_requested, analyses.c.attempt >= max_attempts))
    wanted = select(analyses.c.id, analyses.c.attempt, analyses.c.cancel_requested).where(hopeless)
    for row in connection.execute(wanted.with_for_update(skip_locked=True)).all():
        if row.cancel_requested:
            rows.end(connection, now, row.id, "cancelled")
        else:
            detail = f"{row.attempt} workers took this analysis and fell silent; submit it again to try once more"
            rows.end(connection, now, row.id, "failed", error={**WORKER_LOST, "detail": detail})


def renew(connection: Connection, now: Now, id: str, owner: str, lease_seconds: float) -> bool:
    """Make the lease last ``lease_seconds`` from now."""
    renewed = update(analyses).where(_owned(id, owner)).values(lease_until=now + lease_seconds)
    return connection.execute(renewed.values(lease_seconds=lease_seconds).returning(analyses.c.seq)).first() is not None


def progress(
    connection: Connection, id: str, owner: str, done: int, total: int, name: str, layers: list[LayerEvent]
) -> bool:
    """Record how far the analysis is, with its events."""
    recorded = (
        update(analyses)
        .where(_owned(id, owner))
        .values(done=done, total=total, version=analyses.c.version + len(layers) + 1)
    )
    row = connection.execute(recorded.returning(analyses.c.version)).first()
    if row is None:
        return False
    rows.tell_layers(connection, id, row.version - len(layers), layers)
    data = {"done": done, "total": total} | ({"name": name} if name else {})
    rows.tell(connection, id, "progress", "progress", row.version, data)
    return True


def finish(
    connection: Connection,
    now: Now,
    id: str,
    owner: str,
    status: str,
    *,
    result: bytes | None,
    spectra: Sequence[str] | None,
    layers: list[LayerEvent],
    total: int | None,
    **values: Any,
) -> bool:
    """End the analysis; see ``Store.finish``."""
    held = connection.execute(select(analyses.c.cancel_requested).where(_owned(id, owner)).with_for_update()).first()
    if held is None:
        return False
    if held.cancel_requested:
        rows.end(connection, now, id, "cancelled")
        return True
    if total is not None:
        progress(connection, id, owner, total, total, "", layers)
    if result is not None:
        keys = None if spectra is None else json.dumps(list(spectra))
        connection.execute(insert(connection, results).values(analysis_id=id, document=result, spectra=keys))
    rows.end(connection, now, id, status, **values)
    return True


def release(connection: Connection, now: Now, id: str, owner: str, *, count_attempt: bool) -> bool:
    """Put the analysis back into the queue, or end it when it was to be cancelled."""
    held = connection.execute(select(analyses.c.cancel_requested).where(_owned(id, owner)).with_for_update()).first()
    if held is None:
        return False
    if held.cancel_requested:
        rows.end(connection, now, id, "cancelled")
        return True
    back = (
        update(analyses)
        .where(analyses.c.id == id)
        .values(
            status="queued",
            owner=None,
            lease_until=None,
            attempt=analyses.c.attempt - (0 if count_attempt else 1),
            version=analyses.c.version + 1,
        )
    )
    connection.execute(back)
    return True


def _owned(id: str, owner: str) -> ColumnElement[bool]:
    return and_(analyses.c.id == id, analyses.c.owner == owner, analyses.c.status == "running")
