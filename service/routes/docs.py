"""GET /docs: Swagger UI on /openapi.json, from the files of the wheel ``fastapi-offline``; nothing from other hosts.

The framework's own page loads scripts from a CDN, which closed networks and our Content-Security-Policy refuse.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Response

from ..problems import ProblemError

router = APIRouter(include_in_schema=False)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>alphalloc API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'
MEDIA_TYPES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


@router.get("/docs")
async def docs() -> Response:
    """Return the page; 404 when the wheel with Swagger UI is not installed."""
    _folder()
    return Response(PAGE, media_type="text/html")


@router.get("/docs/{name}")
async def docs_file(name: str) -> Response:
    """Return one of the page's files."""
    headers = {"Cache-Control": "public, max-age=3600"}
    if name == "start.js":
        return Response(START, media_type="text/javascript", headers=headers)
    if name not in MEDIA_TYPES:
        raise ProblemError(404, "not-found", "there is nothing at this path; see /docs")
    return Response(_content(name), media_type=MEDIA_TYPES[name], headers=headers)


def _folder() -> Path:
    found = find_spec("fastapi_offline")  # looked up, not imported
    if found is None or found.origin is None:
        detail = "Swagger UI is not installed here: pip install fastapi-offline; /openapi.json is always there"
        raise ProblemError(404, "not-found", detail)
    return Path(found.origin).parent / "static"


@cache
def _content(name: str) -> bytes:
    return (_folder() / name).read_bytes()
