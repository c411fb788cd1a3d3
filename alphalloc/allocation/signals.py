"""What may stand where alphas stand: a metric column of an analysis, or scores that another program made.

A signal has a direction: ``higher`` gives more experts to higher scores, ``lower`` to lower ones. Influence (arXiv
2505.23811), Fisher information and gradient sensitivity are ``higher``, similarity between tasks is ``lower``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

from alphalloc.allocation.parts import Direction, SignalRef
from alphalloc.allocation.references import AnalysisRef, LayerRef, ModelRef
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError, InvalidScoresError

# Metrics that every analysed matrix carries. Which direction is the right one is a hypothesis: the user states it.
METRICS = (
    "stable_rank",
    "entropy",
    "alpha_weighted",
    "log_alpha_norm",
    "log10_spectral_norm",
    "spectral_norm",
    "frobenius_norm",
    "rank",
    "ks_distance",
)


@dataclass(frozen=True)
class SignalScores:
    """One score a slot, and where they come from; :func:`alphalloc.allocation.allocate` takes it as it takes alphas.

    ``per_module`` holds scores by slot with a role; empty where the signal only knows layers.
    """

    per_layer: tuple[float, ...]
    layer_refs: tuple[LayerRef, ...]
    signal: SignalRef
    per_module: Mapping[Slot, float]
    model_ref: ModelRef | None = None
    analysis_ref: AnalysisRef | None = None
    notes: tuple[str, ...] = ()


def metric_scores(alphas: Any, metric: str, *, direction: Direction) -> SignalScores:
    """Return a metric of an analysis as scores: unweighted means over a layer's matrices, per role first.

    ``alphas`` is a ModelAlphas; ``metric`` one of METRICS. Raises InvalidParameterError for another name or direction
    and InvalidScoresError when a layer has no value.
    """
    if metric not in METRICS:
        raise InvalidParameterError(f"no metric is called {metric!r}; there are: {', '.join(METRICS)}")
    matrices = tuple(getattr(alphas, "matrices", ()))
    if not matrices:
        raise InvalidScoresError("a metric needs an analysis with its matrices, found none")
    per_module = module_means((_slot(matrix), getattr(matrix, metric)) for matrix in matrices if matrix.layer >= 0)
    refs = tuple(alphas.layer_refs)
    return SignalScores(
        per_layer=layer_means(per_module, refs, what=metric),
        layer_refs=refs,
        signal=SignalRef(name=metric, direction=checked_direction(direction)),
        per_module=per_module,
        model_ref=alphas.model_ref,
        analysis_ref=alphas.analysis_ref,
        notes=tuple(alphas.notes),
    )


def external_scores(
    scores: Mapping[Slot, float], *, name: str = "external", direction: Direction = "higher", source: str | None = None
) -> SignalScores:
    """Return scores by slot, of layers or of modules, as a signal. Layers keep the order in which they come."""
    refs = tuple(dict.fromkeys(LayerRef(layer=slot.layer, stack=slot.stack) for slot in scores))
    if not refs:
        raise InvalidScoresError("expected one score a layer, found none")
    by_module = any(slot.role is not None for slot in scores)
    layers = {Slot(ref.layer, ref.stack): ref for ref in refs}
    return SignalScores(
        per_layer=layer_means(scores, refs, what=name) if by_module else tuple(scores[slot] for slot in layers),
        layer_refs=refs,
        signal=SignalRef(name=name, direction=checked_direction(direction), source=source),
        per_module=dict(scores) if by_module else {},
    )


def checked_direction(direction: Any) -> Direction:
    """Return the direction; InvalidParameterError for anything but "higher" and "lower"."""
    if direction not in get_args(Direction):
        raise InvalidParameterError(f"direction must be 'higher' or 'lower' (who gets more), found {direction!r}")
    return direction  # type: ignore[no-any-return]


def module_means(values: Iterable[tuple[Slot, float | None]]) -> dict[Slot, float]:
    """Return the mean value of each slot; several matrices of one role (a mixture's experts) count once together."""
    found: dict[Slot, list[float]] = {}
    for slot, value in values:
        members = found.setdefault(slot, [])
        if value is not None and math.isfinite(value):
            members.append(value)
    return {slot: fmean(members) for slot, members in found.items() if members}


def layer_means(per_module: Mapping[Slot, float], refs: Sequence[LayerRef], *, what: str) -> tuple[float, ...]:
    """Return the unweighted mean over each layer's modules; InvalidScoresError names a layer without any."""
    found: dict[tuple[int, str], list[float]] = {(ref.layer, ref.stack): [] for ref in refs}
    for slot, value in per_module.items():
        if (slot.layer, slot.stack) in found:
            found[slot.layer, slot.stack].append(value)
    empty = [ref for ref in refs if not found[ref.layer, ref.stack]]
    if empty:
        raise InvalidScoresError(f"no matrix of layer {empty[0]} has a {what}; choose another signal")
    return tuple(fmean(found[ref.layer, ref.stack]) for ref in refs)


def oriented(scores: Sequence[float], direction: Direction, *, positive: bool) -> tuple[float, ...]:
    """Return scores of which a higher one gets more: ``1 / score`` for rules of positive scores, else ``-score``."""
    if direction == "higher":
        return tuple(scores)
    return tuple(1 / score if positive else -score for score in scores)


def _slot(matrix: Any) -> Slot:
    return Slot(matrix.layer, matrix.stack, matrix.role)
