"""How sure a schedule is: the estimator's own error, drawn many times through the same rule and rounding.

Each matrix's alpha is drawn as ``alpha + sigma * z``, truncated at 1, with ``sigma = (alpha - 1) /
sqrt(num_tail)``, the asymptotic error of the maximum-likelihood fit (Clauset et al., arXiv 0706.1062). Where the
analysis has a stability band, ``alpha`` is drawn uniformly from it first. 1,000 draws and seed 0 are chosen here;
``random.Random`` gives the same numbers on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alphalloc.allocation.parts import Confidence, ExpertRange
from alphalloc.allocation.signals import module_means
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError

DRAWS = 1000
SEED = 0
NOISE = 0.5  # above this share of changed draws the schedule carries a warning
_QUANTILES = (0.05, 0.95)


@dataclass(frozen=True)
class UncertainAlpha:
    """One matrix's alpha with its standard error, and its stability band where it has one."""

    slot: Slot
    alpha: float
    sigma: float
    band: tuple[float, float] | None = None

    def draw(self, random_numbers: random.Random) -> float:
        """Return one draw; at least 1."""
        centre = self.alpha if self.band is None else random_numbers.uniform(*self.band)
        for _ in range(100):  # at least 84 % of draws pass; the bound is for bands that reach below 1
            value = centre + self.sigma * random_numbers.gauss(0.0, 1.0)
            if value > 1:
                return value
        return max(centre, 1 + 1e-9)


def uncertain_alphas(matrices: Sequence[Any]) -> tuple[UncertainAlpha, ...]:
    """Return the matrices that have an alpha, each with its error. InvalidParameterError when none has."""
    found = []
    for matrix in matrices:
        if matrix.layer < 0 or matrix.alpha is None or matrix.num_tail < 1:
            continue
        sigma = matrix.sigma if matrix.sigma is not None else (matrix.alpha - 1) / math.sqrt(matrix.num_tail)
        band = getattr(matrix, "stability_band", None)
        slot = Slot(matrix.layer, matrix.stack, matrix.role)
        found.append(UncertainAlpha(slot, matrix.alpha, sigma, None if band is None else (band[0], band[1])))
    if not found:
        raise InvalidParameterError("a confidence needs an analysis with matrices and their errors, found bare numbers")
    return tuple(found)


def estimate_confidence(
    alphas: Sequence[UncertainAlpha],
    slots: Sequence[Slot],
    scores: Sequence[float],
    counts_of: Callable[[Sequence[float]], tuple[int, ...]],
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Confidence:
    """Return the 5 % to 95 % range of each slot's experts and the share of draws that change the schedule.

    ``counts_of`` is the allocation itself; ``scores`` are the undrawn ones, kept for slots without a valid matrix. The
    quantiles are order statistics, rounded outwards.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or not 1 <= draws <= 1_000_000:
        raise InvalidParameterError(f"draws must be a whole number from 1 to 1000000, found {draws!r}")
    numbers = random.Random(seed)
    usual = counts_of(scores)
    drawn = [counts_of(_draw(alphas, slots, scores, numbers)) for _ in range(draws)]
    first, last = math.floor(_QUANTILES[0] * (draws - 1)), math.ceil(_QUANTILES[1] * (draws - 1))
    ranges = []
    for i, slot in enumerate(slots):
        ordered = sorted(counts[i] for counts in drawn)
        ranges.append(
            ExpertRange(layer=slot.layer, stack=slot.stack, role=slot.role, low=ordered[first], high=ordered[last])
        )
    changed = sum(counts != usual for counts in drawn) / draws
    return Confidence(draws=draws, seed=seed, changed=changed, ranges=tuple(ranges))


def confidence_warning(confidence: Confidence) -> tuple[str, ...]:
    """Return a warning when more than half of the draws change the schedule."""
    if confidence.changed <= NOISE:
        return ()
    warning = (
        f"{confidence.changed:.0%} of {confidence.draws} draws within the estimator's own error change the schedule: "
        "differences between layers are mostly noise; compare with rule 'uniform'"
    )
    return (warning,)


def _draw(
    alphas: Sequence[UncertainAlpha], slots: Sequence[Slot], scores: Sequence[float], numbers: random.Random
) -> list[float]:
    """Return one score a slot: module draws, or their means over each layer, per role first."""
    per_module = module_means((alpha.slot, alpha.draw(numbers)) for alpha in alphas)
    if any(slot.role is not None for slot in slots):
        return [per_module.get(slot, score) for slot, score in zip(slots, scores, strict=True)]
    per_layer: dict[tuple[int, str], list[float]] = {}
    for slot, value in per_module.items():
        per_layer.setdefault((slot.layer, slot.stack), []).append(value)
    means = {layer: math.fsum(values) / len(values) for layer, values in per_layer.items()}
    return [means.get((slot.layer, slot.stack), score) for slot, score in zip(slots, scores, strict=True)]
