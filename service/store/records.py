"""Allocations and API keys: rows that are written once and looked up."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from sqlalchemy import Connection, Row, or_, select, update

from alphalloc.documents import canonical_json

from .analyses import Now
from .database import insert_or_skip
from .rows import AllocationRow, Key, KeyNameTakenError
from .tables import allocations, api_keys


def put_allocations(connection: Connection, now: Now, rows: Sequence[AllocationRow]) -> list[bool]:
    """Write the rows that are new; answer for each whether it was."""
    if not rows:
        return []
    at = connection.scalar(select(now))
    first = {row.id: row for row in reversed(rows)}
    values = [
        {
            "id": row.id,
            "document": row.document,
            "request": canonical_json(row.request),
            "analysis_id": row.analysis_id,
            "created_at": at,
        }
        for row in sorted(first.values(), key=lambda row: row.id)  # in one order everywhere, so that none deadlock
    ]
    new = set(connection.execute(insert_or_skip(connection, allocations).returning(allocations.c.id), values).scalars())
    return [row.id in new and first[row.id] is row for row in rows]


def allocation(connection: Connection, id: str) -> AllocationRow | None:
    """Return the allocation, or None."""
    row = connection.execute(select(allocations).where(allocations.c.id == id)).first()
    if row is None:
        return None
    return AllocationRow(row.id, bytes(row.document), json.loads(row.request), row.analysis_id, row.created_at)


def add_key(connection: Connection, now: Now, name: str, sha256_hex: str, scopes: Sequence[str]) -> Key:
    """Add a key. Raises KeyNameTakenError."""
    values = {
        "id": f"key_{secrets.token_hex(8)}",
        "name": name,
        "active_name": name,
        "sha256": sha256_hex,
        "scopes": canonical_json(list(scopes)),
        "created_at": now,
    }
    row = connection.execute(insert_or_skip(connection, api_keys).values(values).returning(*api_keys.c)).first()
    if row is None:
        raise KeyNameTakenError(f"there is a key named {name!r} already; revoke it first or choose another name")
    return _key_of(row)


def list_keys(connection: Connection) -> list[Key]:
    """Return all keys, oldest first."""
    return [_key_of(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))]


def revoke_key(connection: Connection, now: Now, name_or_id: str) -> bool:
    """Revoke the key in use of that name or id."""
    meant = or_(api_keys.c.id == name_or_id, api_keys.c.active_name == name_or_id)
    revoked = update(api_keys).where(meant, api_keys.c.revoked_at.is_(None)).values(active_name=None, revoked_at=now)
    return connection.execute(revoked.returning(api_keys.c.id)).first() is not None


def key_by_hash(connection: Connection, sha256_hex: str) -> Key | None:
    """Return the key in use with this hash."""
    wanted = select(api_keys).where(api_keys.c.sha256 == sha256_hex, api_keys.c.revoked_at.is_(None))
    row = connection.execute(wanted).first()
    return None if row is None else _key_of(row)


def _key_of(row: Row[tuple[object, ...]]) -> Key:
    return Key(row.id, row.name, tuple(json.loads(row.scopes)), row.created_at, row.revoked_at, row.sha256)
