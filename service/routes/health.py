"""GET /healthz: is the process alive?"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter

from ..schemas import Health

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Is the process alive?")
async def health() -> Health:
    """Answer 200 as long as the process can answer at all."""
    return Health(status="ok", version=version("alphalloc"))
