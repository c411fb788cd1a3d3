"""/v1/allocations: from alphas and a budget to a schedule, and schedules made before."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.routing import APIRoute

from alphalloc import ModelAlphas
from alphalloc.allocation import ExpertSchedule

from ..allocating import is_quick, schedule_of
from ..answers import AnalysisAnswer
from ..async_store import AsyncStore, Document
from ..bodies import StrictJsonRoute
from ..conventions import IMMUTABLE, unchanged, wait_seconds
from ..problems import ProblemError, Responses, responses
from ..questions import known, submit
from ..schemas import ALLOCATION_ID, AllocationRequest, AlphasSource, AnalysisSource
from ..security import require
from ..store import AllocationRow, Analysis
from ..views import answer
from ..waiting import until
from .analyses import found, preference
from .layers import failure


class FromMemoryRoute(APIRoute):
    """A route that answers what is in memory at once: resolving dependencies takes twice as long as all the rest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the framework's handler behind a look into memory."""
        handle = super().get_route_handler()

        async def answer_from_memory(request: Request) -> Response:
            document = request.app.state.store.known_document(request.path_params["id"])
            if document is None:
                return await handle(request)
            await require_read(request)
            return _sent(document, request)

        return answer_from_memory


router = APIRouter(prefix="/v1/allocations", tags=["allocations"], route_class=StrictJsonRoute)
reading = APIRouter(prefix="/v1/allocations", tags=["allocations"], route_class=FromMemoryRoute)

AllocationId = Annotated[str, Path(pattern=ALLOCATION_ID, description="the `id` of a schedule")]
require_read, require_write = require("read"), require("write")
HEADERS = {
    "ETag": {"description": "Strong: the bytes of an id never change", "schema": {"type": "string"}},
    "Location": {"description": "Where the schedule, or the analysis, is", "schema": {"type": "string"}},
}
ANSWERS: Responses = {
    200: {"model": ExpertSchedule, "description": "The schedule; it was stored before, or was not to be stored"},
    201: {"model": ExpertSchedule, "description": "The schedule, stored from now on", "headers": HEADERS},
    202: {"model": AnalysisAnswer, "description": "The model is being analysed; ask again when it has succeeded"},
}


@router.post(
    "",
    summary="Allocate experts to layers",
    response_model=ExpertSchedule,
    status_code=201,
    dependencies=[Depends(require_read)],
    responses=responses(400, 403, 404, 409, 413, 415, 422, 429, 503, also=ANSWERS),
)
async def create_allocation(question: AllocationRequest, request: Request) -> Response:
    """Return the schedule that the library and the command line give for the same question, byte for byte.

    The same question always gives the same id and the same bytes, so asking again is safe. A model that has not been
    analysed yet gives 202 with the analysis; `Prefer: wait=N` waits for it up to N seconds (at most 60). Storing and
    analysing need the scope `write`, `store: false` with known alphas only `read`.
    """
    source = question.source
    if question.store:
        await require_write(request)
    if isinstance(source, AlphasSource):
        return await _answer(question, source.alphas, None, request)
    analysis = await _analysis(question, request)
    if not analysis.finished:
        return answer(analysis, created=True, headers=preference(wait_seconds(request)))
    store: AsyncStore = request.app.state.store
    alphas = await store.alphas(analysis.id) if analysis.status == "succeeded" else None
    if alphas is None:
        raise ProblemError(409, "analysis-failed", f"{analysis.id} {analysis.status}: {failure(analysis.error)}")
    return await _answer(question, alphas, analysis.id, request)


@reading.get(
    "/{id}",
    summary="Get a schedule",
    response_model=ExpertSchedule,
    dependencies=[Depends(require_read)],
    responses=responses(
        404,
        422,
        503,
        also={200: {"headers": {"ETag": HEADERS["ETag"]}}, 304: {"description": "The client has it already"}},
    ),
)
async def get_allocation(id: AllocationId, request: Request) -> Response:
    """Return a stored schedule. Its bytes never change, so it may be cached for good."""
    return _sent(await stored(id, request), request)


async def stored(id: str, request: Request) -> Document:
    """Return the stored schedule. Raises ProblemError 404 when there is none of that id."""
    store: AsyncStore = request.app.state.store
    document = store.known_document(id) or await store.document(id)
    if document is None:
        raise ProblemError(404, "allocation-not-found", f"there is no stored schedule {id}")
    return document


async def _analysis(question: AllocationRequest, request: Request) -> Analysis:
    """Return the analysis that the question is about, started where need be, after the wait that was asked for."""
    source = question.source
    store: AsyncStore = request.app.state.store
    assert not isinstance(source, AlphasSource)
    if isinstance(source, AnalysisSource):
        analysis = found(source.analysis_id, await store.run(store.sync.analysis, source.analysis_id))
    else:
        existing = await known(source, request)
        if existing is None or not existing.finished:
            await require_write(request)
            existing = (await submit(source, request)).analysis
        analysis = existing
    if (seconds := wait_seconds(request)) and not analysis.finished:
        analysis = await until(request, analysis.id, seconds, lambda now: now.finished) or analysis
    return analysis


async def _answer(
    question: AllocationRequest, scores: Sequence[float] | ModelAlphas, analysis_id: str | None, request: Request
) -> Response:
    store: AsyncStore = request.app.state.store
    quick = is_quick(question, scores)
    schedule = schedule_of(question, scores) if quick else await store.compute(schedule_of, question, scores)
    if not question.store:
        return Response(schedule.to_json(), headers={"Cache-Control": "no-store"}, media_type="application/json")

    def row() -> AllocationRow:
        asked = question.model_dump(mode="json")
        return AllocationRow(schedule.id, schedule.to_json().encode(), asked, analysis_id)

    document, new = await store.keep(schedule.id, row)
    headers = {"ETag": document.etag, "Location": f"/v1/allocations/{schedule.id}", "Cache-Control": "no-cache"}
    return Response(document.body, 201 if new else 200, headers, media_type="application/json")


def _sent(document: Document, request: Request) -> Response:
    headers = {"ETag": document.etag, "Cache-Control": IMMUTABLE}
    if unchanged(request, document.etag):
        return Response(status_code=304, headers=headers)
    return Response(document.body, headers=headers, media_type="application/json")
