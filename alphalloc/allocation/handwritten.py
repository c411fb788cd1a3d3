"""Schedules that people write or change by hand: lists of counts, comma strings, edited documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from alphalloc.allocation.parts import SILENT, Totals
from alphalloc.errors import DocumentError


def as_edited(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the document as one written by hand, after an edit: without id, its sums taken from its layers."""
    try:
        counts = [whole(layer["num_experts"], "num_experts") for layer in raw["layers"]]
        for layer in raw["layers"]:
            if layer.get("modules"):
                raise ValueError("a schedule of modules is too entangled to be edited by hand; allocate it anew")
        totals = Totals.of(counts).model_dump()
        rule = {"name": "explicit", "params": {"edited_from": raw["rule"]["name"]}}
        bounds = {"min_experts": min(counts), "max_experts": None}
    except (KeyError, TypeError, ValueError) as exc:
        raise DocumentError(
            f"cannot re-stamp: layers with num_experts and a rule with a name are needed: {exc}"
        ) from exc
    budget = {"unit": "experts", "total": sum(counts)}
    kept = {key: value for key, value in raw.items() if key != "id" and key not in SILENT}
    return {**kept, "totals": totals, "rule": rule, "rounding": "none", "bounds": bounds, "budget": budget}


def listed(values: Any) -> Sequence[Any]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise DocumentError(f"expected a list of whole numbers, found {values!r}")
    return [values[i] for i in range(len(values))]


def whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise DocumentError(f"{what} must be a whole number and not negative, found {value!r}")
    return int(value.__index__())


def from_strings(
    num_experts: str, top_k: str | int, lora_r: str | None
) -> tuple[list[int], list[int] | int, list[int] | None]:
    """Return counts, top_k (one number for all, or one a layer) and ranks from MoLA's comma strings."""
    counts = comma_numbers("num_experts", num_experts)
    active = comma_numbers("top_k", top_k) if isinstance(top_k, str) else top_k
    ranks = None if lora_r is None else comma_numbers("lora_r", lora_r)
    if ranks is not None and len(ranks) == 1:
        ranks = ranks * len(counts)
    if ranks is not None and len(ranks) != len(counts):
        raise DocumentError(f"lora_r has {len(ranks)} numbers, num_experts has {len(counts)}: one a layer is needed")
    return counts, active[0] if isinstance(active, list) and len(active) == 1 else active, ranks


def comma_numbers(name: str, text: Any) -> list[int]:
    if not isinstance(text, str):
        raise DocumentError(f"{name} must be a string such as '5,5,3', found {text!r}")
    parts = [part.strip() for part in text.strip().strip("\"'").split(",")]
    if parts and not parts[-1]:
        parts.pop()  # a comma at the end
    wrong = [part for part in parts if not (part.isascii() and part.isdigit() and len(part) < 10)]
    if wrong or not parts:
        raise DocumentError(f"{name} must be whole numbers with commas between, found {(wrong or [text])[0]!r}")
    return [int(part) for part in parts]


def validation_message(exc: ValidationError) -> str:
    found = [
        f"{'.'.join(str(part) for part in error['loc']) or 'document'}: {error['msg'].removeprefix('Value error, ')}"
        for error in exc.errors(include_url=False, include_context=False)
    ]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
