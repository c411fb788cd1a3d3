"""Analyses as clients see them: submitting without duplicates, looking, cancelling, deleting. One call, one statement
or a few in the transaction that the caller opened.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select, update

from alphalloc.documents import canonical_json

from .database import insert, insert_or_skip
from .rows import FINAL, Analysis, Event, IdempotencyConflictError, LayerEvent, Purge, QueueFullError, Submitted
from .tables import analyses, events, idempotency, purges, results

TRIES = 5  # of finding or making a row while others end theirs; each round needs another such coincidence
Now = ColumnElement[float]
Line = Row[Any]

COLUMNS = [column for column in analyses.c if column.name in Analysis.__dataclass_fields__]


def analysis_of(row: Line) -> Analysis:
    """Return the row as a value."""
    values = dict(row._mapping)
    for name in ("request", "model", "error", "summary"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Analysis(**values)


def lapsed(now: Now) -> ColumnElement[bool]:
    """The condition that an analysis runs without a live owner.

    A lease that ends later than any could (twice its length from now) was given before the clock was set back.
    """
    ends = analyses.c.lease_until
    return and_(analyses.c.status == "running", or_(ends < now, ends > now + 2 * analyses.c.lease_seconds))


def storable(text: str) -> bool:
    """Whether the databases can hold ``text``: PostgreSQL refuses NUL, and neither takes lone surrogates."""
    return re.search("[\x00\ud800-\udfff]", text) is None


def submit(
    connection: Connection,
    now: Now,
    content_key: str,
    request: dict[str, Any],
    *,
    priority: int,
    max_queued: int,
    idempotency_key: str | None,
    request_digest: str,
) -> Submitted:
    """Return the analysis that answers ``request``; see ``Store.submit``."""
    id = f"an_{secrets.token_hex(16)}"
    if idempotency_key is not None:
        earlier = _remembered(connection, now, idempotency_key, request_digest, id)
        if earlier is not None:
            return Submitted(earlier, created=False)
    answer = _found_or_made(connection, now, id, content_key, request, priority, max_queued)
    if idempotency_key is not None and answer.analysis.id != id:
        own = update(idempotency).where(idempotency.c.key == idempotency_key)
        connection.execute(own.values(analysis_id=answer.analysis.id))
    return answer


def _found_or_made(
    connection: Connection, now: Now, id: str, content_key: str, request: dict[str, Any], priority: int, max_queued: int
) -> Submitted:
    values = {
        "id": id,
        "version": 1,
        "status": "queued",
        "request": canonical_json(request),
        "content_key": content_key,
        "active_key": content_key,
        **_searchable(request),
        "done": 0,
        "total": 0,
        "attempt": 0,
        "cancel_requested": False,
        "created_at": now,
        "priority": priority,
    }
    for _ in range(TRIES):
        found = by_content(connection, content_key)
        if found is not None:
            return Submitted(found, created=False)
        waiting = select(func.count()).where(analyses.c.status == "queued")
        if (connection.scalar(waiting) or 0) >= max_queued:
            raise QueueFullError(f"{max_queued} analyses wait already; try again later")
        # Between the look and this statement another process may have made the row: then this makes none.
        made = insert_or_skip(connection, analyses).values(values).returning(*COLUMNS)
        row = connection.execute(made).first()
        if row is not None:
            return Submitted(analysis_of(row), created=True)
    raise QueueFullError("the same analysis is being submitted and ended over and over; try again later")


def _remembered(connection: Connection, now: Now, key: str, digest: str, id: str) -> Analysis | None:
    """Return the analysis that ``key`` named before; else note that it names ``id`` from now on."""
    values = {"key": key, "digest": digest, "analysis_id": id, "created_at": now}
    if connection.execute(insert_or_skip(connection, idempotency).values(values).returning(idempotency.c.key)).first():
        return None
    noted = connection.execute(select(idempotency).where(idempotency.c.key == key).with_for_update()).one()
    if noted.digest != digest:
        raise IdempotencyConflictError("this Idempotency-Key was used for another request; choose a new one")
    found = by_id(connection, noted.analysis_id)
    if found is None:  # deleted meanwhile
        connection.execute(update(idempotency).where(idempotency.c.key == key).values(analysis_id=id, created_at=now))
    return found


def _searchable(request: dict[str, Any]) -> dict[str, str | None]:
    model = request.get("model") or {}
    found = (model.get("id") or model.get("path"), model.get("revision"), request.get("estimator"))
    name, revision, estimator = (text if isinstance(text, str) and storable(text) else None for text in found)
    return {"model_name": name or "", "model_revision": revision, "estimator": estimator}


def by_id(connection: Connection, id: str) -> Analysis | None:
    """Return the analysis, or None."""
    row = connection.execute(select(*COLUMNS).where(analyses.c.id == id)).first()
    return None if row is None else analysis_of(row)


def by_content(connection: Connection, content_key: str) -> Analysis | None:
    """Return the queued, running or succeeded analysis of this content."""
    row = connection.execute(select(*COLUMNS).where(analyses.c.active_key == content_key)).first()
    return None if row is None else analysis_of(row)


def newest(connection: Connection, limit: int, *conditions: ColumnElement[bool]) -> list[Analysis]:
    """Return up to ``limit`` analyses that meet the conditions, newest first."""
    rows = connection.execute(select(*COLUMNS).where(*conditions).order_by(analyses.c.seq.desc()).limit(limit))
    return [analysis_of(row) for row in rows]


def request_cancel(connection: Connection, now: Now, id: str) -> Analysis | None:
    """Cancel the analysis or ask its worker to; see ``Store.request_cancel``."""
    one = analyses.c.id == id
    connection.execute(select(analyses.c.seq).where(one).with_for_update())  # its status cannot change before the end
    unowned = connection.execute(select(analyses.c.seq).where(one, or_(analyses.c.status == "queued", lapsed(now))))
    if unowned.first() is not None:
        end(connection, now, id, "cancelled")
    else:
        # Whoever submits the same content from now on does not want the analysis that is about to stop.
        asked = update(analyses).where(one, analyses.c.status == "running", analyses.c.cancel_requested.is_(False))
        connection.execute(asked.values(cancel_requested=True, active_key=None, version=analyses.c.version + 1))
    return by_id(connection, id)


def end(connection: Connection, now: Now, id: str, status: str, **values: Any) -> None:
    """Set the last status of an analysis whose row the caller has locked, and tell the streams."""
    error = values.get("error")
    values = {name: None if value is None else canonical_json(value) for name, value in values.items()}
    if status != "succeeded":
        values["active_key"] = None
    if status == "cancelled":
        values["cancel_requested"] = True
    statement = (
        update(analyses)
        .where(analyses.c.id == id)
        .values(status=status, finished_at=now, owner=None, lease_until=None, version=analyses.c.version + 1, **values)
    )
    seq = connection.execute(statement.returning(analyses.c.version)).scalar_one()
    data = {"status": status} | ({} if error is None else {"error": error})
    tell(connection, id, "done", "done", seq, data)


def tell(connection: Connection, id: str, name: str, kind: str, seq: int, data: dict[str, Any]) -> None:
    """Put an event in the place of the one of the same name."""
    values = {"analysis_id": id, "name": name, "kind": kind, "seq": seq, "data": canonical_json(data)}
    put = insert(connection, events).values(values)
    keys = [events.c.analysis_id, events.c.name]
    connection.execute(put.on_conflict_do_update(index_elements=keys, set_={"seq": seq, "data": values["data"]}))


def tell_layers(connection: Connection, id: str, seq: int, layers: list[LayerEvent]) -> None:
    """Add those of the layer events that are new, numbered from ``seq``."""
    if layers:
        rows = [
            {
                "analysis_id": id,
                "name": f"layer/{layer.name}",
                "kind": "layer",
                "seq": seq + position,
                "data": canonical_json(layer.data),
            }
            for position, layer in enumerate(layers)
        ]
        connection.execute(insert_or_skip(connection, events), rows)


def events_after(connection: Connection, id: str, after: int) -> list[Event]:
    """Return the events with a larger ``seq``, in order."""
    wanted = select(events.c.seq, events.c.kind, events.c.data).where(events.c.analysis_id == id, events.c.seq > after)
    return [Event(row.seq, row.kind, json.loads(row.data)) for row in connection.execute(wanted.order_by(events.c.seq))]


def result(connection: Connection, id: str) -> bytes | None:
    """Return the document of a succeeded analysis."""
    found = connection.scalar(select(results.c.document).where(results.c.analysis_id == id))
    return None if found is None else bytes(found)


def delete_finished(connection: Connection, now: Now, id: str, *, purge: bool) -> bool:
    """Delete the analysis if it is finished, with its result and events; see ``Store.delete_analysis``."""
    if purge:
        known = and_(results.c.analysis_id == id, results.c.spectra.is_not(None))
        connection.execute(
            insert(connection, purges).from_select(
                ["spectra", "created_at"], select(results.c.spectra, now).where(known)
            )
        )
    gone = delete(analyses).where(analyses.c.id == id, analyses.c.status.in_(FINAL))
    return connection.execute(gone.returning(analyses.c.seq)).first() is not None


def purges_after(connection: Connection, seq: int) -> list[Purge]:
    """Return what was purged later than ``seq``, in order."""
    later = select(purges).where(purges.c.seq > seq).order_by(purges.c.seq)
    return [Purge(row.seq, tuple(json.loads(row.spectra)), row.created_at) for row in connection.execute(later)]
