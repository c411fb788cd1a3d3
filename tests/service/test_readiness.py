"""/readyz: ready, and each reason not to be."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alphalloc_service import readiness
from alphalloc_service.app import create_app
from alphalloc_service.problems import STORAGE_DETAIL
from alphalloc_service.readiness import Readiness, database_folder
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from alphalloc_service.store.database import Database
from starlette.testclient import TestClient


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = f"sqlite:///{tmp_path}/ready.db"
    upgrade(url)
    return Settings(database_url=url, max_queued=2)


@pytest.fixture
def store(settings: Settings) -> Store:
    store = Store.open(settings.database_url)
    yield store
    store.close()


def states(settings: Settings, store: Store) -> dict[str, bool]:
    return {check.name: check.ok for check in asyncio.run(Readiness(settings, store).checks())}


def test_ready(settings: Settings, store: Store) -> None:
    assert states(settings, store) == {"database": True, "disk": True, "queue": True}
    answer = TestClient(create_app(settings, store), base_url="http://127.0.0.1").get("/readyz")
    assert answer.status_code == 200


def test_a_full_queue_is_a_reason(settings: Settings, store: Store) -> None:
    for name in "ab":
        store.submit(name, {"model": {"id": name}}, max_queued=2)
    assert states(settings, store) == {"database": True, "disk": True, "queue": False}
    answer = TestClient(create_app(settings, store), base_url="http://127.0.0.1").get("/readyz")
    assert answer.status_code == 503
    assert "2 of 2 wait" in answer.text


def test_a_full_queue_does_not_close_the_service_to_requests_that_need_none(settings: Settings, store: Store) -> None:
    for name in "ab":
        store.submit(name, {"model": {"id": name}}, max_queued=2)
    client = TestClient(create_app(settings, store), base_url="http://127.0.0.1")
    answer = client.get("/readyz?exclude=queue")
    assert answer.status_code == 200
    assert answer.json()["checks"]["queue"] == "2 of 2 wait"
    assert client.get("/readyz?exclude=disk").status_code == 503
    assert client.get("/readyz?exclude=everything").status_code == 422
    deployed = (Path(__file__).parents[2] / "deploy" / "kubernetes.yaml").read_text()
    assert re.findall(r"readinessProbe:\n\s+httpGet: \{path: \"(.*?)\"", deployed) == ["/readyz?exclude=queue"]


def test_a_full_disk_is_a_reason(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage("/").free
    monkeypatch.setattr(readiness, "MIN_FREE_BYTES", 2 * free)
    assert states(settings, store)["disk"] is False


def test_a_broken_database_is_a_reason(settings: Settings, store: Store, tmp_path: Path) -> None:
    store.close()
    for path in tmp_path.glob("ready.db*"):
        path.unlink()
    (tmp_path / "ready.db").write_bytes(b"not a database" * 1000)
    found = states(settings, store)
    assert found["database"] is False
    assert found["disk"] is True


# Nothing listens there. What the driver says of it names address, port or user.
GONE = "postgresql+psycopg://somebody@127.0.0.1:1/private"


def test_the_database_is_no_strangers_business(caplog: pytest.LogCaptureFixture) -> None:
    """Neither /readyz nor the refusal before a key was looked at tells where the database is; the log does."""
    pytest.importorskip("psycopg")
    store = Store(Database.open(GONE))
    service = TestClient(create_app(Settings(database_url=GONE), store), base_url="http://127.0.0.1")
    for path, code in (("/readyz", "not-ready"), ("/v1/methods", "storage-unavailable")):
        caplog.clear()
        answer = service.get(path, headers={"Authorization": "Bearer alph_" + "0" * 43})
        assert (answer.status_code, answer.json()["code"]) == (503, code)
        assert STORAGE_DETAIL in answer.json()["detail"]
        assert not any(word in answer.text for word in ("127.0.0.1", "port 1", "somebody", "private"))
        assert "port 1" in caplog.text
    store.close()


@pytest.mark.parametrize("command", ["db check", "keys list", "worker --once", "serve --port 0"])
def test_the_command_line_tells_its_own_user(command: str) -> None:
    pytest.importorskip("psycopg")
    run = subprocess.run(
        [sys.executable, "-m", "alphalloc", *command.split()],
        env={**os.environ, "ALPHALLOC_DATABASE_URL": GONE},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode != 0
    assert "port 1" in run.stderr


def test_a_check_that_hangs_is_a_reason(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(store, "ping", lambda: time.sleep(0.3))
    checks = {check.name: check for check in asyncio.run(Readiness(settings, store).checks())}
    assert not checks["database"].ok
    assert "no answer within" in checks["database"].detail


def test_a_flood_of_probes_writes_once(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr(store, "ping", lambda: writes.append(1))

    async def flood() -> None:
        ready = Readiness(settings, store)
        await asyncio.gather(*(ready.checks() for _ in range(100)))

    asyncio.run(flood())
    assert len(writes) == 1


def test_where_the_disk_of_a_database_is(tmp_path: Path) -> None:
    assert database_folder(f"sqlite:///{tmp_path}/not/yet/there.db") == tmp_path
    assert database_folder("postgresql+psycopg://me@host/name") == Path.cwd()
