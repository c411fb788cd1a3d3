"""The alert rules: their labels and routes are those the service exports, and each fires on what it is for.

That the metrics exist is in test_metrics.py. Rules are evaluated by promtool; its package is unpacked into a temporary
folder where it is not installed, since installing it would start a server.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from alphalloc_service import metrics
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[2]
LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
ALERTS = ROOT / "docs" / "alerts.yaml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
SELECTOR = re.compile(r"\b(\w+)\{([^}]*)\}")
MATCHER = re.compile(r"(\w+)(=~|!~|!=|=)\"([^\"]*)\"")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], set[str]]:
    """The labels of every series, and the routes there are."""
    url = f"sqlite:///{tmp_path_factory.mktemp('alerts')}/alerts.db"
    upgrade(url)
    store = Store.open(url)
    app = create_app(Settings(), store)
    TestClient(app, base_url="http://127.0.0.1").get("/v1/methods")
    for count in (lambda: metrics.job_ended("failed", 1), lambda: metrics.matrix_done("cpu", 1), metrics.cache_hit):
        count()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.exposition(store).decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    store.close()
    return labels, set(app.openapi()["paths"])


@pytest.mark.parametrize("name", RULES)
def test_labels_and_routes_are_those_exported(name: str, exported: tuple[dict[str, set[str]], set[str]]) -> None:
    labels, routes = exported
    scraped = {"job", "instance"}  # what Prometheus itself adds
    expr = RULES[name]["expr"]
    selectors = [(metric, MATCHER.findall(inside)) for metric, inside in SELECTOR.findall(expr)]
    known = set(scraped)
    for metric in re.findall(r"\b(?:alphalloc|http)_\w+", expr):
        known |= labels[metric]
    for grouped in re.findall(r"\bby \(([^)]*)\)", expr):
        assert set(grouped.split(", ")) <= known
    for metric, matchers in selectors:
        assert {label for label, _, _ in matchers} <= (scraped if metric == "up" else labels[metric])
        for label, operator, value in matchers:
            if label == "route":
                for one in value.split("|") if "~" in operator else [re.escape(value)]:
                    assert any(re.fullmatch(one, route) for route in routes), one
            if label == "status" and metric == "alphalloc_jobs":
                assert value in metrics.STATUSES


def test_no_route_that_may_wait_is_called_slow(exported: tuple[dict[str, set[str]], set[str]]) -> None:
    """Those are the routes that read Prefer, or stream events."""
    _, routes = exported
    (left_out,) = re.findall(r'route!~"([^"]+)"', RULES["AlphallocSlow"]["expr"])
    waiting = {"/v1/allocations", "/v1/analyses", "/v1/analyses/{id}", "/v1/analyses/{id}/events"}
    assert waiting <= {route for route in routes if re.fullmatch(left_out, route)}
    assert "/v1/allocations/{id}" in {route for route in routes if not re.fullmatch(left_out, route)}


def requests(status: int, per_minute: float, route: str = "/v1/methods") -> str:
    return f'http_requests_total{{instance="a",method="GET",route="{route}",status="{status}"}} 0+{per_minute}x120'


def durations(route: str, fast: int, slow: int) -> dict[str, str]:
    """Return a histogram of so many requests a minute, within 10 ms and within 60 s."""
    name = f'http_request_duration_seconds_bucket{{instance="a",method="POST",route="{route}",le='
    counts = {"0.01": fast, "0.5": fast, "1": fast, "60": fast + slow, "+Inf": fast + slow}
    return {f'{name}"{edge}"}}': f"0+{count}x120" for edge, count in counts.items()}


def series(*lines: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in lines)


OK = requests(200, 600)
FIRING: list[tuple[str, dict[str, str]]] = [
    ("AlphallocDown", series('up{job="alphalloc",instance="a"} 0x120')),
    ("AlphallocDown", series('up{job="alphalloc-worker",instance="a"} 0x120')),
    ("AlphallocNotReady", series(OK, requests(503, 12, "/readyz"))),
    ("AlphallocErrors", series(OK, requests(500, 60))),
    ("AlphallocUnavailable", series(OK, requests(503, 60, "unmatched"))),
    ("AlphallocRefuses", series(OK, requests(429, 120, "unmatched"))),
    ("AlphallocSlow", durations("/v1/allocations/{id}", 90, 10)),
    ("AlphallocAllocationsSlow", durations("/v1/allocations", 40, 60)),
    ("AlphallocQueueGrows", series('alphalloc_jobs{status="queued"} 101+1x120')),
    ("AlphallocNobodyWorks", series('alphalloc_jobs{status="queued"} 1x120', 'alphalloc_jobs{status="running"} 0x120')),
    (
        "AlphallocJobsFail",
        series(
            'alphalloc_job_seconds_count{status="failed"} 0+3x120',
            'alphalloc_job_seconds_count{status="succeeded"} 0+7x120',
        ),
    ),
    ("AlphallocStrangers", series(OK, requests(401, 600, "unmatched"))),
]
QUIET: list[dict[str, str]] = [
    series('up{job="alphalloc",instance="a"} 1x120', OK, requests(404, 60), requests(503, 1), requests(429, 6)),
    series(OK, requests(200, 11, "/readyz"), requests(503, 1, "/readyz")) | durations("/v1/allocations", 90, 10),
    durations("/v1/analyses/{id}/events", 0, 100) | durations("/v1/allocations/{id}", 1000, 1),
    series('alphalloc_jobs{status="queued"} 200-1x120', 'alphalloc_jobs{status="running"} 1x120'),
]


def test_every_rule_is_tried() -> None:
    assert {name for name, _ in FIRING} == set(RULES)


def unpacked_promtool(folder: Path) -> str:
    """Return promtool out of Debian's package prometheus, unpacked into ``folder``."""
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=True)
    (package,) = folder.glob("prometheus_*.deb")
    subprocess.run(["dpkg", "-x", package.name, "unpacked"], cwd=folder, check=True)
    return str(folder / "unpacked" / "usr" / "bin" / "promtool")


@pytest.mark.skipif(not LONG, reason="run by `make test-reliability`")
def test_each_fires_on_what_it_is_for_and_on_nothing_else(tmp_path: Path) -> None:
    promtool = shutil.which("promtool") or unpacked_promtool(tmp_path)
    checked = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    cases = [({name}, values) for name, values in FIRING] + [(set(), values) for values in QUIET]
    tests = []
    for firing, values in cases:
        samples = [
            {"labels": f'{{__name__="ALERTS",alertname="{name}",alertstate="firing"}}', "value": 1}
            for name in sorted(firing)
        ]
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": value} for name, value in values.items()],
                "promql_expr_test": [
                    {
                        "expr": 'max by (__name__, alertname, alertstate) (ALERTS{alertstate="firing"})',
                        "eval_time": "119m",
                        "exp_samples": samples,
                    }
                ],
            }
        )
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    run = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
