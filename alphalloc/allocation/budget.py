"""How much there is to give away, in the unit the user thinks in.

Experts and ranks are counted over all layers, or a layer on average. Parameters and megabytes need the adapter they
buy: its rank and the shapes of its target modules.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphalloc.allocation.parameters import dtype_bytes
from alphalloc.allocation.shapes import ModuleShapes
from alphalloc.errors import InfeasibleBudgetError, InvalidBudgetError, InvalidParameterError

DEFAULT_EXPERTS_PER_LAYER = 5  # MoLA's and AlphaLoRA's mean: 160 experts over 32 layers (arXiv 2402.08562, 2410.10054)
MAX_EXPERTS = 10**9  # chosen here: more is a number in another unit, such as parameters
MAX_PARAMETERS = 10**15  # chosen here: beyond every model there is

MEANS = {"experts_per_layer": "experts", "ranks_per_layer": "ranks"}
WHOLE = ("experts", "ranks")
SIZES = ("parameters", "megabytes")
UNITS = ("experts", "experts_per_layer", "ranks", "ranks_per_layer", "parameters", "megabytes")


@dataclass(frozen=True)
class Adapter:
    """The adapter that a budget buys: experts of rank ``r`` on the modules of ``shapes``.

    ``r`` is None where ranks are what is allocated. Raises InvalidParameterError for a rank that is no positive
    integer.
    """

    shapes: ModuleShapes
    r: int | None = 8  # MoLA's and AlphaLoRA's

    def __post_init__(self) -> None:
        if self.r is not None and (isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1):
            raise InvalidParameterError(f"the rank r must be a positive whole number, found {self.r!r}")

    @classmethod
    def on(cls, shapes: ModuleShapes, *, r: int | None = 8, target_modules: Sequence[str] | None = None) -> Adapter:
        """Return an adapter on the modules with these roles; on all of ``shapes`` when None."""
        return cls(shapes.only(target_modules), r)


@dataclass(frozen=True)
class Budget:
    """An amount in a unit: ``Budget(160)`` is 160 experts in all, ``Budget.experts_per_layer(5)`` five a layer."""

    amount: int | float
    unit: str = "experts"
    adapter: Adapter | None = None
    dtype: str | None = None

    @classmethod
    def experts(cls, total: int, adapter: Adapter | None = None) -> Budget:
        """Return a budget of ``total`` experts over all slots; with an adapter its parameters are counted too."""
        return cls(total, "experts", adapter)

    @classmethod
    def experts_per_layer(cls, mean: float = DEFAULT_EXPERTS_PER_LAYER, adapter: Adapter | None = None) -> Budget:
        """Return a budget of ``mean`` experts a slot on average; ``mean`` x slots must be a whole number."""
        return cls(mean, "experts_per_layer", adapter)

    @classmethod
    def ranks(cls, total: int, adapter: Adapter | None = None) -> Budget:
        """Return a budget for a rank schedule: the ranks of all slots add up to ``total``."""
        return cls(total, "ranks", adapter)

    @classmethod
    def ranks_per_layer(cls, mean: float, adapter: Adapter | None = None) -> Budget:
        """Return a budget for a rank schedule: the ranks are ``mean`` on average."""
        return cls(mean, "ranks_per_layer", adapter)

    @classmethod
    def parameters(cls, limit: int, adapter: Adapter) -> Budget:
        """Return a budget of at most ``limit`` trainable parameters."""
        return cls(limit, "parameters", adapter)

    @classmethod
    def megabytes(cls, limit: float, adapter: Adapter, *, dtype: str = "float32") -> Budget:
        """Return a budget of at most ``limit`` x 10^6 bytes of trainable parameters in ``dtype``."""
        return cls(limit, "megabytes", adapter, dtype)

    def total_experts(self, num_layers: int) -> int:
        """Return the experts (or ranks) there are for ``num_layers`` slots.

        Raises InvalidBudgetError for an amount that is not a positive number of the unit, and InfeasibleBudgetError,
        with the nearest possible means, when a mean does not give a whole number.
        """
        if self.unit in WHOLE:
            return whole_number(self.amount, f"a budget in {self.unit}")
        if self.unit in MEANS:
            return _from_mean(self.amount, num_layers, MEANS[self.unit])
        raise InvalidBudgetError(
            f"a budget in {self.unit!r} has no number of experts by itself; units: {', '.join(UNITS)}"
        )

    def parameter_limit(self) -> int:
        """Return the most parameters a budget in parameters or megabytes allows. Raises InvalidBudgetError."""
        if self.adapter is None:
            raise InvalidBudgetError(f"a budget in {self.unit} needs an adapter: the rank and the module shapes")
        if self.unit == "parameters":
            return whole_number(self.amount, "a budget in parameters", most=MAX_PARAMETERS)
        megabytes = _positive(self.amount, "a budget in megabytes")
        limit = math.floor(megabytes * 1e6 / dtype_bytes(self.dtype or "float32"))
        if not 1 <= limit <= MAX_PARAMETERS:
            raise InvalidBudgetError(f"{self.amount} megabytes are {limit} parameters: expected 1 to {MAX_PARAMETERS}")
        return limit


def as_budget(value: int | Budget) -> Budget:
    """Return ``value`` as a budget; a bare number counts experts. InvalidBudgetError for an unknown unit."""
    budget = value if isinstance(value, Budget) else Budget.experts(value)
    if budget.unit not in UNITS:
        raise InvalidBudgetError(f"no budget unit is called {budget.unit!r}; there are: {', '.join(UNITS)}")
    return budget


def whole_number(value: Any, what: str, *, most: int = MAX_EXPERTS) -> int:
    """Return ``value`` as a positive int; InvalidBudgetError for booleans, floats, text, zero and too large numbers."""
    if isinstance(value, bool):
        raise InvalidBudgetError(f"{what} must be a whole number, found the boolean {value}")
    try:
        number = operator.index(value)
    except TypeError as exc:
        raise InvalidBudgetError(f"{what} must be a whole number, found {value!r} ({type(value).__name__})") from exc
    if not 1 <= number <= most:
        shown = number if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"
        raise InvalidBudgetError(f"{what} must lie between 1 and {most}, found {shown}")
    return number


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or value > 1e18:
        raise InvalidBudgetError(f"{what} must be a positive number, found {value!r}")
    return value


def _from_mean(mean: Any, slots: int, what: str) -> int:
    total = _positive(mean, f"{what} per layer") * slots
    nearest = round(total)
    if abs(total - nearest) > 1e-9 * slots:
        below, above = math.floor(total), math.ceil(total)
        raise InfeasibleBudgetError(
            f"{mean} {what} per layer over {slots} layers are {total:g} {what}, not a whole number; the nearest are "
            f"{below / slots!r} ({below} {what}) and {above / slots!r} ({above} {what})"
        )
    return whole_number(nearest, f"a budget in {what} per layer, times the layers,")
