"""A running service as its operator sees it: log lines with ids, metrics, and traces when the environment asks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from collector import Collector
from running_service import RunningService
from safetensors.numpy import save_file


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "models").mkdir()
    rng = np.random.default_rng(0)
    state = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((64, 48)).astype(np.float32) for i in range(3)}
    save_file(state, folder / "models" / "model.safetensors")
    telemetry = {
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
    }
    with RunningService(folder, environment=telemetry, model_roots=folder / "models") as service:
        yield service


def test_what_changes_is_logged_with_the_id_of_its_request(service: RunningService) -> None:
    body = {"source": {"alphas": [2.1, 2.9]}, "budget": {"total": 8}}
    service.request("POST", "/v1/allocations", body, {"X-Request-Id": "mine-1"})
    service.request("GET", "/v1/methods", headers={"X-Request-Id": "quiet-1"})
    service.request("GET", "/v1/nothing", headers={"X-Request-Id": "mine-2"})
    _wait(lambda: any(record.get("request_id") == "mine-2" for record in service.records()))
    by_id = {record["request_id"]: record for record in service.records() if "request_id" in record}
    made = by_id["mine-1"]
    assert (made["event"], made["method"], made["route"], made["status"]) == ("request", "POST", "/v1/allocations", 201)
    assert 0 < made["seconds"] < 60
    assert by_id["mine-2"]["status"] == 404
    assert "quiet-1" not in by_id  # it is in the metrics


def test_a_job_is_logged_with_its_id_and_counted(service: RunningService) -> None:
    status, analysis = service.json("POST", "/v1/analyses", {"model": {"path": "model.safetensors"}})
    assert status == 202
    assert service.finished(analysis["id"])["status"] == "succeeded"
    _wait(
        lambda: 'alphalloc_job_seconds_count{status="succeeded"} 1.0' in service.request("GET", "/metrics")[1].decode()
    )
    text = service.request("GET", "/metrics")[1].decode()
    assert 'alphalloc_jobs{status="succeeded"} 1.0' in text
    assert 'alphalloc_matrix_seconds_count{device="cpu"} 3.0' in text
    of_the_job = [record for record in service.records() if record.get("job_id") == analysis["id"]]
    assert len(of_the_job) >= 2


def test_a_clients_id_leads_to_its_job(service: RunningService) -> None:
    """The line of the request that made an analysis, or met one that was there, names it as the job's own lines do."""
    question = {"model": {"path": "model.safetensors"}, "estimator": "ks"}
    made = service.json("POST", "/v1/analyses", question, {"X-Request-Id": "asked-1"})[1]["id"]
    allocation = {"source": question, "budget": {"total": 12}}
    service.request("POST", "/v1/allocations", allocation, {"X-Request-Id": "asked-2"})
    service.finished(made)
    service.request("POST", "/v1/analyses", question, {"X-Request-Id": "asked-3"})
    _wait(lambda: any(record.get("request_id") == "asked-3" for record in service.records()))
    of = {record["request_id"]: record.get("job_id") for record in service.records() if "request_id" in record}
    assert (of["asked-1"], of["asked-3"]) == (made, made)
    assert of["asked-2"] in (made, None)  # None: it had ended by then, and the answer was a schedule
    assert any(record.get("job_id") == made and "request_id" not in record for record in service.records())


def test_every_line_is_json(service: RunningService) -> None:
    service.request("GET", "/v1/methods")
    lines = service.log.splitlines()
    assert any("alphalloc serves http://127.0.0.1:" in line for line in lines)
    assert all(line.startswith("{") and '"timestamp"' in line for line in lines), lines


def test_there_are_no_websockets(service: RunningService) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    answer, _ = service.request("GET", "/v1/methods", headers=upgrade)
    assert answer.status == 200  # answered as what it else is
    assert service.request("GET", "/v1/nothing", headers=upgrade)[0].status == 404


def test_traces_leave_when_the_environment_asks(service: RunningService, collector: Collector) -> None:
    service.request("GET", f"/v1/analyses/an_{'0' * 32}")
    _wait(lambda: any(b"/v1/analyses/{id}" in content for _, content in list(collector.posted)))


def _wait(condition: object, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)
