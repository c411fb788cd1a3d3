"""Metrics: their names, what they count, several processes as one, and alert rules that name only what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from alphalloc_service import metrics
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    url = f"sqlite:///{tmp_path}/metrics.db"
    upgrade(url)
    store = Store.open(url)
    yield store
    store.close()


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_jobs_are_counted_as_the_database_has_them(store: Store) -> None:
    store.submit("one", {"model": {"id": "a/b"}})
    store.submit("two", {"model": {"id": "a/c"}})
    store.claim("me", 30)
    text = metrics.exposition(store).decode()
    assert value(text, 'alphalloc_jobs{status="queued"}') == 1
    assert value(text, 'alphalloc_jobs{status="running"}') == 1
    assert value(text, 'alphalloc_jobs{status="failed"}') == 0


def test_requests_are_named_by_route_never_by_path(store: Store) -> None:
    service = TestClient(create_app(Settings(), store), base_url="http://127.0.0.1")
    before = metrics.exposition(store).decode()
    for _ in range(3):
        service.get(f"/v1/analyses/an_{os.urandom(16).hex()}")
        service.get(f"/{os.urandom(8).hex()}")
    service.request("BREW", "/v1/methods")
    text = service.get("/metrics").text

    def grown(series: str) -> float:
        return value(text, series) - value(before, series)

    assert grown('http_requests_total{method="GET",route="/v1/analyses/{id}",status="404"}') == 3
    assert grown('http_requests_total{method="GET",route="unmatched",status="404"}') == 3
    assert grown('http_request_duration_seconds_count{method="GET",route="/v1/analyses/{id}"}') == 3
    assert 'method="other"' in text
    assert "an_" not in text
    assert "BREW" not in text


def test_they_can_be_switched_off(store: Store) -> None:
    service = TestClient(create_app(Settings(metrics=False), store), base_url="http://127.0.0.1")
    assert service.get("/metrics").status_code == 404


CHILD = """
from alphalloc_service import metrics
metrics.job_ended("succeeded", 2.0)
metrics.matrix_done("cuda", 0.5)
metrics.cache_hit(3)
print(metrics.exposition(None).decode())
"""


def test_several_processes_answer_as_one(tmp_path: Path) -> None:
    environment = {**os.environ, metrics.FOLDER: str(tmp_path), "OMP_NUM_THREADS": "1"}
    for count in (1, 2):
        run = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
        assert value(run.stdout, "alphalloc_cache_hits_total") == 3 * count
        assert value(run.stdout, 'alphalloc_job_seconds_count{status="succeeded"}') == count
        assert value(run.stdout, 'alphalloc_job_seconds_sum{status="succeeded"}') == 2.0 * count
        assert value(run.stdout, 'alphalloc_matrix_seconds_bucket{device="cuda",le="1.0"}') == count


def test_the_alert_rules_name_only_metrics_that_exist(store: Store) -> None:
    rules = yaml.safe_load((ROOT / "docs" / "alerts.yaml").read_text())
    TestClient(create_app(Settings(), store), base_url="http://127.0.0.1").get("/v1/methods")
    for count in (lambda: metrics.job_ended("failed", 1), lambda: metrics.matrix_done("cpu", 1), metrics.cache_hit):
        count()
    text = metrics.exposition(store).decode()
    known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | set(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE))
    named = set()
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        named |= set(re.findall(r"\b(?:alphalloc|http)_\w+", rule["expr"]))
    assert len(rules["groups"][0]["rules"]) >= 6
    assert named
    assert named <= known
