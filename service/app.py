"""The application: routes, problem documents, request ids and the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI

from alphalloc.allocation import schedule_schema
from alphalloc.documents import package_version

from . import problems
from .request_ids import RequestIdMiddleware
from .routes import allocations, health, methods
from .schemas import AllocationRequest
from .settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application for ``settings`` (default: those of the environment).

    There is no page at /docs: the framework's own loads scripts from other hosts. /openapi.json is always there.
    """
    app = FastAPI(
        title="alphalloc",
        version=package_version(),
        summary="Expert schedules from the power-law exponents of a pretrained model's layers.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = Settings.from_environment() if settings is None else settings
    for router in (allocations.router, methods.router, health.router):
        app.include_router(router)
    problems.install(app)
    app.add_middleware(RequestIdMiddleware)
    _complete_openapi(app)
    return app


def _complete_openapi(app: FastAPI) -> None:
    """Make the OpenAPI document exact: published schemas for schedules and problems, and a worked example."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            schemas.update(_component("ExpertSchedule", schedule_schema()))
            schemas.update(_component("Problem", problems.Problem.model_json_schema()))
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            question = AllocationRequest.model_validate(schemas["AllocationRequest"]["example"])
            answer = document["paths"]["/v1/allocations"]["post"]["responses"]["200"]["content"]["application/json"]
            answer["example"] = json.loads(allocations.answer(question).to_json())
        return app.openapi_schema or document

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend it


def _component(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return ``schema`` and its definitions as OpenAPI components, references turned to where they now lie."""
    moved = json.loads(json.dumps(schema).replace('"#/$defs/', '"#/components/schemas/'))
    definitions: dict[str, Any] = moved.pop("$defs", {})
    moved.pop("$schema", None)  # OpenAPI 3.1 speaks that dialect by itself
    return {**definitions, name: moved}
