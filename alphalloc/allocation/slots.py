"""What receives experts: a layer, or one target module of a layer. And how a user names some of them.

A selector is ``"3"`` (layer 3 of every stack), ``"0-3"`` (layers 0 to 3), ``"encoder.3"``, ``"encoder"`` (a stack),
``"q_proj"`` (a role in every layer), ``"3.q_proj"``, ``"0-3.q_proj"`` or ``"encoder.3.q_proj"``. Roles exist where
every module has its own count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alphalloc.errors import InvalidParameterError

_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True, order=True)
class Slot:
    """A layer (``role`` None) or one module of it."""

    layer: int
    stack: str = ""
    role: str | None = None

    def __str__(self) -> str:
        return ".".join(part for part in (self.stack, str(self.layer), self.role) if part)


def select(selector: str | int, slots: Sequence[Slot]) -> tuple[int, ...]:
    """Return the positions of the slots that ``selector`` names.

    Raises InvalidParameterError when it names none, with what there is.
    """
    text = str(selector) if isinstance(selector, int) and not isinstance(selector, bool) else selector
    found = tuple(i for i, slot in enumerate(slots) if isinstance(text, str) and _matches(text, slot))
    if not found:
        raise InvalidParameterError(f"{selector!r} names no {_kind(slots)}; there are: {_known(slots)}")
    return found


def _matches(text: str, slot: Slot) -> bool:
    if slot.role is not None and text == slot.role:
        return True
    rest = text
    if slot.stack:
        if text == slot.stack:
            return True
        if text.startswith(f"{slot.stack}."):
            rest = text.removeprefix(f"{slot.stack}.")
            if slot.role is not None and rest == slot.role:
                return True
    number, _, role = rest.partition(".")
    match = _RANGE.fullmatch(number)
    if match is None or (role and role != slot.role):
        return False
    return int(match[1]) <= slot.layer <= int(match[2] or match[1])


def _kind(slots: Sequence[Slot]) -> str:
    return "module" if any(slot.role for slot in slots) else "layer"


def _known(slots: Sequence[Slot]) -> str:
    stacks: dict[str, list[int]] = {}
    for slot in slots:
        stacks.setdefault(slot.stack, []).append(slot.layer)
    layers = [f"{stack + '.' if stack else ''}{min(found)}-{max(found)}" for stack, found in stacks.items()]
    roles = list(dict.fromkeys(slot.role for slot in slots if slot.role))
    return "layers " + ", ".join(layers) + (f"; roles {', '.join(roles)}" if roles else "")
