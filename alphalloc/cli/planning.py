"""How a plan is shown: one line before an analysis, a table and plain values for ``inspect``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from alphalloc.cli.render import note
from alphalloc.cli.text import byte_size, duration

if TYPE_CHECKING:
    from rich.table import Table

    from alphalloc.analysis.plan import Plan, Speed
    from alphalloc.checkpoint import Checkpoint


def check_memory(memory: str | None) -> None:
    """Raise AnalysisError when ``memory`` is no size, before anything is downloaded or read."""
    if memory is not None:
        from alphalloc.analysis.memory import memory_budget

        memory_budget(memory)


def planned(checkpoint: Checkpoint, *, memory: str | None, workers: int | None) -> tuple[Plan, Speed]:
    """Return the plan of ``checkpoint`` and this machine's speed, which gives its time. Raises MemoryBudgetError."""
    from alphalloc.analysis.plan import make_plan, measure_speed

    return make_plan(checkpoint, memory=memory, workers=workers), measure_speed()


def show_once() -> Callable[[Plan], None]:
    """Return a callback that prints the first plan it is given to stderr."""
    shown: list[Plan] = []

    def show(plan: Plan) -> None:
        if not shown:
            from alphalloc.analysis.plan import measure_speed

            note(plan_line(plan, measure_speed()))
        shown.append(plan)

    return show


def plan_line(plan: Plan, speed: Speed) -> str:
    """Return the plan in a sentence: matrices, batches, workers, time with nothing cached, memory."""
    count, batches = len(plan.positions), len(plan.batches)
    slabs = sum(len(batch.positions) for batch in plan.batches if batch.by_slabs)
    read = f", {slabs} read by slabs" if slabs else ""
    return (
        f"plan: {count} matrices in {batches} batch{'es' if batches != 1 else ''}{read}, {plan.workers} at once; "
        f"about {duration(plan.seconds(speed))} with nothing cached, at most {byte_size(plan.peak_bytes)} of memory "
        f"for matrices (budget {byte_size(plan.budget_bytes)})"
    )


def plan_table(plan: Plan) -> Table:
    """Return the batches in the order in which they are computed."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("batch", "smaller side", "matrices", "at once", "memory each", "read"):
        table.add_column(heading, justify="left" if heading == "read" else "right")
    rows = [(stage, batch) for stage in plan.stages for batch in stage.batches]
    for number, (stage, batch) in enumerate(rows, start=1):
        cells = (number, batch.side, len(batch.positions), stage.workers, byte_size(batch.task_bytes))
        table.add_row(*map(str, cells), "by slabs" if batch.by_slabs else "whole")
    return table


def plan_values(plan: Plan, speed: Speed) -> dict[str, Any]:
    """Return the plan as plain values."""
    return {
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "workers": plan.workers,
        "estimated_seconds": round(plan.seconds(speed), 3),
        "batches": [
            {
                "side": batch.side,
                "num_matrices": len(batch.positions),
                "workers": stage.workers,
                "task_bytes": batch.task_bytes,
                "by_slabs": batch.by_slabs,
            }
            for stage in plan.stages
            for batch in stage.batches
        ],
    }
