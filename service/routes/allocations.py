"""POST /v1/allocations: from alphas and a budget to a schedule."""

from __future__ import annotations

from fastapi import APIRouter, Response

from alphalloc.allocation import ExpertSchedule, allocate

from ..bodies import StrictJsonRoute
from ..problems import responses
from ..schemas import AllocationRequest

router = APIRouter(prefix="/v1", tags=["allocations"], route_class=StrictJsonRoute)


@router.post(
    "/allocations",
    summary="Allocate experts to layers",
    response_model=ExpertSchedule,
    responses=responses(400, 413, 415, 422),
)
async def create_allocation(request: AllocationRequest) -> Response:
    """Return the schedule that the library and the command line give for the same question, byte for byte.

    Answers 200 and stores nothing. The same request always gives the same id.
    """
    return Response(answer(request).to_json(), media_type="application/json")


def answer(request: AllocationRequest) -> ExpertSchedule:
    """Return the schedule of ``request``. Raises an AllocationError."""
    return allocate(
        request.source.alphas,
        request.budget.total,
        rule=request.method,
        rounding=request.rounding,
        min_experts=request.bounds.min,
        max_experts=request.bounds.max,
        top_k=request.top_k,
        params=request.params,
    )
