"""The two databases that everything about the store is tried on."""

from __future__ import annotations

from pathlib import Path

DATABASES = ("sqlite", "postgresql")


def empty_url(kind: str, folder: Path) -> str:
    """Return the URL of a database of this kind without any table; ``folder`` is for SQLite's file."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'alphalloc.db'}"
    from postgres import new_database

    return new_database()


def new_url(kind: str, folder: Path) -> str:
    """Return the URL of a new database of this kind, at the present schema."""
    from alphalloc_service.store import upgrade

    url = empty_url(kind, folder)
    upgrade(url)
    return url
