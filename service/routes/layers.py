"""GET /v1/analyses/{id}/layers: the alphas that an analysis found, as JSON, CSV or Parquet."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from alphalloc import LayerAlpha, MatrixAlpha, ModelAlphas

from ..answers import LayerTable
from ..async_store import AsyncStore
from ..conventions import strong_etag, unchanged
from ..problems import ProblemError, responses
from ..security import require
from ..tables import CSV, JSON, PARQUET, acceptable, as_csv, as_parquet
from .analyses import AnalysisId, found

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])

NESTED = ("roles", "likelihood_ratios", "esd_histogram")  # fields that are not one number or text
LAYER_COLUMNS = [name for name in LayerAlpha.model_fields if name not in NESTED]
MATRIX_COLUMNS = [name for name in MatrixAlpha.model_fields if name not in NESTED]
FORMS: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}},
    PARQUET: {"schema": {"type": "string", "format": "binary"}},
}


@router.get(
    "/{id}/layers",
    summary="The alphas of an analysis",
    response_model=LayerTable,
    dependencies=[Depends(require("read"))],
    responses=responses(404, 406, 409, 422, 503, also={200: {"content": FORMS}, 304: {"description": "Not changed"}}),
)
async def layers(
    id: AnalysisId, request: Request, level: Annotated[Literal["layer", "matrix"], Query()] = "layer"
) -> Response:
    """Return one row a layer, or a matrix, of a finished analysis in the form that `Accept` asks for.

    The alphas document itself, with histograms and skipped tensors, is at `/v1/analyses/{id}/alphas`.
    """
    media = acceptable(request.headers.get("accept"), (JSON, CSV, PARQUET))
    if media is None:
        raise ProblemError(406, "not-acceptable", f"expected Accept {JSON}, {CSV} or {PARQUET}")
    alphas = await finished_alphas(id, request)
    store: AsyncStore = request.app.state.store
    content = await store.compute(_rendered, alphas, level, media)
    return _immutable(request, content, media)


@router.get(
    "/{id}/alphas",
    summary="The alphas document of an analysis",
    response_class=Response,
    dependencies=[Depends(require("read"))],
    responses=responses(
        404,
        409,
        422,
        503,
        also={
            200: {"content": {JSON: {"schema": {"$ref": "#/components/schemas/ModelAlphas"}}}},
            304: {"description": "Not changed"},
        },
    ),
)
async def alphas_document(id: AnalysisId, request: Request) -> Response:
    """Return what `alphalloc analyze -o alphas.json` writes, byte for byte."""
    alphas = await finished_alphas(id, request)
    store: AsyncStore = request.app.state.store
    return _immutable(request, (await store.compute(alphas.to_json)).encode(), JSON)


async def finished_alphas(id: str, request: Request) -> ModelAlphas:
    """Return the alphas of a succeeded analysis. Raises ProblemError 404, or 409 not-finished and analysis-failed."""
    store: AsyncStore = request.app.state.store
    analysis = found(id, await store.run(store.sync.analysis, id))
    if not analysis.finished:
        raise ProblemError(409, "not-finished", f"the analysis is {analysis.status}; wait for its end")
    alphas = await store.alphas(id) if analysis.status == "succeeded" else None
    if alphas is None:
        raise ProblemError(409, "analysis-failed", f"the analysis {analysis.status}: {failure(analysis.error)}")
    return alphas


def failure(error: dict[str, Any] | None) -> str:
    """Return in words why an analysis has no result."""
    return str((error or {}).get("detail", "there is no result"))


def _rendered(alphas: ModelAlphas, level: str, media: str) -> bytes:
    columns = LAYER_COLUMNS if level == "layer" else MATRIX_COLUMNS
    entries = alphas.layers if level == "layer" else alphas.matrices
    rows = [[getattr(entry, name) for name in columns] for entry in entries]
    if media == PARQUET:
        return as_parquet(columns, rows)
    if media == CSV:
        return as_csv(columns, rows).encode()
    table = LayerTable(level=level, estimator=alphas.analysis.estimator, columns=columns, rows=rows)
    return table.model_dump_json().encode()


def _immutable(request: Request, content: bytes, media: str) -> Response:
    etag = strong_etag(content)
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept"}
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media)
