"""The OpenAPI document: the framework's, made exact; ``python -m alphalloc_service.openapi`` rewrites openapi.json.

The framework does not know the published schemas of schedules, alphas and problems, nor who needs a key, and it has no
worked example.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from alphalloc import ModelAlphas
from alphalloc.allocation import schedule_schema
from alphalloc.documents import pretty_json, write_atomic

from . import problems, security
from .allocating import schedule_of
from .schemas import AllocationRequest, AlphasSource

FILE = Path(__file__).with_name("openapi.json")


def install(app: FastAPI) -> None:
    """Make ``app.openapi()`` and /openapi.json give the completed document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            complete(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend it


def complete(document: dict[str, Any]) -> None:
    """Put the published schemas, the keys and a worked example into ``document``."""
    schemas = document["components"]["schemas"]
    schemas.update(_component("ExpertSchedule", schedule_schema()))
    schemas.update(_component("ModelAlphas", ModelAlphas.model_json_schema(mode="serialization")))
    schemas.update(_component("Problem", problems.Problem.model_json_schema()))
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    question = AllocationRequest.model_validate(schemas["AllocationRequest"]["example"])
    assert isinstance(question.source, AlphasSource)
    example = json.loads(schedule_of(question, question.source.alphas).to_json())
    for status in ("200", "201"):
        answer = document["paths"]["/v1/allocations"]["post"]["responses"][status]
        answer["content"]["application/json"]["example"] = example
    stream = document["paths"]["/v1/analyses/{id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    stream.pop("itemSchema", None)  # a word of OpenAPI 3.2 in a document that says 3.1
    stream["schema"] = {"type": "string"}
    security.describe(document)


def _component(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return ``schema`` and its definitions as OpenAPI components, references turned to where they now lie."""
    moved = json.loads(json.dumps(schema).replace('"#/$defs/', '"#/components/schemas/'))
    definitions: dict[str, Any] = moved.pop("$defs", {})
    moved.pop("$schema", None)  # OpenAPI 3.1 speaks that dialect by itself
    return {**definitions, name: moved}


def committed_text() -> str:
    """Return the document as the file holds it: without the version, which every release changes."""
    from .app import create_app
    from .settings import Settings
    from .store import Store, upgrade

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/empty.db"
        upgrade(url)
        store = Store.open(url)
        document = create_app(Settings(database_url=url), store).openapi()
        store.close()
    document["info"]["version"] = "1"
    example = document["paths"]["/v1/allocations"]["post"]["responses"]
    for status in ("200", "201"):
        example[status]["content"]["application/json"]["example"]["created_by"]["version"] = "1"
    return pretty_json(document)


if __name__ == "__main__":
    write_atomic(FILE, committed_text())
    print(f"wrote {FILE}", file=sys.stderr)
