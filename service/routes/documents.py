"""GET /v1/schemas/{name}: the JSON Schemas of the documents that the service speaks."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from alphalloc import ModelAlphas
from alphalloc.allocation import schedule_schema
from alphalloc.documents import pretty_json

from ..async_store import Document
from ..conventions import unchanged
from ..problems import Problem, ProblemError, responses

router = APIRouter(prefix="/v1/schemas", tags=["documents"])

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMES = ("schedule-1.0.json", "alphas-1.0.json", "problem-1.0.json")
MEDIA_TYPE = "application/schema+json"


@router.get(
    "/{name}",
    summary="Get a JSON Schema",
    response_class=Response,
    responses=responses(
        404,
        422,
        also={200: {"content": {MEDIA_TYPE: {"schema": {"type": "object"}}}}, 304: {"description": "Not changed"}},
    ),
)
async def get_schema(
    name: Annotated[str, Path(max_length=100, json_schema_extra={"enum": list(NAMES)})], request: Request
) -> Response:
    """Return the JSON Schema of a document; the name holds its version."""
    if name not in NAMES:
        raise ProblemError(404, "schema-not-found", f"there is no schema of that name; there are: {', '.join(NAMES)}")
    document = _schema(name)
    headers = {"ETag": document.etag, "Cache-Control": "public, max-age=3600"}
    if unchanged(request, document.etag):
        return Response(status_code=304, headers=headers)
    return Response(document.body, headers=headers, media_type=MEDIA_TYPE)


@cache
def _schema(name: str) -> Document:
    if name == "schedule-1.0.json":
        schema = schedule_schema()
    elif name == "alphas-1.0.json":
        schema = {"$schema": DIALECT, **ModelAlphas.model_json_schema(mode="serialization")}
    else:
        schema = {"$schema": DIALECT, **Problem.model_json_schema()}
    return Document.of(pretty_json(schema).encode())
