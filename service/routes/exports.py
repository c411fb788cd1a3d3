"""GET /v1/allocations/{id}/export: a stored schedule in the words of a trainer, or as a table."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from alphalloc.allocation import ExpertSchedule
from alphalloc.export import EXPORTERS, ExportOptions, export

from ..async_store import AsyncStore
from ..conventions import strong_etag, unchanged
from ..problems import ProblemError, Responses, responses
from ..security import require
from ..tables import CSV, JSON, PARQUET, as_parquet
from .allocations import AllocationId, stored

router = APIRouter(prefix="/v1/allocations", tags=["allocations"])

YAML, TOML, PYTHON, TEXT = "application/yaml", "application/toml", "text/x-python", "text/plain"
# What an exporter's text is. A test holds that every exporter is here.
MEDIA_TYPES = {
    "json": JSON,
    "yaml": YAML,
    "toml": TOML,
    "csv": CSV,
    "parquet": PARQUET,
    "peft": JSON,
    "alphalloc-peft": JSON,
    "mola": TEXT,
    "axolotl": YAML,
    "llamafactory": YAML,
    "ms-swift": PYTHON,
    "trl": PYTHON,
    "unsloth": PYTHON,
    "mixlora": JSON,
    "moe-peft": JSON,
}
COLUMNS = ("stack", "layer", "role", "alpha", "score", "num_experts", "top_k", "rank")
ANSWERS: Responses = {
    200: {
        "content": {
            media: {"schema": {"type": "object" if media in (JSON, YAML) else "string"}}
            for media in sorted(set(MEDIA_TYPES.values()))
        },
        "headers": {
            "X-Alphalloc-Notes": {
                "description": "What to know about this export: a JSON list of texts, when there is anything",
                "schema": {"type": "string"},
            }
        },
    },
    304: {"description": "Not changed"},
}
FORMATS = {"type": "string", "enum": sorted(MEDIA_TYPES)}


@router.get(
    "/{id}/export",
    summary="Export a schedule",
    response_class=Response,
    dependencies=[Depends(require("read"))],
    responses=responses(404, 406, 422, 503, also=ANSWERS),
)
async def export_allocation(
    id: AllocationId,
    request: Request,
    format: Annotated[str, Query(max_length=50, json_schema_extra=FORMATS)] = "json",
    r: Annotated[int | None, Query(ge=1, le=65536, description="rank of each expert")] = None,
    lora_alpha: Annotated[float, Query(gt=0, lt=1e9, allow_inf_nan=False)] = 16,
    lora_dropout: Annotated[float, Query(ge=0, lt=1, allow_inf_nan=False)] = 0.0,
    target_modules: Annotated[
        str | None, Query(max_length=2000, pattern=r"^[A-Za-z0-9_.]+(,[A-Za-z0-9_.]+)*$", description="a,b,c")
    ] = None,
    method: Annotated[Literal["lora", "moe"], Query(description="for trainers that can have both")] = "lora",
    block_list: Annotated[str | None, Query(max_length=100, pattern=r"^[A-Za-z0-9_]+$")] = None,
    average: Annotated[bool, Query(description="let targets with one number have the rounded mean")] = False,
) -> Response:
    """Return what `alphalloc export --to FORMAT` prints, or the layers as Parquet."""
    if format not in MEDIA_TYPES:
        raise ProblemError(406, "not-acceptable", f"format: expected one of {', '.join(sorted(MEDIA_TYPES))}")
    document = await stored(id, request)
    options = ExportOptions(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=None if target_modules is None else tuple(target_modules.split(",")),
        method=method,
        block_list=block_list,
        average=average,
    )
    store: AsyncStore = request.app.state.store
    content, notes = await store.compute(_exported, document.body, format, options)
    headers = {"ETag": strong_etag(content), "Cache-Control": "no-cache"}  # another release may write it otherwise
    if notes:
        headers["X-Alphalloc-Notes"] = json.dumps(notes)
    if unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[format])


def _exported(body: bytes, name: str, options: ExportOptions) -> tuple[bytes, list[str]]:
    schedule = ExpertSchedule.from_json(body.decode())
    if name == "parquet":
        pairs = zip(schedule.slots, schedule.slot_entries, strict=True)
        return as_parquet(COLUMNS, [
            (slot.stack, slot.layer, slot.role, entry.alpha, entry.score, entry.num_experts, entry.top_k, entry.rank)
            for slot, entry in pairs
        ]), []  # fmt: skip
    assert name in EXPORTERS
    result = export(schedule, name, options)
    return result.text.encode(), list(result.notes)
