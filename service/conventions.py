"""The conventions that all routes share: entity tags, waiting on request, cursors, keys of repeated requests."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import Any

from fastapi import Request

from .problems import ProblemError

MAX_WAIT_SECONDS = 60  # of one request; proxies commonly give up after a minute
RETRY_SECONDS = 2  # chosen here: after a 202 and while storage is away
IMMUTABLE = "public, max-age=31536000, immutable"
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def strong_etag(content: bytes) -> str:
    """Return the entity tag of bytes that never change."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def weak_etag(name: str) -> str:
    """Return the entity tag of something whose meaning, though not its bytes, is that of ``name``."""
    return f'W/"{name}"'


def unchanged(request: Request, etag: str) -> bool:
    """Whether the client already has what ``etag`` names (If-None-Match, compared weakly: RFC 9110, 13.1.2)."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    own = etag.removeprefix("W/")
    return given.strip() == "*" or own in (tag.strip().removeprefix("W/") for tag in given.split(","))


def wait_seconds(request: Request) -> int:
    """Return how long the client is ready to wait (``Prefer: wait=N``, RFC 7240), at most MAX_WAIT_SECONDS; else 0.

    A preference that makes no sense is no preference.
    """
    for given in request.headers.getlist("prefer"):
        for part in given.split(","):
            name, _, value = part.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
                return min(int(value[:9]), MAX_WAIT_SECONDS)
    return 0


def idempotency_key(request: Request) -> str | None:
    """Return the client's Idempotency-Key. Raises ProblemError 422 for one that is empty, too long or not printable."""
    given = request.headers.get("idempotency-key")
    if given is not None and not IDEMPOTENCY_KEY.fullmatch(given):
        detail = "Idempotency-Key: expected 1 to 255 printable ASCII characters without spaces"
        raise ProblemError(422, "invalid-request", detail)
    return given


def digest(value: Any) -> str:
    """Return the SHA-256 of ``value`` as canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def encode_cursor(seq: int) -> str:
    """Return the cursor that stands behind the entry ``seq``."""
    return base64.urlsafe_b64encode(f"seq:{seq}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """Return the ``seq`` of a cursor. Raises ProblemError 422 invalid-cursor for text that is none."""
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        found = re.fullmatch(r"seq:([0-9]{1,18})", text)
    except (binascii.Error, ValueError):
        found = None
    if found is None or encode_cursor(int(found[1])) != cursor:
        raise ProblemError(422, "invalid-cursor", "cursor: expected the next_cursor of an earlier answer")
    return int(found[1])
