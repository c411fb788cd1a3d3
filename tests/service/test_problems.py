"""Every error is a problem document; the table of errors is complete and its codes are stable."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from alphalloc_service.app import create_app
from alphalloc_service.problems import MAX_DETAIL, STORAGE_DETAIL, Problem
from alphalloc_service.settings import Settings
from alphalloc_service.statuses import status_of
from starlette.testclient import TestClient

from alphalloc import errors

# Pinned: clients switch on these. A change of a line is a change of the API.
PINNED = {
    "AlphallocError": ("alphalloc-error", 422),
    "CheckpointError": ("checkpoint-error", 422),
    "CheckpointNotFoundError": ("model-not-found", 404),
    "RevisionNotFoundError": ("revision-not-found", 404),
    "GatedModelError": ("gated-model", 403),
    "HubUnreachableError": ("hub-unreachable", 503),
    "CorruptCheckpointError": ("corrupt-checkpoint", 422),
    "UnsafeCheckpointError": ("unsafe-checkpoint", 422),
    "UnsupportedCheckpointError": ("unsupported-checkpoint", 422),
    "UnknownArchitectureError": ("unknown-architecture", 422),
    "MatrixError": ("matrix-error", 422),
    "MatrixShapeError": ("matrix-shape", 422),
    "NonFiniteWeightError": ("non-finite-weight", 422),
    "SpectrumCheckError": ("spectrum-check", 500),
    "AnalysisError": ("analysis-error", 422),
    "UnknownEstimatorError": ("unknown-estimator", 422),
    "NothingToAnalyzeError": ("nothing-to-analyze", 422),
    "LayerWithoutAlphaError": ("layer-without-alpha", 422),
    "StrictError": ("strict", 422),
    "DeviceError": ("device", 503),
    "MemoryBudgetError": ("memory-budget", 503),
    "AllocationError": ("allocation-error", 422),
    "InvalidScoresError": ("invalid-scores", 422),
    "InvalidBudgetError": ("invalid-budget", 422),
    "InfeasibleBudgetError": ("infeasible-budget", 422),
    "InvalidParameterError": ("invalid-parameter", 422),
    "UnknownRuleError": ("unknown-method", 422),
    "UnknownRoundingError": ("unknown-rounding", 422),
    "DocumentError": ("invalid-document", 422),
    "SchemaVersionError": ("schema-version", 422),
    "AdapterError": ("adapter-error", 422),
    "TrainingError": ("training-error", 422),
    "RecipeError": ("invalid-recipe", 422),
    "DatasetError": ("invalid-dataset", 422),
    "BackendError": ("backend-error", 503),
    "ServiceError": ("service-error", 502),
    "ServiceUnreachableError": ("service-unreachable", 502),
    "ServiceRefusedError": ("service-refused", 502),
    "AnalysisFailedError": ("analysis-failed", 409),
    "StorageError": ("storage-unavailable", 503),
    "SettingsError": ("invalid-settings", 422),
    "OutputError": ("output", 422),
    "MissingExtraError": ("missing-extra", 503),
}


def test_table_pins_the_whole_tree() -> None:
    tree = dict(inspect.getmembers(errors, inspect.isclass))
    assert {name: (kind.code, status_of(kind("x"))) for name, kind in tree.items()} == PINNED
    assert len({code for code, _ in PINNED.values()}) == len(PINNED)


@pytest.fixture(scope="module")
def failing(database_url: str) -> TestClient:
    """The real application with one more route, which raises what its path names."""
    app = create_app(Settings(database_url=database_url, rate_limit=None))

    @app.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise (getattr(errors, name, None) or ZeroDivisionError)("a detail" if name != "AdapterError" else "x" * 9999)

    @app.post("/raise/{name}")
    async def other_method(name: str) -> str:
        return name

    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.parametrize("name", PINNED)
def test_own_errors(failing: TestClient, name: str) -> None:
    code, status = PINNED[name]
    answer = failing.get(f"/raise/{name}")
    problem = Problem.model_validate(answer.json(), strict=True)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem.status, problem.code) == (status, status, code)
    assert problem.type == f"urn:alphalloc:problem:{code}"
    assert problem.instance == f"/raise/{name}"
    assert problem.request_id == answer.headers["x-request-id"]
    told = {"AdapterError": "x" * (MAX_DETAIL - 3) + "...", "StorageError": STORAGE_DETAIL}
    assert problem.detail == told.get(name, "a detail")


def test_faults_tell_nothing_but_the_request_id(failing: TestClient) -> None:
    answer = failing.get("/raise/Nothing", headers={"X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.json()["code"], answer.json()["request_id"]) == (500, "internal", "mine-1")
    assert "ZeroDivision" not in answer.text
    assert answer.headers["x-request-id"] == "mine-1"


def test_allow_is_the_union_over_the_routes_of_a_path(failing: TestClient) -> None:
    assert failing.put("/raise/x").headers["allow"] == "GET, HEAD, POST"


FRAMEWORK: list[tuple[str, str, int, str, str | None]] = [
    ("GET", "/nothing", 404, "not-found", None),
    ("GET", "/redoc", 404, "not-found", None),
    ("GET", "/v1/methods/", 404, "not-found", None),
    ("GET", "/v1/allocations/al_0", 422, "invalid-request", None),
    ("GET", f"/v1/allocations/al_{'0' * 32}", 404, "allocation-not-found", None),
    ("GET", f"/v1/analyses/an_{'0' * 32}", 404, "analysis-not-found", None),
    ("GET", "/v1/schemas/nothing.json", 404, "schema-not-found", None),
    ("PUT", f"/v1/analyses/an_{'0' * 32}", 405, "method-not-allowed", "DELETE, GET, HEAD"),
    ("GET", f"/v1/analyses/an_{'0' * 32}/cancel", 405, "method-not-allowed", "POST"),
    ("GET", "/%C3%A9%0A%ff", 404, "not-found", None),
    ("GET", "/v1/allocations", 405, "method-not-allowed", "POST"),
    ("PATCH", "/v1/allocations", 405, "method-not-allowed", "POST"),
    ("POST", "/v1/methods", 405, "method-not-allowed", "GET, HEAD"),
    ("DELETE", "/healthz", 405, "method-not-allowed", "GET, HEAD"),
    ("OPTIONS", "/healthz", 405, "method-not-allowed", "GET, HEAD"),
    ("BREW", "/healthz", 405, "method-not-allowed", "GET, HEAD"),
    ("POST", "/openapi.json", 405, "method-not-allowed", "GET, HEAD"),
]


@pytest.mark.parametrize(("method", "path", "status", "code", "allow"), FRAMEWORK)
def test_framework_errors(
    client: TestClient, method: str, path: str, status: int, code: str, allow: str | None
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"], answer.headers.get("allow")) == (status, code, allow)
    assert answer.headers["content-type"] == "application/problem+json"
    Problem.model_validate(answer.json(), strict=True)


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 128])
def test_usable_request_id_comes_back(client: TestClient, given: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a;b", "é".encode(), '"', "a\tb"])
def test_other_request_ids_are_replaced(client: TestClient, given: Any) -> None:
    answers = [client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] for _ in range(2)]
    assert answers[0] != answers[1]
    assert all(len(answer) == 32 and int(answer, 16) for answer in answers)
