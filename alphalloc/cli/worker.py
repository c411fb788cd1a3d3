"""``alphalloc worker``: computes the analyses that the service was asked for."""

from __future__ import annotations

import enum
from importlib import import_module
from typing import Annotated

import typer

from alphalloc.errors import MissingExtraError


class Backend(enum.StrEnum):
    """Where matrices are computed."""

    auto = "auto"
    local = "local"
    batched = "batched"
    ray = "ray"


BackendOption = Annotated[
    Backend | None, typer.Option(help="Where matrices are computed.  [default: ALPHALLOC_BACKEND, else local]")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster, such as head:6379; with --backend ray.")
]
Metrics = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Answer /metrics here, such as 127.0.0.1:9100, for Prometheus.")
]
Once = Annotated[bool, typer.Option("--once", help="Stop when no analysis waits any more.")]


def worker(
    backend: BackendOption = None, ray_address: RayAddress = None, metrics: Metrics = None, once: Once = False
) -> None:
    """Compute waiting analyses, one after the other, until interrupted.

    Start as many as you like, on any number of machines, all with the same ALPHALLOC_DATABASE_URL. When one dies,
    another goes on with its analysis after ALPHALLOC_LEASE_SECONDS; SIGTERM hands it over at once.
    """
    try:
        # By name, as a shell would: this room and the service do not know each other's insides.
        run_worker = import_module("alphalloc_service.worker").run_worker
        configure = import_module("alphalloc_service.logs").configure
        settings = import_module("alphalloc_service.settings").Settings.from_environment()
    except ImportError as exc:
        raise MissingExtraError(f"the worker needs {exc.name}: pip install 'alphalloc[server]'") from exc
    configure(settings.log_format)
    chosen = None if backend is None else backend.value
    run_worker(settings, backend=chosen, ray_address=ray_address, once=once, metrics_address=metrics)
