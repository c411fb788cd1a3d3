"""GET /v1/analyses/{id}/report: a finished analysis as one self-contained page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from alphalloc import ModelAlphas
from alphalloc.allocation import ExpertSchedule

from ..async_store import AsyncStore
from ..conventions import strong_etag, unchanged
from ..problems import responses
from ..schemas import ALLOCATION_ID
from ..security import REPORT_POLICY, require
from .allocations import stored
from .analyses import AnalysisId
from .layers import finished_alphas

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])

AllocationIds = Annotated[
    list[Annotated[str, Query(pattern=ALLOCATION_ID)]],
    Query(max_length=4, description="stored schedules to show beside the alphas"),
]


@router.get(
    "/{id}/report",
    summary="The report of an analysis",
    response_class=Response,
    dependencies=[Depends(require("read"))],
    responses=responses(
        404,
        409,
        422,
        503,
        also={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, 304: {"description": "Not changed"}},
    ),
)
async def report(
    id: AnalysisId,
    request: Request,
    allocation: AllocationIds = [],  # noqa: B006  (the framework copies it)
    light: Annotated[bool, Query(description="static pictures, without a script")] = False,
) -> Response:
    """Return what `alphalloc report` writes: one page with everything in it, for saving as well as for looking at.

    Where plotly is not installed beside the service it is the light one.
    """
    alphas = await finished_alphas(id, request)
    schedules = [ExpertSchedule.from_json((await stored(one, request)).body.decode()) for one in allocation]
    store: AsyncStore = request.app.state.store
    content = await store.compute(_rendered, alphas, schedules, light)
    # Another release may draw it otherwise. The policy: its scripts are inline, so it gets an origin of its own.
    headers = {"ETag": strong_etag(content), "Cache-Control": "no-cache", "Content-Security-Policy": REPORT_POLICY}
    if unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="text/html; charset=utf-8")


def _rendered(alphas: ModelAlphas, schedules: list[ExpertSchedule], light: bool) -> bytes:
    from alphalloc.report import has_plotly, report_html  # here: it loads more than all the rest of the service

    files = ["alphas.json", *(f"schedule-{i}.json" for i in range(1, len(schedules) + 1))]
    return report_html(alphas, schedules, light=light or not has_plotly(), files=files).encode()
