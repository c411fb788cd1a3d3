"""YAML: writing a few keys, and setting them in a user's file so that its comments and order stay."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alphalloc.errors import DocumentError, MissingExtraError

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def plain_yaml(value: Mapping[str, Any], indent: int = 0) -> str:
    """Return a mapping of scalars, lists and mappings as YAML; text that could be read otherwise is quoted."""
    lines = []
    for key, item in value.items():
        start = " " * indent + f"{_scalar(key)}:"
        if isinstance(item, Mapping) and item:
            lines.append(f"{start}\n{plain_yaml(item, indent + 2)}")
        elif isinstance(item, (list, tuple)) and item:
            lines.append(f"{start}\n" + "".join(_list_item(entry, indent + 2) for entry in item))
        else:
            lines.append(f"{start} {_scalar(item)}\n")
    return "".join(lines)


def edit_yaml(
    text: str,
    settings: Mapping[str, Any],
    *,
    remove: Sequence[str] = (),
    keep: Mapping[str, Sequence[str]] | None = None,
    where: str = "the YAML file",
) -> str:
    """Return ``text`` with ``settings`` set at its top level; comments, order and quotes stay as they are.

    A key that is there keeps its place and loses its old value whole, unless it is one of those that ``keep`` lists;
    new keys come last; ``remove`` are taken out. Raises DocumentError when ``text`` is no YAML mapping and
    MissingExtraError without ruamel.yaml.
    """
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError as exc:
        raise MissingExtraError("editing YAML needs ruamel.yaml: pip install 'alphalloc[export]'") from exc
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 10**6
    offset = _list_offset(text)
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    try:
        document = yaml.load(text)
    except YAMLError as exc:
        raise DocumentError(f"{where}: not valid YAML: {exc}") from exc
    if document is None:
        return text + ("" if not text or text.endswith("\n") else "\n") + plain_yaml(settings)
    if not isinstance(document, Mapping):
        raise DocumentError(f"{where}: expected a mapping of settings, found {type(document).__name__}")
    for key in remove:
        document.pop(key, None)  # type: ignore[attr-defined]  # a CommentedMap
    kept = {key for key, values in (keep or {}).items() if document.get(key) in values}
    for key, item in settings.items():
        if key in kept:
            continue
        document[key] = item  # type: ignore[index]  # a CommentedMap
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _list_item(entry: Any, indent: int) -> str:
    pad = " " * indent
    if isinstance(entry, Mapping):
        body = plain_yaml(entry, indent + 2)
        return f"{pad}- {body[indent + 2 :]}"
    return f"{pad}- {_scalar(entry)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return json.dumps(value, ensure_ascii=False)  # a JSON scalar, and an empty list or object, is a YAML one


def _list_offset(text: str) -> int:
    """Return how far the user's file sets list items in."""
    found = re.search(r"^(?:[^\s#-][^\n]*:[ \t]*)\n( *)- ", text, flags=re.MULTILINE)
    return len(found[1]) if found else 2
