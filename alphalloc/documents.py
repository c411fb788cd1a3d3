"""Canonical JSON and atomic files: how every document of this project is written and read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from alphalloc.errors import DocumentError, SchemaVersionError

_SURROGATE = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")
MAX_DOCUMENT_BYTES = 256 * 2**20  # chosen here: an alphas.json of a 1T-parameter model stays under 100 MB


def canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: keys sorted, no spaces, floats by ``repr``, never NaN.

    Raises DocumentError for NaN and infinities, which JSON does not have, and for lone surrogates.
    """
    return _proper(lambda: _encoded(value, ",", ":"))


def pretty_json(value: Any) -> str:
    """Return ``value`` as indented JSON with sorted keys and a final newline: the form written to files.

    Raises DocumentError as :func:`canonical_json` does.
    """
    return _proper(lambda: _indented(value, "\n") + "\n")


def _proper(encode: Callable[[], str]) -> str:
    """Return the text that ``encode`` makes. Raises DocumentError for what JSON or Unicode does not have."""
    try:
        text = encode()
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise DocumentError(f"the document holds text that is not Unicode (a lone surrogate): {exc.reason}") from exc
    except ValueError as exc:
        raise DocumentError(f"the document holds a number that JSON does not have (NaN or infinity): {exc}") from exc
    return text


def _encoded(value: Any, comma: str, colon: str) -> str:
    return json.dumps(value, sort_keys=True, separators=(comma, colon), ensure_ascii=False, allow_nan=False)


_CONTAINERS = frozenset({dict, list, tuple})


def _indented(value: Any, newline: str) -> str:
    """Return what ``json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False)`` does, in a third of the time.

    The standard encoder is written in C only without ``indent``. What holds no container with something in it is left
    to that: the line break is its comma. ``newline`` carries the indentation.
    """
    kind, inner = type(value), newline + "  "
    if kind not in _CONTAINERS or not value:
        return _encoded(value, ",", ":")
    if _is_flat(value):
        text = _encoded(value, f",{inner}", ": ")
        return f"{text[0]}{inner}{text[1:-1]}{newline}{text[-1]}"
    comma = f",{inner}"
    if kind is not dict:
        if all(item and type(item) is dict and _is_flat(item) for item in value):
            return _indented_rows(value, newline)
        return f"[{inner}{comma.join([_indented(item, inner) for item in value])}{newline}]"
    if not all(type(key) is str for key in value):
        return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False).replace("\n", newline)
    pairs = [f"{encode_basestring(key)}: {_indented(value[key], inner)}" for key in sorted(value)]
    return f"{{{inner}{comma.join(pairs)}{newline}}}"


def _indented_rows(rows: list[Any] | tuple[Any, ...], newline: str) -> str:
    """Return what ``_indented`` does for a list of flat objects, such as the layers of a model: encoded at once.

    Text has its line breaks escaped, so a line break between braces is a comma between two objects.
    """
    inner, deep = newline + "  ", newline + "    "
    text = _encoded(rows, f",{deep}", ": ")[2:-2]
    between = f"{inner}}},{inner}{{{deep}"
    return f"[{inner}{{{deep}{text.replace(f'}},{deep}{{', between)}{inner}}}{newline}]"


def _is_flat(value: Any) -> bool:
    """Whether the container holds no container with something in it."""
    return not any(item and type(item) in _CONTAINERS for item in (value.values() if type(value) is dict else value))


def content_id(prefix: str, value: Any) -> str:
    """Return ``prefix`` + 32 hex digits of the SHA-256 of the canonical JSON of ``value``."""
    digest = hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()
    return f"{prefix}{digest[:32]}"


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> Path:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part; return the path.

    The bytes go to a temporary file of the same folder, are flushed to disk and renamed over the target.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def read_document(path: str | os.PathLike[str], *, kind: str, major: int) -> dict[str, Any]:
    """Return the JSON object at ``path`` after checking its ``kind`` and the major part of its ``schema_version``.

    Raises DocumentError when the file is missing, too large, not JSON, not an object or of another kind, and
    SchemaVersionError when it comes from a newer major version.
    """
    source = Path(path)
    try:
        text = read_text(source, MAX_DOCUMENT_BYTES)
    except (OSError, ValueError) as exc:
        raise DocumentError(f"{source}: cannot be read as a {kind} document: {exc}") from exc
    return parse_document(text, kind=kind, major=major, where=str(source))


def read_text(path: Path, limit: int) -> str:
    """Return the UTF-8 text of a regular file (without a byte order mark).

    Raises OSError, or ValueError for anything but a regular file of at most ``limit`` bytes of UTF-8: a pipe or a
    device would be waited on for ever.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > limit:
        raise ValueError(f"larger than {limit} bytes")
    return path.read_text(encoding="utf-8-sig")


def parse_document(text: str, *, kind: str, major: int, where: str = "document") -> dict[str, Any]:
    """Return the JSON object in ``text`` after the checks of :func:`read_document`; ``where`` names it in errors."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):  # an escape of half a character, or one of a pair: only the value tells
            canonical_json(value)
    except (ValueError, RecursionError) as exc:
        raise DocumentError(f"{where}: not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise DocumentError(f"{where}: expected a JSON object of kind {kind!r}, found {type(value).__name__}")
    if value.get("kind") != kind:
        raise DocumentError(f"{where}: expected kind {kind!r}, found {value.get('kind')!r}")
    version = value.get("schema_version")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        raise DocumentError(f"{where}: schema_version is missing or not of the form MAJOR.MINOR: {version!r}")
    if int(version.partition(".")[0]) > major:
        raise SchemaVersionError(
            f"{where}: written with schema version {version}, this release reads up to {major}.x; upgrade alphalloc"
        )
    return value


@cache
def package_version() -> str:
    """Return the version of the installed package, or "0+unknown" in a checkout that was never installed."""
    try:
        return version("alphalloc")
    except PackageNotFoundError:
        return "0+unknown"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:50]} is beyond the range of float64")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
