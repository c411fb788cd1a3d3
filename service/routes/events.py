"""GET /v1/analyses/{id}/events: what happens to an analysis, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..async_store import AsyncStore
from ..problems import ProblemError, responses
from ..security import require
from ..waiting import place_for_stream, stream_of
from .analyses import AnalysisId, found

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])

RECONNECT_MILLISECONDS = 2000  # chosen here


class NothingMoreError(Exception):
    """Everything was told already: answered by 204, which makes a browser's EventSource stop coming back."""


async def start_of_stream(id: AnalysisId, request: Request) -> int:
    """Return the event to go on behind. Everything that can be refused is refused here, before the stream starts:
    an error inside it would only break an answer that began with 200.
    """
    store: AsyncStore = request.app.state.store
    given = request.headers.get("last-event-id", "").strip() or "0"
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise ProblemError(422, "invalid-request", "Last-Event-ID: expected the id of an event of this stream")
    analysis = found(id, await store.run(store.sync.analysis, id))
    after = int(given)
    if after and analysis.finished and not await store.run(store.sync.events, id, after):
        raise NothingMoreError
    return after


@router.get(
    "/{id}/events",
    summary="Follow an analysis",
    response_class=EventSourceResponse,
    dependencies=[Depends(require("read"))],
    responses=responses(404, 422, 429, 503, also={204: {"description": "The client knows everything already"}}),
)
async def events(
    id: AnalysisId,
    request: Request,
    after: Annotated[int, Depends(start_of_stream)],
    _place: Annotated[None, Depends(place_for_stream)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream `progress` (the latest count), `layer` (one finished layer) and, last, `done` (how it ended).

    The ids of events grow; a client that was cut off sends `Last-Event-ID` and goes on behind it. A comment every 15
    seconds keeps the connection open.
    """
    yield ServerSentEvent(retry=RECONNECT_MILLISECONDS)
    async for event in stream_of(request, id, after):
        yield ServerSentEvent(event=event.kind, id=str(event.seq), data=event.data)


async def nothing_more(request: Request, exc: Exception) -> Response:
    """Answer 204 for NothingMoreError."""
    return Response(status_code=204)
