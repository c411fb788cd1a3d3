"""Running the application under uvicorn: the socket, the limits, the signals."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import sys

from alphalloc.errors import SettingsError

from .settings import Settings

# Chosen here: more connections than this wait in the kernel; slow or idle ones are dropped.
LIMIT_CONCURRENCY = 512
KEEP_ALIVE_SECONDS = 5
GRACEFUL_SECONDS = 30


def run(settings: Settings) -> None:
    """Serve until a signal comes, finish the requests under way and return.

    SIGTERM, the wish of a supervisor, ends in a normal return; SIGINT in KeyboardInterrupt. Raises SettingsError when
    the address cannot be listened on, or when other machines could reach it and that was not asked for.
    """
    import uvicorn

    from .app import create_app

    listener = listen(settings)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        create_app(settings),
        server_header=False,
        limit_concurrency=LIMIT_CONCURRENCY,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    server = uvicorn.Server(config)
    print(f"alphalloc serves http://{shown}:{port} (Ctrl-C stops it)", file=sys.stderr, flush=True)
    # After its own clean stop uvicorn raises the signal once more, which would kill the process.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)
        listener.close()


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket at the settings' host and port. Raises SettingsError."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as exc:
        raise SettingsError(f"cannot listen on {where}: the host {settings.host!r} is not known") from exc
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not settings.insecure_no_auth:
        raise SettingsError(
            f"{settings.host} can be reached by other machines and this service asks for no key; "
            "listen on 127.0.0.1, or say --insecure-no-auth"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            reason = "the port is taken; choose another --port, or 0 for any free one"
        else:
            reason = exc.strerror or str(exc)
        raise SettingsError(f"cannot listen on {where}: {reason}") from exc
