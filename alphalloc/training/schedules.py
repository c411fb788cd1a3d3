"""The schedule of a run: a saved one, counts by hand, or a rule and a budget on a fresh analysis of the same model."""

from __future__ import annotations

from typing import Any

from alphalloc.allocation import Budget, ExpertSchedule, allocate
from alphalloc.errors import TrainingError
from alphalloc.training.models import BaseModel
from alphalloc.training.recipe import ScheduleSettings


def schedule_for(settings: ScheduleSettings, base: BaseModel) -> tuple[ExpertSchedule, tuple[str, ...]]:
    """Return the schedule, and warnings about where it comes from.

    Raises:
        TrainingError: it is for a model of another depth.
        DocumentError: the file is not a schedule.
        AllocationError, AnalysisError: rule, budget and model give none.
    """
    if settings.file is not None:
        schedule = ExpertSchedule.load(settings.file)
        check_depth(schedule, base)
        return schedule, other_model(schedule, base)
    if settings.counts is not None:
        schedule = ExpertSchedule.from_counts(
            settings.counts,
            top_k=settings.top_k,
            model=base.reference,
            layer_refs=base.layers if len(base.layers) == len(settings.counts) else None,
        )
        check_depth(schedule, base)
        return schedule, ()
    schedule = _allocated(settings, base)
    return schedule, tuple(schedule.warnings)


def check_depth(schedule: ExpertSchedule, base: BaseModel) -> None:
    """Raise TrainingError unless the schedule has exactly the layers of the model."""
    wanted = {(ref.stack, ref.layer) for ref in base.layers}
    found = {(layer.stack, layer.layer) for layer in schedule.layers}
    if wanted == found or len(wanted) == len(found):  # stacks may be named differently: the adapter decides
        return
    made_for = f", made for {schedule.model.id}" if schedule.model is not None else ""
    raise TrainingError(
        f"expected a schedule of {len(wanted)} layers for {base.source}, got {schedule.id} with {len(found)}{made_for}"
        "; make one from this model: alphalloc analyze MODEL --schedule schedule.json"
    )


def other_model(schedule: ExpertSchedule, base: BaseModel) -> tuple[str, ...]:
    """Return a warning if the schedule was made from another model of the same depth; nothing if that is not known."""
    made_for, ours = schedule.model, base.reference
    if made_for is None or made_for.fingerprint is None or made_for.fingerprint == ours.fingerprint:
        return ()
    warning = (
        f"schedule {schedule.id} was made from {made_for.id} ({_short(made_for.fingerprint)}), but {ours.id} "
        f"({_short(ours.fingerprint)}) is trained: its alphas are another model's, or the same one's at other precision"
    )
    return (warning,)


def _allocated(settings: ScheduleSettings, base: BaseModel) -> ExpertSchedule:
    budget = Budget.experts_per_layer(settings.experts_per_layer) if settings.experts is None else settings.experts
    asked: dict[str, Any] = {"rule": settings.rule, "top_k": settings.top_k, "min_experts": settings.min_experts}
    for name in ("beta", "rounding", "max_experts"):
        value = getattr(settings, name)
        if value is not None:
            asked[name] = value
    if not settings.needs_analysis:
        # The rule looks at the depth alone: scores of 1 stand in for the alphas and leave no trace.
        schedule = allocate([1.0] * len(base.layers), budget, **asked)
        layers = [
            layer.model_copy(update={"alpha": None, "layer": ref.layer, "stack": ref.stack})
            for layer, ref in zip(schedule.layers, base.layers, strict=True)
        ]
        return schedule.revised(layers=tuple(layers), model=base.reference)
    from alphalloc.analysis import analyze

    estimator = {} if settings.estimator is None else {"estimator": settings.estimator}
    alphas = analyze(base.source, revision=base.revision, **estimator)  # type: ignore[arg-type]
    return allocate(alphas, budget, **asked)


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:19]
