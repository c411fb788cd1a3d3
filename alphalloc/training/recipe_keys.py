"""Keys of a recipe: merging sections, ``key=value`` overrides, and errors that name the nearest key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from alphalloc.errors import RecipeError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or all names when none is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, section by section. Of ``steps`` and ``epochs`` the given one."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
        if key in _RIVALS and value is not None and _RIVALS[key] in result and _RIVALS[key] not in over:
            del result[_RIVALS[key]]
    return result


_RIVALS = {"steps": "epochs", "epochs": "steps", "file": "counts", "counts": "file"}


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` after ``key=value`` texts; a value is JSON where it can be read so, else text.

    Raises RecipeError for a text without ``=`` or without a key.
    """
    result = dict(values)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise RecipeError(f"expected key=value such as optim.learning_rate=1e-4, got {text!r}")
        tree: Any = _value(value)
        for part in reversed(key.split(".")):
            tree = {part: tree}
        result = merged(result, tree)
    return result


def layered(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``merged`` of two recipes whose sections are spelled out.

    A schedule's own ``file`` or ``counts`` replaces the whole default schedule; beside counts its top_k stays.
    """
    default, section = defaults.get("schedule"), own.get("schedule")
    if isinstance(default, Mapping) and isinstance(section, Mapping):
        if section.get("file") is not None:
            defaults = {**defaults, "schedule": {}}
        elif section.get("counts") is not None:
            defaults = {**defaults, "schedule": {key: default[key] for key in ("top_k",) if key in default}}
    return merged(defaults, own)


def check_one_source(schedule: Any, known: Collection[str], where: str) -> None:
    """Raise RecipeError when a schedule section sets ``known`` keys that have no effect beside its file or counts.

    A section with both of these keys is one that a run wrote down, every key spelled out, and passes.
    """
    if not isinstance(schedule, Mapping) or {"file", "counts"} <= set(schedule):
        return
    for source, beside in (("file", ()), ("counts", ("top_k",))):
        idle = [key for key in schedule if key in known and key not in (source, *beside) and schedule[key] is not None]
        if schedule.get(source) is not None and idle:
            raise RecipeError(
                f"{where}: schedule.{source} says how many experts there are, so schedule.{idle[0]} would have no "
                "effect; keep one"
            )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def dotted_keys(model: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Return every key of ``model`` with its sections' keys, dotted; a section has its class, a value None."""
    found: dict[str, type[BaseModel] | None] = {}
    for name, field in model.model_fields.items():
        section = field.annotation if isinstance(field.annotation, type) else None
        if section is not None and issubclass(section, BaseModel):
            found[prefix + name] = section
            found |= dotted_keys(section, f"{prefix}{name}.")
        else:
            found[prefix + name] = None
    return found


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line on the first fault: the key, what came, what is possible instead."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return f"no key {key!r}{_nearest_key(key, dotted_keys(model))}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    message = str(first["msg"]).removeprefix("Value error, ")
    found = first.get("input")
    shown = "" if isinstance(found, Mapping | BaseModel) else f", found {found!r}"
    return f"{key or 'the recipe'}: {message[:1].lower()}{message[1:]}{shown}"


def _nearest_key(key: str, known: Mapping[str, Any]) -> str:
    """The same word in another section, else the most similar key of the same one, else of all."""
    section, _, word = key.rpartition(".")
    same = [name for name in known if name.rpartition(".")[2] == word]
    if same:
        return f"; did you mean {same[0]!r}?"
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    close = difflib.get_close_matches(word, siblings, n=1)
    if close:
        return f"; did you mean {siblings[close[0]]!r}?"
    words = {name.rpartition(".")[2]: name for name, inner in known.items() if inner is None}
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {words[close[0]]!r}?" if close else f"; there are: {', '.join(siblings)}"
