"""Running the application under uvicorn: the database, the socket, the limits, the worker beside it, the signals."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from alphalloc.errors import SettingsError, StorageError

from . import memory, observability, slow_clients
from .embedded import EmbeddedWorker
from .security import MAX_UNDER_WAY, is_loopback
from .settings import Settings
from .store import Store, upgrade
from .waiting import Waiters

# Chosen here, well above the requests that are under way (security): with more connections than this uvicorn refuses
# requests itself, without a document. Idle ones are dropped.
LIMIT_CONCURRENCY = 8 * MAX_UNDER_WAY
KEEP_ALIVE_SECONDS = 5
GRACEFUL_SECONDS = 30
MAX_DESCRIPTORS = 2 * LIMIT_CONCURRENCY  # what connections may use, and as much again for all else; chosen here


def run(settings: Settings, *, replicas: int = 1) -> None:
    """Serve until a signal comes, finish the requests under way and return.

    A SQLite database is made or upgraded first; PostgreSQL's is left to ``alphalloc db upgrade``, since others may be
    using it. With ``settings.worker`` a worker process runs as long as the server. More than one of ``replicas``:
    so many processes answer on the same socket. SIGTERM, the wish of a supervisor, ends in a normal return; SIGINT in
    KeyboardInterrupt. Raises StorageError, or SettingsError when the address cannot be listened on, or when other
    machines could reach it and that was not asked for.
    """
    store = _open(settings.database_url)
    observability.start(settings)
    try:
        listener = listen(settings, guarded=any(key.revoked_at is None for key in store.list_keys()))
    except BaseException:
        store.close()
        raise
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    with listener, _worker(settings):
        observability.announce(settings, f"alphalloc serves http://{shown}:{port} (Ctrl-C stops it)")
        if replicas == 1:
            serve(settings, store, listener)
        else:
            store.close()
            from .replicas import Replicas

            Replicas(settings, listener, replicas).run()


def serve(settings: Settings, store: Store, listener: socket.socket) -> None:
    """Answer on ``listener`` until a signal comes; see :func:`run`."""
    from .app import create_app

    config = uvicorn.Config(
        create_app(settings, store),
        http=slow_clients.protocol(settings.max_header_bytes),
        ws="none",  # there are none; with a library for them installed an upgrade would be answered with 500
        h11_max_incomplete_event_size=settings.max_header_bytes + slow_clients.MARGIN_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=LIMIT_CONCURRENCY,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    memory.settle()
    _room_for_connections()
    # After its own clean stop uvicorn raises the signal once more, which would kill the process.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        _Server(config).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)


def listen(settings: Settings, *, guarded: bool = False) -> socket.socket:
    """Return a listening socket at the settings' host and port. ``guarded``: there are keys. Raises SettingsError."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as exc:
        raise SettingsError(f"cannot listen on {where}: the host {settings.host!r} is not known") from exc
    if not (guarded or settings.insecure_no_auth or is_loopback(str(address[0]))):
        raise SettingsError(
            f"{settings.host} can be reached by other machines and this service has no key; make one with "
            "`alphalloc keys create`, listen on 127.0.0.1, or say --insecure-no-auth"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            reason = "the port is taken; choose another --port, or 0 for any free one"
        else:
            reason = exc.strerror or str(exc)
        raise SettingsError(f"cannot listen on {where}: {reason}") from exc


def _room_for_connections() -> None:
    """Raise this process's limit of open descriptors to MAX_DESCRIPTORS, as far as the system lets it: the usual 1,024
    are fewer than the connections that uvicorn may take, and without one left nobody is answered, not even a probe.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # not a Unix, or not allowed
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """Lets those who wait for an analysis go when a signal comes, instead of waiting for them."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        Waiters.stop_all()
        super().handle_exit(sig, frame)


def _open(url: str) -> Store:
    """Return the store; a SQLite database that is missing or older is brought to the present schema first."""
    try:
        return Store.open(url)  # as a rule: loading what migrates takes as long as everything else together
    except StorageError:
        if not url.startswith("sqlite:"):
            raise
    upgrade(url)
    return Store.open(url)


@contextlib.contextmanager
def _worker(settings: Settings) -> Iterator[None]:
    """Have a worker process for as long as the block runs, if the settings want one."""
    worker = EmbeddedWorker(settings) if settings.worker else None
    try:
        yield
    finally:
        if worker is not None:
            worker.stop()
