"""One application for the tables of these tests; what needs a real server starts its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import upgrade
from starlette.testclient import TestClient


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
