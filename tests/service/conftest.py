"""One application for the tables of these tests; what needs a real server starts its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings()), raise_server_exceptions=False) as client:
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
    }
