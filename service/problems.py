"""Every error answer of the service: RFC 9457 problem documents with a stable ``code`` and the request's id.

One table maps the tree of ``alphalloc.errors`` to HTTP; a second one names what the framework itself refuses.
"""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from alphalloc import errors

from .logs import strike_secrets
from .statuses import status_of

logger = logging.getLogger("alphalloc_service")

MEDIA_TYPE = "application/problem+json"
MAX_LISTED = 20  # of one answer; a list of 512 strings has 512 mistakes and one cause
MAX_DETAIL = 2000  # characters
MAX_POINTER = 200  # characters; what a client made up comes back no longer than that
# What the database says names its host and user, and this is answered before any key was looked at.
STORAGE_DETAIL = "the database cannot be read or written now; try again later, the service's log says why"
# What pydantic puts into a location for the form of a `oneOf` that was taken (see schemas.py).
ALTERNATIVES = ("<id>", "<path>", "<alphas>", "<analysis_id>", "<model>", "<total>", "<per_layer_mean>")

CODE_OF_STATUS = {
    400: "malformed",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    413: "body-too-large",
    415: "unsupported-media-type",
    422: "invalid-request",
    500: "internal",
}


class FieldProblem(BaseModel):
    """One field of the body that is wrong; ``pointer`` is a JSON Pointer (RFC 6901) into it."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """A problem document (RFC 9457). ``code`` is stable across versions; ``detail`` is for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:alphalloc:problem:infeasible-budget",
                "title": "Unprocessable Content",
                "status": 422,
                "detail": "a budget of 3 experts is below 4 layers x min_experts 1 = 4: raise the budget to at least 4",
                "instance": "/v1/allocations",
                "code": "infeasible-budget",
                "errors": [],
                "request_id": "3f0c8a4e5b7d4f1f9f64c2a1d7e0b9aa",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldProblem] = Field(default_factory=list)
    request_id: str


class ProblemError(HTTPException):
    """An error of the service's own, with its code; ``allow`` and the like go into ``headers``."""

    def __init__(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status_code=status, detail=detail, headers=headers)
        self.code = code


Responses = dict[int | str, dict[str, Any]]


def responses(*statuses: int, also: Responses | None = None) -> Responses:
    """Return the OpenAPI entry of these error statuses, and of what is there ``also``, for a route's ``responses=``."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {**(also or {}), **{status: {"description": _title(status), "content": content} for status in statuses}}


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    fields: list[FieldProblem] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return the problem as a response. The text is ASCII JSON, so that nothing a client sent can fail to encode.

    Of a StorageError, whoever met it, the client gets STORAGE_DETAIL and the log the ``detail``.
    """
    if code == errors.StorageError.code:
        logger.warning("%s", detail)
        detail = STORAGE_DETAIL
    request_id = getattr(request.state, "request_id", "")
    document = Problem(
        type=f"urn:alphalloc:problem:{code}",
        title=_title(status),
        status=status,
        detail=detail if len(detail) <= MAX_DETAIL else detail[: MAX_DETAIL - 3] + "...",
        instance=quote(request.scope["path"], errors="replace"),
        code=code,
        errors=fields or [],
        request_id=request_id,
    )
    text = json.dumps(document.model_dump())
    return Response(text, status, {**(headers or {}), "X-Request-Id": request_id}, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document."""
    app.add_exception_handler(errors.AlphallocError, _own_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


async def _own_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.AlphallocError)
    status = status_of(exc)
    detail = strike_secrets(str(exc))  # an error of the hub quotes the URL that failed, which may be a signed one
    return problem(request, status, exc.code, detail, headers={"Retry-After": "5"} if status == 503 else None)


async def _invalid_request(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    mistakes = exc.errors()
    found = [
        FieldProblem(
            pointer=_pointer(error["loc"])[:MAX_POINTER],
            detail=str(error["msg"]).removeprefix("Value error, ")[:MAX_DETAIL],
        )
        for error in mistakes[:MAX_LISTED]
    ]
    first = f"{found[0].pointer or 'the body'}: {found[0].detail}"
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return problem(request, 422, CODE_OF_STATUS[422], first + more, fields=found)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    status, headers = exc.status_code, dict(exc.headers or {})
    if isinstance(exc, ProblemError):
        return problem(request, status, exc.code, exc.detail, headers=headers)
    detail = exc.detail
    if status == 404:
        detail = "there is nothing at this path; see /openapi.json"
    elif status == 405:
        allowed = ", ".join(_allowed_methods(request))
        headers["Allow"] = allowed
        detail = f"{request.method} is not offered at this path; allowed: {allowed}"
    code = CODE_OF_STATUS.get(status) or _title(status).lower().replace(" ", "-")
    return problem(request, status, code, detail, headers=headers)


async def _internal_error(request: Request, exc: Exception) -> Response:
    logger.error("request %s failed", getattr(request.state, "request_id", ""), exc_info=exc)
    detail = "the service failed; the log has the details under this request id"
    return problem(request, 500, CODE_OF_STATUS[500], detail)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that some route at this path serves; the framework names those of the first route alone."""
    scope = dict(request.scope)
    found = {
        method
        for method in ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)


def _pointer(location: tuple[int | str, ...]) -> str:
    """Return the JSON Pointer of a pydantic location, without its leading "body" and the names of alternatives."""
    parts = [part for part in location[location[:1] == ("body",) :] if part not in ALTERNATIVES]
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _title(status: int) -> str:
    # The standard library's phrases for 413 and 422 changed in Python 3.13 with RFC 9110; the answer must not.
    names = {413: "Content Too Large", 422: "Unprocessable Content"}
    return names.get(status) or HTTPStatus(status).phrase
