"""The OpenAPI document says what the service does; the lists of names are those of the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
from alphalloc_service.app import create_app
from alphalloc_service.openapi import FILE, committed_text
from alphalloc_service.settings import Settings
from starlette.testclient import TestClient

from alphalloc.allocation import PAPERS, ROUNDINGS, RULES, allocate, schedule_schema
from alphalloc.fits import FITS


@pytest.fixture(scope="module")
def openapi(client: TestClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def schema_of(openapi: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": openapi["components"]}


def test_openapi_is_the_committed_document() -> None:
    assert FILE.read_text() == committed_text(), "the API changed: python -m alphalloc_service.openapi, and look at it"


def test_openapi_is_valid(openapi: dict[str, Any]) -> None:
    openapi_spec_validator.validate(openapi)


def test_openapi_references_resolve(openapi: dict[str, Any]) -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    known = {f"#/components/schemas/{name}" for name in openapi["components"]["schemas"]}
    assert references(openapi) <= known


def test_openapi_errors_are_problem_documents(openapi: dict[str, Any]) -> None:
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)


def test_openapi_example_is_answered_by_its_example(client: TestClient, openapi: dict[str, Any]) -> None:
    question = openapi["components"]["schemas"]["AllocationRequest"]["example"]
    answer = openapi["paths"]["/v1/allocations"]["post"]["responses"]["201"]["content"]["application/json"]["example"]
    assert client.post("/v1/allocations", json=question).json() == answer


def test_answers_match_their_schemas(client: TestClient, openapi: dict[str, Any], question: dict[str, Any]) -> None:
    jsonschema.validate(question, schema_of(openapi, "AllocationRequest"))
    jsonschema.validate(client.post("/v1/allocations", json=question).json(), schema_of(openapi, "ExpertSchedule"))
    jsonschema.validate(client.get("/v1/methods").json(), schema_of(openapi, "Methods"))
    jsonschema.validate(client.get("/healthz").json(), schema_of(openapi, "Health"))
    jsonschema.validate(client.get("/nothing").json(), schema_of(openapi, "Problem"))
    example = openapi["components"]["schemas"]["Problem"]["example"]
    jsonschema.validate(example, schema_of(openapi, "Problem"))


def test_openapi_schedule_is_the_published_schema(openapi: dict[str, Any]) -> None:
    published = schedule_schema()
    described = openapi["components"]["schemas"]["ExpertSchedule"]
    assert set(described["properties"]) == set(published["properties"])
    assert described["required"] == published["required"]
    assert set(published["$defs"]) <= set(openapi["components"]["schemas"])


def test_methods_are_those_of_the_library(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()
    assert [rule["name"] for rule in methods["rules"]] == list(RULES)
    assert [rounding["name"] for rounding in methods["roundings"]] == list(ROUNDINGS)
    assert [estimator["name"] for estimator in methods["estimators"]] == list(FITS)
    assert {paper["name"]: paper["settings"] for paper in methods["papers"]} == PAPERS
    for rule in methods["rules"]:
        properties = rule["params_schema"]["properties"]
        assert set(properties) == set(RULES[rule["name"]].parameters)
        given = {name: default for name, default in RULES[rule["name"]].parameters.items() if default is not None}
        assert {name: schema["default"] for name, schema in properties.items() if "default" in schema} == given


def test_params_schemas_are_schemas_and_say_what_is_accepted(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()
    schemas = {rule["name"]: rule["params_schema"] for rule in methods["rules"]}
    for group in ("rules", "roundings", "estimators"):
        for method in methods[group]:
            jsonschema.Draft202012Validator.check_schema(method["params_schema"])
    jsonschema.validate({"beta": 1.5}, schemas["alpha_power"])
    jsonschema.validate({"pattern": [8, 6]}, schemas["pattern"])
    for name, params in (("uniform", {"beta": 1}), ("pattern", {}), ("pattern", {"pattern": [0]})):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(params, schemas[name])


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "version": version("alphalloc")}
    assert client.get("/healthz").headers["x-content-type-options"] == "nosniff"


def test_settings_reach_the_application(database_url: str) -> None:
    app = create_app(Settings(max_body_bytes=50, database_url=database_url))
    small = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    body = json.dumps({"source": {"alphas": [2.5]}, "budget": {"total": 1}})
    assert small.post("/v1/allocations", content=body, headers={"content-type": "application/json"}).status_code == 413


def test_process_imports_no_numerics(database_url: str) -> None:
    script = (
        "import sys; from starlette.testclient import TestClient; from alphalloc_service.app import create_app\n"
        "client = TestClient(create_app(), base_url='http://localhost')\n"
        "body = {'source': {'alphas': [2.5, 3.0]}, 'budget': {'total': 7}}\n"
        "id = client.post('/v1/allocations', json=body).json()['id']\n"
        "paths = ['/v1/methods', f'/v1/allocations/{id}/export?format=peft', '/v1/analyses', '/readyz']\n"
        "print(id, *(client.get(path).status_code for path in paths), file=sys.__stdout__)\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    environ = {**os.environ, "ALPHALLOC_DATABASE_URL": database_url}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{allocate([2.5, 3.0], 7).id} 200 200 200 200", "[]"]
