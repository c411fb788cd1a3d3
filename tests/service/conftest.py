"""What these tests share: one application for the tables, both databases for the store, a server and browser a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from databases import DATABASES, new_url
from running_service import RunningService
from safetensors.numpy import save_file
from starlette.testclient import TestClient
from stores import Clock

from alphalloc.alphas import ModelAlphas

if TYPE_CHECKING:  # the browser is for the tests of the page alone
    from browser import Watched
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A migrated SQLite database, for all tests of a process that do not mind what others put there."""
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'alphalloc.db'}"
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def client(database_url: str) -> Iterator[TestClient]:
    app = create_app(Settings(database_url=database_url, rate_limit=None))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def question() -> dict[str, Any]:
    """A request with every field."""
    return {
        "source": {"alphas": [2.1, 2.9, 3.4, 2.6]},
        "budget": {"total": 20},
        "method": "alpha_power",
        "params": {"beta": 2.5},
        "bounds": {"min": 1, "max": None},
        "rounding": "largest_remainder",
        "top_k": 2,
        "confidence": False,
        "store": True,
    }


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database: the test runs on SQLite and on PostgreSQL."""
    return new_url(request.param, tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[Store]:
    """A store on each of the two databases, with a clock that the test sets."""
    store = Store.open(url, clock=clock)
    yield store
    store.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small checkpoints of 3, 4 and 5 layers."""
    folder = tmp_path_factory.mktemp("models")
    for layers in (3, 4, 5):
        draw = np.random.default_rng(layers)
        tensors = {f"layers.{i}.weight": draw.standard_t(3 + i, (40, 60)).astype(np.float32) for i in range(layers)}
        save_file(tensors, folder / f"{layers}.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_file: Path, models: Path) -> Iterator[RunningService]:
    roots = ["--model-root", str(smollm2_file.parent), "--model-root", str(models)]
    with RunningService(tmp_path_factory.mktemp("service"), *roots) as running:
        yield running


@pytest.fixture(scope="module")
def analysed(server: RunningService, models: Path) -> dict[str, ModelAlphas]:
    """The alphas of the models of 4 and 5 layers, by the ids of their analyses."""
    asked = [
        server.json("POST", "/v1/analyses", {"model": {"path": str(models / f"{layers}.safetensors")}})[1]["id"]
        for layers in (4, 5)
    ]
    assert {server.finished(one)["status"] for one in asked} == {"succeeded"}
    return {
        one: ModelAlphas.from_json(server.request("GET", f"/v1/analyses/{one}/alphas")[1].decode()) for one in asked
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def watched(browser: Browser, server: RunningService) -> Iterator[Watched]:
    """The page, ready to be used."""
    from browser import Watched

    opened = Watched(
        browser, viewport={"width": 1200, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    opened.page.goto(server.url)
    opened.page.wait_for_selector("#exports button")
    yield opened
    assert opened.trouble == []
    assert [url for url in opened.requests if not url.startswith((server.url, "data:"))] == []
    opened.page.close()
