"""GET /healthz: is the process alive?"""

from __future__ import annotations

from fastapi import APIRouter

from alphalloc.documents import package_version

from ..schemas import Health

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Is the process alive?")
async def health() -> Health:
    """Answer 200 as long as the process can answer at all."""
    return Health(status="ok", version=package_version())
