"""How much there is to give away, in the unit the user thinks in."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

from alphalloc.errors import InfeasibleBudgetError, InvalidBudgetError

Unit = Literal["experts", "experts_per_layer"]

DEFAULT_EXPERTS_PER_LAYER = 5  # MoLA's and AlphaLoRA's mean: 160 experts over 32 layers (arXiv 2402.08562, 2410.10054)
MAX_EXPERTS = 10**9  # chosen here: more is a number in another unit, such as parameters


@dataclass(frozen=True)
class Budget:
    """An amount in a unit: ``Budget(160)`` is 160 experts in all, ``Budget.experts_per_layer(5)`` five a layer."""

    amount: int | float
    unit: Unit = "experts"

    @classmethod
    def experts(cls, total: int) -> Budget:
        """Return a budget of ``total`` experts over all layers."""
        return cls(total, "experts")

    @classmethod
    def experts_per_layer(cls, mean: float = DEFAULT_EXPERTS_PER_LAYER) -> Budget:
        """Return a budget of ``mean`` experts a layer on average; ``mean`` x layers must be a whole number."""
        return cls(mean, "experts_per_layer")

    def total_experts(self, num_layers: int) -> int:
        """Return the experts there are for ``num_layers`` layers.

        Raises InvalidBudgetError for an amount that is not a positive number of the unit, and InfeasibleBudgetError,
        with the nearest possible means, when a mean does not give whole experts.
        """
        if self.unit == "experts":
            return whole_number(self.amount, "a budget in experts")
        if self.unit == "experts_per_layer":
            return _from_mean(self.amount, num_layers)
        raise InvalidBudgetError(f"no budget unit is called {self.unit!r}; there are: experts, experts_per_layer")


def as_budget(value: int | Budget) -> Budget:
    """Return ``value`` as a budget; a bare number counts experts."""
    return value if isinstance(value, Budget) else Budget.experts(value)


def whole_number(value: Any, what: str) -> int:
    """Return ``value`` as a positive int; InvalidBudgetError for booleans, floats, text, zero and too large numbers."""
    if isinstance(value, bool):
        raise InvalidBudgetError(f"{what} must be a whole number, found the boolean {value}")
    try:
        number = operator.index(value)
    except TypeError as exc:
        raise InvalidBudgetError(f"{what} must be a whole number, found {value!r} ({type(value).__name__})") from exc
    if not 1 <= number <= MAX_EXPERTS:
        shown = number if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"
        raise InvalidBudgetError(f"{what} must lie between 1 and {MAX_EXPERTS}, found {shown}")
    return number


def _from_mean(mean: Any, num_layers: int) -> int:
    if isinstance(mean, bool) or not isinstance(mean, (int, float)) or not math.isfinite(mean) or mean <= 0:
        raise InvalidBudgetError(f"experts per layer must be a positive number, found {mean!r}")
    total = mean * num_layers
    nearest = round(total)
    if abs(total - nearest) > 1e-9 * num_layers:
        below, above = math.floor(total), math.ceil(total)
        raise InfeasibleBudgetError(
            f"{mean} experts per layer over {num_layers} layers are {total:g} experts, not a whole number; the nearest "
            f"are {below / num_layers!r} ({below} experts) and {above / num_layers!r} ({above} experts)"
        )
    return whole_number(nearest, "a budget in experts per layer, times the layers,")
