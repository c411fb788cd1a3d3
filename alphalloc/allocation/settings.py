"""Checks of the numbers that a caller sets, shared by the allocations of experts and of ranks."""

from __future__ import annotations

import operator
from typing import Any

from alphalloc.errors import InvalidParameterError

DEFAULT_BETA = 2.5  # AlphaLoRA's default (arXiv 2410.10054); published for its own estimator


def checked_bound(name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int of at least ``least``; InvalidParameterError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        raise InvalidParameterError(f"{name} must be a whole number of at least {least}, found {value!r}")
    return operator.index(value)


def checked_upper_bound(what: str, low: int, high: int | None) -> int | None:
    """Return ``max_<what>`` or None; InvalidParameterError when it is no whole number or below the minimum."""
    if high is None:
        return None
    checked = checked_bound(f"max_{what}", high, 1)
    if checked < low:
        raise InvalidParameterError(
            f"min_{what} {low} and max_{what} {checked} contradict: the minimum must not be larger"
        )
    return checked
