"""Connecting to a Ray cluster, or starting a private one for the time of a run; what can go wrong in plain words."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alphalloc.backends.local import available_cores
from alphalloc.errors import BackendError, MissingExtraError

CONNECT_SECONDS = 10.0  # for the first answer of a head node; ray.init itself tries for ever where nothing listens
STORE_BYTES = 100 * 2**20  # object store of a private Ray: results are spectra of some KB, and 75 MB is Ray's minimum
START_TRIES = 2  # of a private Ray, whose processes have 30 s to come up: too few on a machine that is busy otherwise
LONGEST_FOLDER = 40  # the sockets below it take about 65 of the 107 characters that a socket's path may have
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": all of Ray listens on 127.0.0.1; read when ray is imported
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # of HTTP/2, with empty settings
_AUTHENTICATE = (
    "export RAY_AUTH_MODE=token and the cluster's own token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
    "~/.ray/auth_token) here and on every node"
)


@contextlib.contextmanager
def connected(address: str | None = None, *, workers: int | None = None) -> Iterator[Any]:
    """Yield the ``ray`` module, connected; what was started here is stopped again.

    A connection that the program made itself is used and left alone. Otherwise ``address`` ("host:port" of a head
    node, "auto" for the cluster this machine is part of, "local") counts, then the environment's RAY_ADDRESS. With
    neither a private Ray of ``workers`` CPUs (default: the cores this process may use) is started on the loopback
    interface, in a temporary folder of its own. Usage statistics are off unless RAY_USAGE_STATS_ENABLED says otherwise.

    Raises MissingExtraError without ray, BackendError, saying what to do, when there is no connection.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    with _as_private(wanted == "local"):
        ray = _import_ray()
        own = None if ray.is_initialized() else _start(ray, wanted, workers)
    try:
        yield ray
    finally:
        if own is not None:
            ray.shutdown()
            shutil.rmtree(own, ignore_errors=True)


def _start(ray: Any, wanted: str, workers: int | None) -> str:
    """Connect ``ray``, or start a private one; return the temporary folder of the latter, "" for the former."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if wanted != "local":
        head = _head(wanted)
        _require_answer(head)
        with _errors_of(ray, head):
            ray.init(head, **quiet)  # never num_cpus: an existing cluster refuses it
        return ""
    started = {"num_cpus": workers or available_cores(), "include_dashboard": False}
    for tries_left in reversed(range(START_TRIES)):
        folder = _private_folder()
        try:
            with _errors_of(ray, "this machine"):
                ray.init("local", object_store_memory=STORE_BYTES, _temp_dir=folder, **started, **quiet)
            return folder
        except BaseException as exc:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            if not tries_left or not isinstance(exc, BackendError):
                raise
    raise AssertionError("unreachable")


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as exc:
        if exc.name != "ray":
            raise
        raise MissingExtraError("the ray backend needs ray: pip install 'alphalloc[ray]'") from exc
    return ray


@contextlib.contextmanager
def _as_private(private: bool) -> Iterator[None]:
    """Around import and start: a private Ray gets a token and no listener on the network, where that is not decided.

    Both settings count for a Ray that is imported in here alone. The token mode stays set, as Ray itself would set it;
    the other goes again, as it would keep this process's children from joining a cluster.
    """
    first = private and "ray" not in sys.modules
    if first:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    loopback = first and LOOPBACK_ONLY not in os.environ
    if loopback:
        os.environ[LOOPBACK_ONLY] = "0"
    try:
        yield
    finally:
        if loopback:
            os.environ.pop(LOOPBACK_ONLY, None)


def _private_folder() -> str:
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    short = base if len(base) + 20 <= LONGEST_FOLDER else "/tmp"  # noqa: S108  (mkdtemp makes a private folder in it)
    return tempfile.mkdtemp(prefix="alphalloc-", dir=short)


def _head(address: str) -> str:
    """Return "host:port" of the head node."""
    if address.startswith("ray://"):
        raise BackendError(
            f"{address}: Ray Client is not used here; run on a machine of the cluster with host:port (port 6379 unless "
            "chosen otherwise), or send the command there with `ray job submit`"
        )
    if address == "auto":
        folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp")  # noqa: S108  (where Ray itself leaves the note)
        note = folder / "ray" / "ray_current_cluster"
        try:
            address = note.read_text().strip()
        except OSError as exc:
            raise BackendError(
                f"this machine is part of no Ray cluster ({note} is missing); start one with `ray start --head`, or "
                "give host:port"
            ) from exc
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BackendError(f"expected a Ray address such as 10.0.0.1:6379, found {address!r}")
    return address


def _require_answer(address: str) -> None:
    """Raise BackendError unless something that speaks HTTP/2, as Ray's head does, answers at ``address``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as stream:
            if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):
                return  # encrypted from the first byte
            stream.sendall(_HELLO)
            answer = stream.recv(9)
    except OSError as exc:
        raise BackendError(
            f"no Ray cluster answers at {address} ({exc}); check the address, and that the head runs "
            "(`ray start --head --port 6379`) and its port is open to this machine"
        ) from exc
    if answer[3:4] != b"\x04":
        raise BackendError(f"what listens at {address} is no Ray head node; its port is 6379 unless chosen otherwise")


@contextlib.contextmanager
def _errors_of(ray: Any, where: str) -> Iterator[None]:
    """Around ``ray.init``: what it raises (sometimes a plain Exception) becomes a BackendError that says what to do."""
    try:
        yield
    except ray.exceptions.AuthenticationError as exc:
        raise BackendError(f"Ray at {where} wants a token: {_AUTHENTICATE} ({_first_line(exc)})") from exc
    except ConnectionError as exc:
        raise BackendError(
            f"Ray at {where} let nobody in: {_AUTHENTICATE}; and run on a machine of the cluster (`ray start "
            f"--address={where}`) ({_first_line(exc)})"
        ) from exc
    except Exception as exc:  # ray.init raises plain ones too
        raise BackendError(f"Ray at {where} cannot be used: {type(exc).__name__}: {_first_line(exc)}") from exc


def _first_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
