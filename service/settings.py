"""Settings of the service: small, frozen, and the one place where its environment is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alphalloc.errors import SettingsError

MAX_LAYERS = 512  # of one request; the deepest published models have about 130. Part of the API, so not a setting
MAX_EXPERTS = 1_000_000  # of one request; chosen here, far above any adapter that could be trained


@dataclass(frozen=True)
class Settings:
    """Where the service listens and what it refuses.

    ``host``: only this machine by default. ``port``: 0 picks a free one. ``max_body_bytes``: of a request, 1 MiB holds
    512 layers thirty times over. ``insecure_no_auth``: listen on an address that other machines reach although there
    are no keys.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 2**20
    insecure_no_auth: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Return the settings: what is ``given`` and not None, else ALPHALLOC_HOST, ALPHALLOC_PORT and
        ALPHALLOC_MAX_BODY_BYTES, else the defaults. Raises SettingsError for a value that cannot be used.
        """
        source = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        if host := source.get("ALPHALLOC_HOST"):
            found["host"] = host
        for name, low, high in (("port", 0, 65535), ("max_body_bytes", 1024, 2**30)):
            variable = f"ALPHALLOC_{name.upper()}"
            if text := source.get(variable):
                found[name] = _whole_number(variable, text, low, high)
        found |= {name: value for name, value in given.items() if value is not None}
        return replace(cls(), **found)


def _whole_number(variable: str, text: str, low: int, high: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high:
        return int(text)
    raise SettingsError(f"{variable}: expected a whole number from {low} to {high}, found {text!r}")
