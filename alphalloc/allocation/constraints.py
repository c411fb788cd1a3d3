"""What the user already knows: bounds of single layers or roles, pinned, frozen and grouped ones.

Every constraint becomes a lower and an upper bound of each slot, and groups of slots that share a count; the roundings
know nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from alphalloc.allocation.references import Count, Frozen
from alphalloc.allocation.slots import Slot, select
from alphalloc.errors import InvalidParameterError


class Constraints(Frozen):
    """Bounds by selector (see :mod:`alphalloc.allocation.slots`).

    ``min_experts`` and ``max_experts`` replace the general bounds where they apply; where two selectors name one layer,
    the tighter bound holds. ``pinned`` fixes a count. ``frozen`` layers get 0 experts: they are not adapted. Each of
    ``groups`` is a list of selectors whose layers share one count.
    """

    min_experts: dict[str, Count] = Field(default_factory=dict)
    max_experts: dict[str, Count] = Field(default_factory=dict)
    pinned: dict[str, Count] = Field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class SlotBounds:
    """Lower and upper bound of every slot, and the groups (positions of slots, two or more each) that share a count."""

    low: tuple[int, ...]
    high: tuple[int | None, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def high_within(self, total: int) -> list[int]:
        """Return the upper bounds with ``total`` (or the lower bound, if larger) for those that have none."""
        return [max(total, lo) if hi is None else hi for lo, hi in zip(self.low, self.high, strict=True)]


def as_constraints(value: Constraints | Mapping[str, Any] | None) -> Constraints | None:
    """Return ``value`` as constraints; InvalidParameterError for unknown fields or values of the wrong kind."""
    if value is None or isinstance(value, Constraints):
        return value
    if not isinstance(value, Mapping):
        raise InvalidParameterError(f"constraints must be an object, found {value!r}")
    unknown = sorted(set(value) - set(Constraints.model_fields), key=str)
    if unknown:
        known = ", ".join(Constraints.model_fields)
        raise InvalidParameterError(f"no constraint is called {unknown[0]!r}; there are: {known}")
    try:
        return Constraints.model_validate({name: _with_text_keys(item) for name, item in value.items()})
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in error["loc"])
        raise InvalidParameterError(f"constraints: {where}: {error['msg']}, found {error['input']!r}") from exc


def slot_bounds(slots: Sequence[Slot], low: int, high: int | None, constraints: Constraints | None) -> SlotBounds:
    """Return the bounds of every slot.

    Raises InvalidParameterError when a selector names nothing or when bounds contradict each other.
    """
    lows, highs = [low] * len(slots), [high] * len(slots)
    if constraints is None:
        return SlotBounds(tuple(lows), tuple(highs))
    fixed = _fixed(constraints, slots)
    own_low, own_high = _named(constraints.min_experts, slots, max), _named(constraints.max_experts, slots, min)
    for i, slot in enumerate(slots):
        lows[i], highs[i] = own_low.get(i, low), own_high.get(i, high)
        if i in own_high and i not in own_low:
            lows[i] = min(low, own_high[i])  # a maximum below the general minimum is meant
        if i in own_low and i not in own_high and high is not None:
            highs[i] = max(high, own_low[i])
        if i in fixed:
            _check_fixed(slot, fixed[i], own_low.get(i), own_high.get(i))
            lows[i] = highs[i] = fixed[i]
        _check_order(slot, lows[i], highs[i])
    return _grouped(slots, lows, highs, constraints)


def _fixed(constraints: Constraints, slots: Sequence[Slot]) -> dict[int, int]:
    fixed: dict[int, int] = {}
    wanted = [*constraints.pinned.items(), *((selector, 0) for selector in constraints.frozen)]
    for selector, count in wanted:
        for i in select(selector, slots):
            if fixed.setdefault(i, count) != count:
                raise InvalidParameterError(f"{slots[i]} is fixed twice, to {fixed[i]} and to {count} experts")
    return fixed


def _named(bounds: Mapping[str, int], slots: Sequence[Slot], tighter: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for selector, bound in bounds.items():
        for i in select(selector, slots):
            found[i] = tighter(found.get(i, bound), bound)
    return found


def _check_fixed(slot: Slot, count: int, low: int | None, high: int | None) -> None:
    if (low is not None and count < low) or (high is not None and count > high):
        raise InvalidParameterError(f"{slot} is fixed to {count} experts, outside its own bounds min {low}, max {high}")


def _check_order(slot: Slot, low: int, high: int | None) -> None:
    if high is not None and low > high:
        raise InvalidParameterError(f"{slot}: min {low} and max {high} contradict: the minimum must not be larger")


def _grouped(slots: Sequence[Slot], lows: list[int], highs: list[int | None], constraints: Constraints) -> SlotBounds:
    """Give the members of a group the bounds that all of them allow."""
    groups, taken = [], dict[int, int]()
    for number, selectors in enumerate(constraints.groups):
        members = tuple(sorted({i for selector in selectors for i in select(selector, slots)}))
        for i in members:
            if taken.setdefault(i, number) != number:
                raise InvalidParameterError(f"{slots[i]} is in two groups; a layer may be in one")
        if len(members) < 2:
            continue
        low = max(lows[i] for i in members)
        high = min((hi for i in members if (hi := highs[i]) is not None), default=None)
        if high is not None and low > high:
            names = ", ".join(str(slots[i]) for i in members)
            raise InvalidParameterError(f"the group {names} has no common count: min {low}, max {high}")
        for i in members:
            lows[i], highs[i] = low, high
        groups.append(members)
    return SlotBounds(tuple(lows), tuple(highs), tuple(groups))


def _with_text_keys(value: Any) -> Any:
    """Let layers be named by number in Python: ``pinned={3: 5}``."""
    if isinstance(value, Mapping):
        return {str(key) if type(key) is int else key: item for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(str(item) if type(item) is int else _with_text_keys(item) for item in value)
    return value
