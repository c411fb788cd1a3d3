"""Bringing a database to the present schema: by an explicit command, never by a worker on its own."""

from __future__ import annotations


def upgrade(url: str) -> None:
    """Create or upgrade the database at ``url``. Two processes may do it at once. Raises StorageError."""
    raise NotImplementedError
