"""GET /healthz, /readyz and /v1/info: is it alive, can it work, and what does it take?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from alphalloc.documents import package_version

from ..answers import Health, Info, Limits, ReadyAnswer
from ..conventions import MAX_WAIT_SECONDS, RETRY_SECONDS
from ..problems import FieldProblem, problem, responses
from ..readiness import CheckName
from ..security import require
from ..settings import MAX_EXPERTS, MAX_LAYERS, Settings

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Is the process alive?")
async def health() -> Health:
    """Answer 200 as long as the process can answer at all."""
    return Health(status="ok", version=package_version())


@router.get("/readyz", summary="Can it take work?", response_model=ReadyAnswer, responses=responses(422, 503))
async def ready(
    request: Request,
    exclude: Annotated[list[CheckName] | None, Query(description="checks that are told and do not decide")] = None,
) -> Response:
    """Answer 200 when the database takes writes, the disk has room and the queue is not full; else 503 with reasons.

    What decides whether requests come here should leave out the queue (`?exclude=queue`): when it is full everything
    but new analyses is still answered.
    """
    checks = await request.app.state.readiness.checks()
    refusing = [check for check in checks if not check.ok and check.name not in (exclude or ())]
    failed = [FieldProblem(pointer=f"/{check.name}", detail=check.detail) for check in refusing]
    if failed:
        detail = "; ".join(f"{fault.pointer[1:]}: {fault.detail}" for fault in failed)
        return problem(request, 503, "not-ready", detail, fields=failed, headers={"Retry-After": str(RETRY_SECONDS)})
    body = ReadyAnswer(checks={check.name: check.detail for check in checks}).model_dump_json()
    return Response(body, headers={"Cache-Control": "no-store"}, media_type="application/json")


@router.get("/v1/info", summary="About this service", dependencies=[Depends(require("read"))], responses=responses())
async def info(request: Request) -> Info:
    """Return the version, what computes analyses, and the limits."""
    settings: Settings = request.app.state.settings
    return Info(
        version=package_version(),
        backend=settings.backend,
        local_models=bool(settings.model_roots),
        limits=Limits(
            max_body_bytes=settings.max_body_bytes,
            max_layers=MAX_LAYERS,
            max_experts=MAX_EXPERTS,
            max_queued=settings.max_queued,
            max_streams=settings.max_streams,
            max_wait_seconds=MAX_WAIT_SECONDS,
            rate_limit=settings.rate_limit,
        ),
    )
