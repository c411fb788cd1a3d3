"""Keyword arguments as Python source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def keywords(values: Mapping[str, Any], indent: int = 4) -> str:
    """Return ``name=value,`` lines; mappings get a line an entry."""
    pad = " " * indent
    return "".join(f"{pad}{name}={literal(value, indent)},\n" for name, value in values.items())


def literal(value: Any, indent: int) -> str:
    """Return a JSON-like value as a Python literal; backslashes are kept readable in raw strings."""
    if isinstance(value, Mapping) and value:
        pad = " " * (indent + 4)
        rows = "".join(f"{pad}{literal(key, 0)}: {literal(item, indent + 4)},\n" for key, item in value.items())
        return "{\n" + rows + " " * indent + "}"
    if isinstance(value, str) and "\\" in value and '"' not in value and not value.endswith("\\"):
        return f'r"{value}"'
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
