"""Places to wait: how many there are, and how many of them one caller may have."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alphalloc_service.app import create_app
from alphalloc_service.keys import digest, new_key
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from alphalloc_service.waiting import Waiters
from starlette.testclient import TestClient

PATH = "/v1/analyses"
QUESTION = {"model": {"id": "some/model"}}


def taken(waiters: Waiters, stack: contextlib.ExitStack, *who: str | None) -> list[bool]:
    """Ask for a place for each of ``who``, held as long as ``stack``."""
    return [stack.enter_context(waiters.place(one)) for one in who]


def test_one_caller_has_a_quarter_of_the_places() -> None:
    waiters = Waiters(8)
    with contextlib.ExitStack() as stack:
        assert taken(waiters, stack, "a", "a", "a", "b") == [True, True, False, True]
        assert taken(waiters, stack, "b", "b", "c", "c", "d", "d", "e") == [True, False, True, True, True, True, False]
        assert waiters.held == 8
    assert waiters.held == 0
    with contextlib.ExitStack() as stack:
        assert taken(waiters, stack, "a", "a", "a") == [True, True, False]


def test_the_only_user_has_all_of_them() -> None:
    waiters = Waiters(3)
    with contextlib.ExitStack() as stack:
        assert taken(waiters, stack, None, None, None, None) == [True, True, True, False]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_everybody_may_have_one(limit: int) -> None:
    assert Waiters(limit).share == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    upgrade(url)
    store = Store.open(url)
    yield store
    store.close()


def client(store: Store, tmp_path: Path, host: str, **settings: Any) -> TestClient:
    full = Settings(database_url=f"sqlite:///{tmp_path / 'a.db'}", max_streams=4, host=host, **settings)
    return TestClient(create_app(full, store), base_url=f"http://{host}:8000", raise_server_exceptions=False)


@contextlib.contextmanager
def following(service: TestClient, path: str, store: Store, **options: Any) -> Iterator[None]:
    """Have one stream of events open as long as the block runs; then the analysis ends."""
    waiters = service.app.state.waiters  # type: ignore[attr-defined]
    follower = threading.Thread(target=service.get, args=[path], kwargs=options)
    follower.start()
    deadline = time.monotonic() + 20
    while waiters.held < 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield
    store.request_cancel(path.split("/")[3])
    follower.join(20)
    assert waiters.held == 0


def test_a_key_leaves_places_to_others(store: Store, tmp_path: Path) -> None:
    headers = []
    for name in ("one", "other"):
        made = new_key()
        store.add_key(name, digest(made), ("write",))
        headers.append({"Authorization": f"Bearer {made}"})
    service = client(store, tmp_path, "127.0.0.1")
    id = service.post(PATH, json=QUESTION, headers=headers[0]).json()["id"]
    with following(service, f"{PATH}/{id}/events", store, headers=headers[0]):
        assert service.head(f"{PATH}/{id}/events", headers=headers[0]).status_code == 429
        refused = service.get(f"{PATH}/{id}/events", headers=headers[0])
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-streams")
        assert "or 1 of yours" in refused.json()["detail"]
        began = time.monotonic()  # a long poll is answered at once instead
        assert service.get(f"{PATH}/{id}", headers={**headers[0], "Prefer": "wait=60"}).json()["status"] == "queued"
        assert time.monotonic() - began < 30
        began = time.monotonic()
        service.get(f"{PATH}/{id}", headers={**headers[1], "Prefer": "wait=1"})
        assert time.monotonic() - began >= 1


def test_without_keys_an_address_has_a_share_where_others_reach_it(store: Store, tmp_path: Path) -> None:
    for host, expected in (("0.0.0.0", 429), ("127.0.0.1", 200)):
        service = client(store, tmp_path, host, insecure_no_auth=True)
        id = service.post(PATH, json=QUESTION).json()["id"]
        with following(service, f"{PATH}/{id}/events", store):
            assert service.head(f"{PATH}/{id}/events").status_code == expected
