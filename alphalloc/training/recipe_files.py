"""Recipes as YAML files: read with every key once, written with every default spelled out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphalloc.documents import read_text
from alphalloc.errors import MissingExtraError, RecipeError

MAX_BYTES = 2**20  # chosen here: a recipe is a page of text


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises RecipeError when it is missing, too large, not YAML or no mapping, and MissingExtraError without ruamel.yaml.
    """
    yaml, fault = _yaml()
    try:
        document = yaml.load(read_text(path, MAX_BYTES))
    except (OSError, ValueError) as exc:
        raise RecipeError(f"{path}: cannot be read as a recipe: {exc}") from exc
    except fault as exc:
        raise RecipeError(f"{path}: not valid YAML: {exc}") from exc
    if not isinstance(document, Mapping):
        raise RecipeError(f"{path}: expected a mapping of settings, found {type(document).__name__}")
    return dict(document)


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    yaml, _ = _yaml()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue()


def _yaml() -> tuple[Any, type[Exception]]:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError as exc:
        raise MissingExtraError("recipes need ruamel.yaml: pip install 'alphalloc[train]'") from exc
    # The pure form: its numbers are YAML 1.2's, so that 1e-4 is a number and `on` a word.
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    return yaml, YAMLError
