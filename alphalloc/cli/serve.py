"""``alphalloc serve``: the REST service on this machine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from alphalloc.errors import MissingExtraError

Host = Annotated[str | None, typer.Option(metavar="HOST", help="Address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65535, help="0 picks one.  [default: 8000]")]
Insecure = Annotated[
    bool, typer.Option("--insecure-no-auth", help="Listen on an address that other machines reach, without any key.")
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database-url", metavar="URL", help="sqlite:///FILE or postgresql+psycopg://...  [default: the user's own]"
    ),
]
NoWorker = Annotated[bool, typer.Option("--no-worker", help="Start no worker; `alphalloc worker` computes elsewhere.")]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=1, max=64, help="Processes that answer requests on the same port.")
]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--model-root", metavar="FOLDER", help="Let models below this folder be analysed. Repeatable."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow-model", metavar="GLOB", help="Hub ids that may be analysed.  [default: all] Repeatable."),
]
Deny = Annotated[
    list[str] | None, typer.Option("--deny-model", metavar="GLOB", help="Hub ids that may not. Repeatable.")
]

Hosts = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", metavar="NAME", help="A name it is reached by, beside this machine's. Repeatable."),
]
Origins = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", metavar="URL", help="Pages of this origin may ask, as https://host. Repeatable."),
]


def serve(
    host: Host = None,
    port: Port = None,
    insecure_no_auth: Insecure = False,
    database_url: Database = None,
    no_worker: NoWorker = False,
    workers: Workers = 1,
    model_root: Roots = None,
    allow_model: Allow = None,
    deny_model: Deny = None,
    allowed_host: Hosts = None,
    cors_origin: Origins = None,
) -> None:
    """Serve the REST API until interrupted, with a worker process that computes analyses.

    The API is described at /docs and /openapi.json. Environment variables ALPHALLOC_<NAME> count where no option is
    given: ALPHALLOC_PORT, ALPHALLOC_DATABASE_URL, ALPHALLOC_RATE_LIMIT, ...
    """
    try:
        # By name, as a shell would: this room and the service do not know each other's insides.
        settings = import_module("alphalloc_service.settings").Settings
        server = import_module("alphalloc_service.server")
    except ImportError as exc:
        raise MissingExtraError(f"the service needs {exc.name}: pip install 'alphalloc[server]'") from exc
    chosen = settings.from_environment(
        host=host,
        port=port,
        insecure_no_auth=insecure_no_auth or None,
        database_url=database_url,
        worker=False if no_worker else None,
        model_roots=tuple(str(root.absolute()) for root in model_root) if model_root else None,
        allow_models=tuple(allow_model) if allow_model else None,
        deny_models=tuple(deny_model) if deny_model else None,
        allowed_hosts=(*settings.allowed_hosts, *allowed_host) if allowed_host else None,
        cors_origins=tuple(cors_origin) if cors_origin else None,
    )
    server.run(chosen, replicas=workers)
