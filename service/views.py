"""How an analysis of the database looks to a client."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import Response

from .answers import AnalysisAnswer, AnalysisLinks, AnalysisResult, JobProblem, Progress
from .conventions import RETRY_SECONDS, weak_etag
from .store import Analysis


def describe(analysis: Analysis) -> AnalysisAnswer:
    """Return the answer about ``analysis``."""
    place = f"/v1/analyses/{analysis.id}"
    result = None
    if analysis.status == "succeeded":
        result = AnalysisResult(
            layers_url=f"{place}/layers", report_url=f"{place}/report", summary=analysis.summary or {}
        )
    return AnalysisAnswer(
        id=analysis.id,
        status=analysis.status,
        progress=Progress(done=analysis.done, total=analysis.total),
        eta_seconds=_eta(analysis),
        attempt=analysis.attempt,
        cancel_requested=analysis.cancel_requested,
        created_at=_time(analysis.created_at) or "",
        started_at=_time(analysis.started_at),
        finished_at=_time(analysis.finished_at),
        request=analysis.request,
        model=analysis.model,
        result=result,
        error=None if analysis.error is None else JobProblem(**analysis.error),
        links=AnalysisLinks(self=place, events=f"{place}/events", cancel=f"{place}/cancel"),
    )


def etag_of(analysis: Analysis) -> str:
    """Return the weak entity tag: it changes with everything that a client could see, but for the estimated time."""
    return weak_etag(f"{analysis.id}.{analysis.version}")


def answer(analysis: Analysis, *, created: bool = False, headers: dict[str, str] | None = None) -> Response:
    """Return the analysis as a response: 202 with Location and Retry-After while it is under way and was ``created``
    or asked for by POST, else 200.
    """
    under_way = created and not analysis.finished
    sent = {"ETag": etag_of(analysis), "Cache-Control": "no-cache", **(headers or {})}
    if created:
        sent["Location"] = f"/v1/analyses/{analysis.id}"
    if not analysis.finished:
        sent["Retry-After"] = str(RETRY_SECONDS)
    body = describe(analysis).model_dump_json(exclude_none=True)
    return Response(body, 202 if under_way else 200, sent, media_type="application/json")


def _eta(analysis: Analysis) -> float | None:
    if analysis.status != "running" or not analysis.done or analysis.started_at is None:
        return None
    elapsed = max(0.0, time.time() - analysis.started_at)
    return round(elapsed / analysis.done * (analysis.total - analysis.done), 1)


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_json(analyses: list[Analysis]) -> list[dict[str, Any]]:
    """Return the answers about several analyses as plain values."""
    return [describe(analysis).model_dump(mode="json", exclude_none=True) for analysis in analyses]
