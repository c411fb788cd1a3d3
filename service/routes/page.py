"""GET / and /static/: the page, a few files that load nothing from anywhere else."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from ..async_store import Document
from ..conventions import unchanged
from ..problems import ProblemError

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "static"
MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    **dict.fromkeys(("api.js", "alphas.js", "app.js", "chart.js"), "text/javascript; charset=utf-8"),
    "style.css": "text/css; charset=utf-8",
}


@router.get("/")
async def page(request: Request) -> Response:
    """Return the page. Its policy, scripts and styles of this service alone, is the one that every HTML answer gets."""
    return _answer("index.html", request)


@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """Return a file that the page is made of."""
    if name not in MEDIA_TYPES:
        raise ProblemError(404, "not-found", "the page has no such file")
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    document = _document(name)
    headers = {"ETag": document.etag, "Cache-Control": "no-cache"}  # asked for again, and not sent again
    if unchanged(request, document.etag):
        return Response(status_code=304, headers=headers)
    return Response(document.body, headers=headers, media_type=MEDIA_TYPES[name])


@cache
def _document(name: str) -> Document:
    return Document.of((FOLDER / name).read_bytes())
