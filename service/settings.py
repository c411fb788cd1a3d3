"""Settings of the service: small, frozen, and the one place where its environment is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from alphalloc.errors import SettingsError

MAX_LAYERS = 512  # of one request; the deepest published models have about 130. Part of the API, so not a setting
MAX_EXPERTS = 1_000_000  # of one request; chosen here, far above any adapter that could be trained
OFF = ("off", "none")  # what stands for None in the environment
OPTIONAL = (
    "ray_address",
    "rate_limit",
    "job_memory_bytes",
    "job_memory_share",
    "job_download_bytes",
    "retain_jobs_seconds",
    "retain_allocations_seconds",
)


def default_database_url() -> str:
    """Return the URL of the SQLite file in the user's data folder."""
    from platformdirs import user_data_path

    return f"sqlite:///{user_data_path('alphalloc') / 'alphalloc.db'}"


@dataclass(frozen=True)
class Settings:
    """Everything that can be set about the service. ``ALPHALLOC_<NAME>`` sets each in the environment; lists are
    separated by commas, and ``off`` stands for None. Defaults were chosen here unless they name a source.

    Where it listens: ``host`` (only this machine by default), ``port`` (0 picks a free one), ``allowed_hosts`` (names
    that a Host header may carry beside the host itself; ``*`` for any), ``cors_origins`` (none), ``insecure_no_auth``
    (listen on an address that other machines reach although there are no keys).
    What it takes: ``max_body_bytes`` (1 MiB holds 512 layers thirty times over), ``max_header_bytes``,
    ``rate_limit`` (requests of one key; None for no limit), ``max_queued`` analyses, ``max_streams`` of one process.
    What it keeps: ``database_url`` (SQLite in the user's data folder), ``retain_jobs_seconds`` and
    ``retain_allocations_seconds`` (None: for good).
    How jobs run: ``worker`` (start one with the server), ``backend`` and ``ray_address``, ``lease_seconds`` after which
    a silent worker's job goes to another, ``max_attempts``, and the limits of one job: ``job_seconds``,
    ``job_memory_bytes`` (what matrices are planned to fit, too; None: they are planned by what is free, and
    ``job_memory_share`` of the machine's memory is the limit, or nothing where that is None as well),
    ``job_download_bytes`` (500 GB: 250 thousand million parameters at two bytes; None: what the disk has room for).
    Which models: ``model_roots`` (folders that paths may lie in; none by default, so hub ids only), ``allow_models``
    and ``deny_models`` (patterns of hub ids; a denial wins).
    What it says: ``log_format`` (``auto`` is text on a terminal, else JSON), ``metrics``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 2**20
    insecure_no_auth: bool = False
    database_url: str = field(default_factory=default_database_url, repr=False)  # it may hold a password
    lease_seconds: float = 30
    max_attempts: int = 3
    worker: bool = True
    backend: str = "local"
    ray_address: str | None = None
    model_roots: tuple[str, ...] = ()
    allow_models: tuple[str, ...] = ("*",)
    deny_models: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    cors_origins: tuple[str, ...] = ()
    rate_limit: str | None = "600/minute"
    max_header_bytes: int = 16_384
    job_seconds: float = 3600
    job_memory_bytes: int | None = None
    job_memory_share: float | None = 0.8
    job_download_bytes: int | None = 500_000_000_000
    max_queued: int = 1000
    max_streams: int = 64
    retain_jobs_seconds: float | None = None
    retain_allocations_seconds: float | None = None
    log_format: str = "auto"
    metrics: bool = True

    def __post_init__(self) -> None:
        for one in fields(self):
            _check(one.name, one.name, getattr(self, one.name))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Return the settings: what is ``given`` and not None, else the environment's ``ALPHALLOC_<NAME>``, else the
        defaults. Raises SettingsError for a value that cannot be used, with the variable's name.
        """
        source = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for one in fields(cls):
            variable = f"ALPHALLOC_{one.name.upper()}"
            if text := source.get(variable):
                found[one.name] = _read(str(one.type), text)
                _check(one.name, variable, found[one.name])
        found |= {name: value for name, value in given.items() if value is not None}
        return replace(cls(), **found)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every name a Host header may carry: ``allowed_hosts`` and the host that is listened on."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        return self.allowed_hosts if own in self.allowed_hosts else (*self.allowed_hosts, own)


Check = Callable[[str, Any], None]


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise SettingsError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")

    return check


def _seconds(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            raise SettingsError(f"{name}: expected seconds from {low:g} to {high:g}, found {value!r}")

    return check


def _share(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0.01 <= value <= 1:
        raise SettingsError(f"{name}: expected a share from 0.01 to 1, found {value!r}")


def _matching(pattern: str, expected: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise SettingsError(f"{name}: expected {expected}, found {value!r}")

    return check


def _one_of(*names: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in names:
            raise SettingsError(f"{name}: expected one of {', '.join(names)}, found {value!r}")

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name}: expected true or false, found {value!r}")


def _texts(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
        raise SettingsError(f"{name}: expected a tuple of texts, found {value!r}")


def _database(name: str, value: Any) -> None:
    # Nothing of the URL is repeated: it may hold a password.
    if not isinstance(value, str) or not re.match(r"sqlite:///.|postgresql\+psycopg://", value):
        raise SettingsError(f"{name}: expected sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE")


YEAR = 366 * 24 * 3600
CHECKS: dict[str, Check] = {
    "host": _matching(r"[\x21-\x7e][\x20-\x7e]*", "a host name or address"),
    "port": _whole(0, 65535),
    "max_body_bytes": _whole(1, 2**30),
    "insecure_no_auth": _flag,
    "database_url": _database,
    "lease_seconds": _seconds(0.2, 3600),
    "max_attempts": _whole(1, 100),
    "worker": _flag,
    "backend": _one_of("auto", "local", "batched", "ray"),
    "ray_address": _matching(r"\S+", "an address without spaces"),
    "model_roots": _texts,
    "allow_models": _texts,
    "deny_models": _texts,
    "allowed_hosts": _texts,
    "cors_origins": _texts,
    "rate_limit": _matching(r"[1-9]\d{0,8}/(second|minute|hour|day)", "NUMBER/(second|minute|hour|day)"),
    "max_header_bytes": _whole(1024, 2**20),
    "job_seconds": _seconds(1, YEAR),
    "job_memory_bytes": _whole(2**20, 2**50),
    "job_memory_share": _share,
    "job_download_bytes": _whole(1, 2**60),
    "max_queued": _whole(1, 1_000_000),
    "max_streams": _whole(1, 10_000),
    "retain_jobs_seconds": _seconds(1, 100 * YEAR),
    "retain_allocations_seconds": _seconds(1, 100 * YEAR),
    "log_format": _one_of("auto", "text", "json"),
    "metrics": _flag,
}


def _check(name: str, shown: str, value: Any) -> None:
    if not (value is None and name in OPTIONAL):
        CHECKS[name](shown, value)


def _read(kind: str, text: str) -> Any:
    """Return the value that ``text`` means for a setting annotated ``kind``; the text itself when it means none."""
    if kind.endswith("| None") and text.lower() in OFF:
        return None
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == "bool":
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower(), text)
    if kind.startswith("int") and re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if kind.startswith("float") and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        return float(text)
    return text
