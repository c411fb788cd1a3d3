"""Upkeep: is the database alive, is it sound, and what may go from it."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, and_, delete, func, or_, select, text

from .analyses import Now
from .database import insert
from .rows import FINAL
from .tables import allocations, analyses, idempotency, pings, purges, results

BATCH = 500  # rows of one transaction, so that others need not wait long
IDEMPOTENCY_SECONDS = 24 * 3600.0  # Stripe's: keys are remembered for at least a day
PURGE_SECONDS = 90 * 24 * 3600.0  # for which a worker may be away and still hear of a purge; chosen here


def ping(connection: Connection, now: Now) -> None:
    """Write one row."""
    beat = insert(connection, pings).values(id=1, at=now)
    connection.execute(beat.on_conflict_do_update(index_elements=[pings.c.id], set_={"at": beat.excluded.at}))


def counts(connection: Connection) -> dict[str, int]:
    """Return the number of analyses of every status."""
    found: dict[str, int] = dict.fromkeys(("queued", "running", *FINAL), 0)
    for status, number in connection.execute(select(analyses.c.status, func.count()).group_by(analyses.c.status)):
        found[status] = number
    return found


def check(connection: Connection) -> list[str]:
    """Return what is wrong: in the file (SQLite), and between rows that have to agree."""
    wrong = []
    if connection.dialect.name == "sqlite":
        wrong += [f"integrity: {line}" for line in connection.scalars(text("PRAGMA integrity_check")) if line != "ok"]
        wrong += [f"foreign key: {tuple(row)}" for row in connection.execute(text("PRAGMA foreign_key_check"))]
    with_result = select(results.c.analysis_id)
    rules = {
        "succeeded without a result": and_(analyses.c.status == "succeeded", analyses.c.id.not_in(with_result)),
        "a result without having succeeded": and_(analyses.c.status != "succeeded", analyses.c.id.in_(with_result)),
        "running without an owner": and_(
            analyses.c.status == "running", or_(analyses.c.owner.is_(None), analyses.c.lease_until.is_(None))
        ),
        "an owner without running": and_(analyses.c.status != "running", analyses.c.owner.is_not(None)),
        "finished without a time": and_(analyses.c.status.in_(FINAL), analyses.c.finished_at.is_(None)),
        "answering for another content": analyses.c.active_key != analyses.c.content_key,
    }
    for rule, condition in rules.items():
        wrong += [f"{id}: {rule}" for id in connection.scalars(select(analyses.c.id).where(condition))]
    return wrong


def prune_batch(
    connection: Connection, now: Now, older_than_seconds: float, what: Literal["analyses", "allocations"]
) -> int:
    """Delete up to BATCH rows that are older, forgotten Idempotency-Keys and old purges; return how many rows went."""
    connection.execute(delete(idempotency).where(idempotency.c.created_at < now - IDEMPOTENCY_SECONDS))
    connection.execute(delete(purges).where(purges.c.created_at < now - PURGE_SECONDS))
    if what == "analyses":
        old = and_(analyses.c.status.in_(FINAL), analyses.c.finished_at < now - older_than_seconds)
        key, table = analyses.c.seq, analyses
    else:
        old = allocations.c.created_at < now - older_than_seconds
        key, table = allocations.c.id, allocations
    chosen = select(key).where(old).order_by(key).limit(BATCH)
    return len(connection.execute(delete(table).where(key.in_(chosen)).returning(key)).all())
