"""What is counted and timed, in Prometheus' names.

``alphalloc_jobs{status}`` is read from the database when somebody asks; the rest is counted where it happens. Several
processes (workers of the API, the one that runs jobs) count into files of one folder, PROMETHEUS_MULTIPROC_DIR, and any
of them answers for all. A worker of its own answers for itself, where it is told to.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from alphalloc.errors import SettingsError, StorageError

logger = logging.getLogger("alphalloc_service")

HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
MATRIX_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # 576 to 16384 a side, on a GPU or a slow CPU
JOB_SECONDS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class JobCounts(Protocol):
    """What this module asks of the store."""

    def counts(self) -> Any:
        """Return the number of analyses by status."""


@dataclass(frozen=True)
class Instruments:
    """The counters and histograms of this process."""

    registry: Any
    http_requests: Any
    http_seconds: Any
    job_seconds: Any
    matrix_seconds: Any
    cache_hits: Any


def share() -> str:
    """Return the folder that all processes count into; a new one for this process and its children if none is named.

    To be called before anything else here: prometheus_client decides when it is imported. A new folder goes with this
    process.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="alphalloc-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=1)
def instruments() -> Instruments:
    """Return this process' instruments, made when first asked for."""
    from prometheus_client import CollectorRegistry, Counter, Histogram

    registry = CollectorRegistry()
    given: dict[str, Any] = {"registry": registry}
    return Instruments(
        registry,
        Counter("http_requests_total", "Answers given.", ("method", "route", "status"), **given),
        Histogram(
            "http_request_duration_seconds",
            "Until the answer began.",
            ("method", "route"),
            buckets=HTTP_SECONDS,
            **given,
        ),
        Histogram("alphalloc_job_seconds", "A job, from start to end.", ("status",), buckets=JOB_SECONDS, **given),
        Histogram("alphalloc_matrix_seconds", "One matrix.", ("device",), buckets=MATRIX_SECONDS, **given),
        Counter("alphalloc_cache_hits_total", "Matrices whose spectrum was known already.", **given),
    )


def serve(address: str) -> Any:
    """Answer /metrics of this process at ``address`` ("127.0.0.1:9100", or a port alone) from a thread; return the
    server. Raises SettingsError when it is no address or cannot be listened on.
    """
    from prometheus_client import start_http_server

    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise SettingsError(f"expected an address such as 127.0.0.1:9100 for metrics, found {address!r}")
    try:
        server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry=instruments().registry)
    except OSError as exc:
        raise SettingsError(f"cannot answer metrics at {address}: {exc.strerror or exc}") from exc
    return server


def job_ended(status: str, seconds: float) -> None:
    """Count a job that ended as ``status`` after ``seconds``."""
    instruments().job_seconds.labels(status).observe(max(0.0, seconds))


def matrix_done(device: str, seconds: float) -> None:
    """Count a matrix measured on ``device`` (cpu, cuda, ..) in ``seconds``."""
    instruments().matrix_seconds.labels(device).observe(max(0.0, seconds))


def cache_hit(count: int = 1) -> None:
    """Count ``count`` matrices that needed no work."""
    instruments().cache_hits.inc(count)


class _Jobs:
    """The number of analyses by status, as the database has it now."""

    def __init__(self, store: JobCounts | None) -> None:
        self._store = store

    def collect(self) -> Iterator[Any]:
        """Yield the one gauge; none while the database cannot be read, which /readyz reports."""
        from prometheus_client.core import GaugeMetricFamily

        if self._store is None:
            return
        try:
            counts = self._store.counts()
        except StorageError as exc:
            logger.warning("no job counts for the metrics: %s", exc)
            return
        family = GaugeMetricFamily("alphalloc_jobs", "Analyses by status.", labels=["status"])
        for status in STATUSES:
            family.add_metric([status], counts.get(status, 0))
        yield family


def exposition(store: JobCounts | None) -> bytes:
    """Return all metrics in Prometheus' text format. Reads the database and files, so call it in a thread."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry: Any = CollectorRegistry()
    registry.register(_Jobs(store))
    text: bytes = generate_latest(registry)
    if os.environ.get(FOLDER):
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return text + generate_latest(shared)
    return text + generate_latest(instruments().registry)
