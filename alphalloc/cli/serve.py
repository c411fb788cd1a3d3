"""``alphalloc serve``: the REST service on this machine."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from alphalloc.errors import MissingExtraError

Host = Annotated[str | None, typer.Option(metavar="HOST", help="Address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65535, help="0 picks one.  [default: 8000]")]
Insecure = Annotated[
    bool, typer.Option("--insecure-no-auth", help="Listen on an address that other machines reach, without any key.")
]


def serve(host: Host = None, port: Port = None, insecure_no_auth: Insecure = False) -> None:
    """Serve the REST API until interrupted.

    The API is described at /openapi.json. ALPHALLOC_HOST, ALPHALLOC_PORT and ALPHALLOC_MAX_BODY_BYTES count where no
    option is given.
    """
    try:
        import fastapi  # noqa: F401  (asked for its presence alone)
        import uvicorn  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError(f"the service needs {exc.name}: pip install 'alphalloc[server]'") from exc
    # By name, as a shell would: this room and the service do not know each other's insides.
    settings = import_module("alphalloc_service.settings").Settings
    server = import_module("alphalloc_service.server")
    server.run(settings.from_environment(host=host, port=port, insecure_no_auth=insecure_no_auth or None))
