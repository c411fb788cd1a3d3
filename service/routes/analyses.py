"""/v1/analyses: starting, listing, following, cancelling and deleting the jobs that measure models."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from ..answers import AnalysisAnswer, AnalysisList
from ..async_store import AsyncStore
from ..bodies import StrictJsonRoute
from ..conventions import decode_cursor, encode_cursor, unchanged, wait_seconds
from ..problems import ProblemError, Responses, responses
from ..questions import submit
from ..schemas import ANALYSIS_ID, AnalysisRequest
from ..security import caller_of, check_scope, require
from ..store import Analysis
from ..views import answer, as_json, etag_of
from ..waiting import until

router = APIRouter(prefix="/v1/analyses", tags=["analyses"], route_class=StrictJsonRoute)

AnalysisId = Annotated[str, Path(pattern=ANALYSIS_ID, description="the `id` of an analysis")]
READ, WRITE = [Depends(require("read"))], [Depends(require("write"))]
STARTED: Responses = {
    200: {"model": AnalysisAnswer, "description": "It has ended already: the same content was analysed before"},
    202: {"model": AnalysisAnswer, "description": "Under way; `Location` names it"},
}


@router.post(
    "",
    summary="Analyse a model",
    response_model=AnalysisAnswer,
    status_code=202,
    dependencies=WRITE,
    responses=responses(400, 403, 404, 413, 415, 422, 429, 503, also=STARTED),
)
async def create_analysis(question: AnalysisRequest, request: Request) -> Response:
    """Start measuring a model's alphas, or name the analysis that does or did so already.

    The same content is never analysed twice at once: whatever number of clients ask, they get one analysis.
    `Prefer: wait=N` waits up to N seconds (at most 60) for the end. A repeated `Idempotency-Key` names the same
    analysis again, whatever became of it.
    """
    analysis = (await submit(question, request)).analysis
    if (seconds := wait_seconds(request)) and not analysis.finished:
        analysis = await until(request, analysis.id, seconds, lambda now: now.finished) or analysis
    return answer(analysis, created=True, headers=preference(seconds))


@router.get(
    "",
    summary="List analyses",
    response_model=AnalysisList,
    dependencies=READ,
    responses=responses(422, 503),
)
async def list_analyses(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=100, description="the `next_cursor` of the page before")] = None,
    status: Annotated[Literal["queued", "running", "succeeded", "failed", "cancelled"] | None, Query()] = None,
    model: Annotated[str | None, Query(max_length=300, description="the hub id or path that was asked for")] = None,
) -> Response:
    """Return analyses, newest first. Pages neither repeat nor miss an analysis while others come in."""
    store: AsyncStore = request.app.state.store
    before = None if cursor is None else decode_cursor(cursor)
    found = await store.run(store.sync.list_analyses, limit=limit + 1, before_seq=before, status=status, model=model)
    page = found[:limit]
    following = encode_cursor(page[-1].seq) if len(found) > limit else None
    body = json.dumps({"object": "list", "data": as_json(page), "next_cursor": following})
    return Response(body, headers={"Cache-Control": "no-cache"}, media_type="application/json")


@router.get(
    "/{id}",
    summary="Get an analysis",
    response_model=AnalysisAnswer,
    dependencies=READ,
    responses=responses(404, 422, 503, also={304: {"description": "It has not changed"}}),
)
async def get_analysis(id: AnalysisId, request: Request) -> Response:
    """Return the analysis. `Prefer: wait=N` waits up to N seconds for its end or, with `If-None-Match`, a change."""
    etag = request.headers.get("if-none-match")
    seconds = wait_seconds(request)
    enough = (lambda now: not unchanged(request, etag_of(now))) if etag else (lambda now: now.finished)
    analysis = found(id, await until(request, id, seconds, enough))
    if unchanged(request, etag_of(analysis)):
        return Response(status_code=304, headers={"ETag": etag_of(analysis), "Cache-Control": "no-cache"})
    return answer(analysis, headers=preference(seconds))


@router.post(
    "/{id}/cancel",
    summary="Cancel an analysis",
    response_model=AnalysisAnswer,
    dependencies=WRITE,
    responses=responses(404, 409, 422, 503),
)
async def cancel_analysis(id: AnalysisId, request: Request) -> Response:
    """Stop an analysis: a queued one at once, a running one within two seconds. Asking again is no error."""
    store: AsyncStore = request.app.state.store
    analysis = found(id, await store.run(store.sync.request_cancel, id))
    if analysis.finished and analysis.status != "cancelled":
        raise ProblemError(409, "not-cancellable", f"the analysis has ended already: it {analysis.status}")
    return answer(analysis)


@router.delete(
    "/{id}",
    summary="Delete an analysis",
    status_code=204,
    response_class=Response,
    dependencies=WRITE,
    responses=responses(404, 409, 422, 503),
)
async def delete_analysis(
    id: AnalysisId,
    request: Request,
    purge: Annotated[bool, Query(description="delete the measured spectra too; needs a key of scope admin")] = False,
) -> Response:
    """Delete a finished analysis with its result. Schedules made from it are kept.

    Measured spectra are kept too, since other analyses of these weights go by them, unless `purge=true`: then every
    worker deletes those that its machine has, before its next analysis at the latest.
    """
    if purge:
        check_scope(caller_of(request), "admin")
    store: AsyncStore = request.app.state.store
    if not await store.run(store.sync.delete_analysis, id, purge=purge):
        analysis = found(id, await store.run(store.sync.analysis, id))
        raise ProblemError(409, "still-running", f"the analysis is {analysis.status}; cancel it first")
    store.forget_alphas(id)
    return Response(status_code=204)


def found(id: str, analysis: Analysis | None) -> Analysis:
    """Return the analysis. Raises ProblemError 404 when there is none."""
    if analysis is None:
        raise ProblemError(404, "analysis-not-found", f"there is no analysis {id}")
    return analysis


def preference(seconds: int) -> dict[str, str]:
    """Return the header that says how long was, or would have been, waited (RFC 7240)."""
    return {"Preference-Applied": f"wait={seconds}"} if seconds else {}
