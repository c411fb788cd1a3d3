"""API keys: how one is made, the form it is kept in, and who a request with one is.

A key is ``alph_`` and 32 random bytes in base64url. Only its SHA-256 is stored: 256 random bits cannot be guessed, so
neither a salt nor a slow hash would add anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alphalloc.errors import SettingsError

PREFIX = "alph_"
FORM = re.compile(r"alph_[A-Za-z0-9_-]{43}")
SCOPES = ("read", "write", "admin")
# A scope includes those before it: who may start an analysis may also see it.
INCLUDED = {scope: frozenset(SCOPES[: at + 1]) for at, scope in enumerate(SCOPES)}
FRESH_SECONDS = 3.0  # chosen here: a revoked key works at most this long, and a busy one costs no read a request
MAX_REMEMBERED = 1024  # keys and unknown keys each


@dataclass(frozen=True)
class Caller:
    """Who a request comes from: the key's name and everything it may do. Without keys everyone is ``OPEN``."""

    name: str
    scopes: frozenset[str]
    keyed: bool = True


OPEN = Caller("anyone", INCLUDED["admin"], keyed=False)


class KeyStore(Protocol):
    """What this module asks of the store."""

    def key_by_hash(self, sha256_hex: str) -> Any:
        """Return the key's row, or None for one that is unknown or revoked."""

    def list_keys(self) -> Sequence[Any]:
        """Return the rows of all keys."""


def new_key() -> str:
    """Return a new key; it is shown once and kept nowhere."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """Return the SHA-256 of ``key`` in hexadecimal: what the store keeps."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return ``scopes`` without repetition, in order. Raises SettingsError for none, or one that does not exist."""
    given = list(scopes)
    unknown = [scope for scope in given if scope not in SCOPES]
    if unknown or not given:
        raise SettingsError(f"expected scopes out of {', '.join(SCOPES)}, found {', '.join(unknown) or 'none'}")
    return tuple(scope for scope in SCOPES if scope in given)


class KeyRing:
    """The keys of a store, remembered for FRESH_SECONDS. ``closed`` demands a key whatever the store holds."""

    def __init__(self, store: KeyStore | None, *, closed: bool) -> None:
        self._store = store
        self._closed = closed
        self._known: dict[str, tuple[float, Caller]] = {}
        self._unknown: dict[str, float] = {}
        self._open_until = 0.0

    async def wanted(self) -> bool:
        """Whether requests need a key: always once one was ever made, so that revoking the last opens nothing."""
        if self._closed or self._store is None:
            return self._closed
        now = time.monotonic()
        if now >= self._open_until:
            if await asyncio.to_thread(self._store.list_keys):
                self._closed = True
            self._open_until = now + FRESH_SECONDS
        return self._closed

    def remembers(self, key: str) -> bool:
        """Whether ``key`` was found in the store before, and not found missing since."""
        return digest(key) in self._known

    async def caller(self, key: str) -> Caller | None:
        """Return who ``key`` is, None when it is not a key or not one any more. Raises StorageError."""
        if self._store is None or not FORM.fullmatch(key):
            return None
        hashed, now = digest(key), time.monotonic()
        held = self._known.get(hashed)
        if held is not None and now < held[0]:
            return held[1]
        if now < self._unknown.get(hashed, 0.0):
            return None
        row = await asyncio.to_thread(self._store.key_by_hash, hashed)
        self._forget(hashed)
        if row is None or not hmac.compare_digest(row.sha256, hashed):
            self._unknown[hashed] = now + FRESH_SECONDS
            return None
        caller = Caller(row.name, frozenset().union(*(INCLUDED[scope] for scope in row.scopes)))
        self._known[hashed] = (now + FRESH_SECONDS, caller)
        return caller

    def _forget(self, hashed: str) -> None:
        """Drop what is remembered of one key, and everything when there is too much: a flood of unknown keys."""
        self._known.pop(hashed, None)
        for remembered in (self._known, self._unknown):
            if len(remembered) >= MAX_REMEMBERED:
                remembered.clear()
