"""API keys: their form, what is stored of them, and how soon a new or revoked one counts."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from pathlib import Path

import pytest
from alphalloc_service import keys
from alphalloc_service.keys import FORM, OPEN, KeyRing, check_scopes, digest, new_key
from alphalloc_service.store import Store, upgrade

from alphalloc.errors import SettingsError, StorageError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    url = f"sqlite:///{tmp_path}/keys.db"
    upgrade(url)
    store = Store.open(url)
    yield store
    store.close()


def test_a_key_is_256_random_bits_of_a_fixed_form() -> None:
    made = {new_key() for _ in range(200)}
    assert len(made) == 200
    assert all(FORM.fullmatch(key) and len(key) == 48 for key in made)


def test_only_the_hash_of_a_key_is_stored(store: Store, tmp_path: Path) -> None:
    key = new_key()
    store.add_key("me", digest(key), ["read"])
    assert digest(key) == hashlib.sha256(key.encode()).hexdigest()
    store.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert digest(key).encode() in content
    assert key.encode() not in content
    assert key.removeprefix("alph_").encode() not in content
    with sqlite3.connect(tmp_path / "keys.db") as connection:
        assert connection.execute("select count(*) from api_keys").fetchone() == (1,)


@pytest.mark.parametrize(
    ("given", "scopes"),
    [(["read"], ("read",)), (["admin", "read", "admin"], ("read", "admin")), (["write"], ("write",))],
)
def test_scopes_are_put_in_order(given: list[str], scopes: tuple[str, ...]) -> None:
    assert check_scopes(given) == scopes


@pytest.mark.parametrize(("given", "found"), [([], "none"), (["root"], "root"), (["read", ""], "found ")])
def test_unknown_scopes_are_refused(given: list[str], found: str) -> None:
    with pytest.raises(SettingsError, match=f"out of read, write, admin, .*{found}"):
        check_scopes(given)


def test_a_scope_includes_those_below(store: Store) -> None:
    async def scopes_of(*given: str) -> frozenset[str]:
        key = new_key()
        store.add_key("+".join(given), digest(key), list(given))
        caller = await KeyRing(store, closed=True).caller(key)
        assert caller is not None
        return caller.scopes

    assert asyncio.run(scopes_of("read")) == {"read"}
    assert asyncio.run(scopes_of("write")) == {"read", "write"}
    assert asyncio.run(scopes_of("admin")) == {"read", "write", "admin"}
    assert OPEN.scopes == {"read", "write", "admin"}


def test_what_is_no_key_is_nobody(store: Store) -> None:
    key = new_key()
    store.add_key("me", digest(key), ["read"])
    ring = KeyRing(store, closed=True)
    for text in ("", "alph_", key[:-1], key + "A", key.upper(), " " + key, digest(key), "alph_" + "é" * 43, new_key()):
        assert asyncio.run(ring.caller(text)) is None, text
    assert asyncio.run(ring.caller(key)) is not None


def test_a_revoked_key_counts_no_longer_than_it_is_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys.FRESH_SECONDS <= 5
    key = new_key()
    store.add_key("me", digest(key), ["read"])
    ring = KeyRing(store, closed=True)
    assert asyncio.run(ring.caller(key)) is not None
    store.revoke_key("me")
    assert asyncio.run(ring.caller(key)) is not None  # remembered
    monkeypatch.setattr(keys.time, "monotonic", lambda at=keys.time.monotonic(): at + keys.FRESH_SECONDS)
    assert asyncio.run(ring.caller(key)) is None


def test_a_key_made_after_it_was_refused_counts_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    ring = KeyRing(store, closed=True)
    assert asyncio.run(ring.caller(key)) is None
    store.add_key("me", digest(key), ["read"])
    monkeypatch.setattr(keys.time, "monotonic", lambda at=keys.time.monotonic(): at + keys.FRESH_SECONDS)
    assert asyncio.run(ring.caller(key)) is not None


def test_the_first_key_closes_the_service_and_revoking_it_opens_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    ring = KeyRing(store, closed=False)
    assert not asyncio.run(ring.wanted())
    store.add_key("me", digest(new_key()), ["read"])
    now[0] += keys.FRESH_SECONDS
    assert asyncio.run(ring.wanted())
    store.revoke_key("me")
    assert asyncio.run(KeyRing(store, closed=False).wanted())
    now[0] += 1000
    assert asyncio.run(ring.wanted())


def test_a_flood_of_unknown_keys_takes_no_memory(store: Store) -> None:
    key = new_key()
    store.add_key("me", digest(key), ["read"])
    ring = KeyRing(store, closed=True)

    async def flood() -> None:
        for _ in range(keys.MAX_REMEMBERED + 50):
            assert await ring.caller(new_key()) is None
        assert await ring.caller(key) is not None

    asyncio.run(flood())
    assert len(ring._unknown) <= keys.MAX_REMEMBERED


def test_without_a_readable_database_nobody_gets_in(store: Store, tmp_path: Path) -> None:
    key = new_key()
    store.add_key("me", digest(key), ["read"])
    for path in tmp_path.iterdir():
        path.unlink()
    store.close()
    (tmp_path / "keys.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError):
        asyncio.run(KeyRing(store, closed=True).caller(key))
