"""POST /v1/schedules/validate: is this document what it says, and does it fit a model?"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request

from alphalloc.allocation import ExpertSchedule, ModuleShapes, check_against_model
from alphalloc.errors import DocumentError

from ..answers import FieldFault, Validation
from ..bodies import StrictJsonRoute
from ..problems import responses
from ..schemas import ANALYSIS_ID
from ..security import require
from .layers import finished_alphas

router = APIRouter(prefix="/v1/schedules", tags=["allocations"], route_class=StrictJsonRoute)


@router.post(
    "/validate",
    summary="Check a schedule",
    dependencies=[Depends(require("read"))],
    responses=responses(400, 404, 409, 413, 415, 422, 503),
)
async def validate(
    document: Annotated[Any, Body(description="a schedule document")],
    request: Request,
    analysis_id: Annotated[
        str | None, Query(pattern=ANALYSIS_ID, description="check its layers and modules against this analysis's model")
    ] = None,
) -> Validation:
    """Check schema, totals, bounds and id. A document that is not valid is still an answer of 200."""
    alphas = None if analysis_id is None else await finished_alphas(analysis_id, request)
    try:
        schedule = ExpertSchedule.from_json(json.dumps(document))
        if alphas is not None:
            check_against_model(schedule, ModuleShapes.of_matrices(alphas.matrices))
    except DocumentError as exc:
        return Validation(valid=False, errors=[FieldFault(pointer="", detail=str(exc)[:2000])])
    return Validation(valid=True, errors=[])
