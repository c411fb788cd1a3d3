"""The worker: takes one analysis after the other, runs each in a child process and writes down what comes of it.

Any number of workers on any number of hosts share a database. Whatever happens to a worker or its child, the lease runs
out and another takes the analysis, up to ``max_attempts`` times; what was measured before is in the spectra cache.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

from alphalloc.errors import SettingsError, StorageError

from . import metrics
from .job_process import JobProcess
from .jobs import problem
from .settings import Settings
from .store import Analysis, LayerEvent, Store, UnstorableError

logger = logging.getLogger("alphalloc_service")

# Chosen here: how often a worker without work looks for some; how often a running job's row is looked at and its
# progress written (a cancel takes one such look and the kill); how often old rows are deleted.
IDLE_SECONDS = 0.5
LOOK_SECONDS = 0.5
PRUNE_SECONDS = 3600.0
FOREVER_SECONDS = 1e11


def run_worker(
    settings: Settings,
    *,
    backend: str | None = None,
    ray_address: str | None = None,
    once: bool = False,
    stop: threading.Event | None = None,
    metrics_address: str | None = None,
) -> None:
    """Work until ``stop`` is set or SIGTERM or SIGINT comes; with ``once`` until nothing waits any more.

    ``backend`` and ``ray_address`` default to the settings'. When it stops in the middle of an analysis, it gives the
    lease back, so that another worker takes over at once. SIGINT ends in KeyboardInterrupt. Raises StorageError when
    the database cannot be opened; later failures of the database are waited out. ``metrics_address``: where it answers
    /metrics itself, see :func:`alphalloc_service.metrics.serve`.
    """
    chosen = backend or settings.backend
    address = ray_address or settings.ray_address
    if address is not None and chosen != "ray":
        raise SettingsError(f"a Ray address belongs to backend ray, not to {chosen}; give both or neither")
    store = Store.open(settings.database_url)
    stopping = stop or threading.Event()
    server = None
    try:
        server = metrics.serve(metrics_address) if metrics_address else None
        counting = settings.metrics and (server is not None or bool(os.environ.get(metrics.FOLDER)))
        with _signals(stopping), tempfile.TemporaryDirectory(prefix="alphalloc-worker-") as folder:
            Worker(settings, store, Path(folder), chosen, address, stopping, counting=counting).run(once=once)
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
        store.close()


class Worker:
    """One worker. ``stop`` ends it from another thread or a signal handler; ``folder``: empty, where its jobs start;
    ``counting``: whether somebody reads its metrics.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        folder: Path,
        backend: str,
        ray_address: str | None,
        stop: threading.Event,
        *,
        counting: bool = False,
    ) -> None:
        self._counting = counting
        self._settings, self._store, self._folder = settings, store, folder
        self._backend, self._ray_address, self._stop = backend, ray_address, stop
        self._last_purge = 0  # the first look sees all that are kept, so that a worker that was away misses none
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def run(self, *, once: bool = False) -> None:
        """Work until told to stop; with ``once`` until nothing waits."""
        logger.info("worker %s started, backend %s", self._name, self._backend)
        next_prune = time.monotonic()
        while not self._stop.is_set():
            owner = f"{self._name}:{secrets.token_hex(6)}"  # new for every claim: a stale one can never match again
            try:
                if time.monotonic() >= next_prune:
                    self._prune()
                    self._last_purge = 0  # of two purges at once the lower number may have been written last
                    next_prune = time.monotonic() + PRUNE_SECONDS
                self._purge()
                analysis = self._store.claim(
                    owner, self._settings.lease_seconds, max_attempts=self._settings.max_attempts
                )
            except StorageError as exc:
                logger.warning("worker %s: %s", self._name, exc)
                self._stop.wait(2 * IDLE_SECONDS)
                continue
            if analysis is not None:
                with structlog.contextvars.bound_contextvars(job_id=analysis.id):
                    self._work(analysis, owner)
            elif once:
                break
            else:
                self._stop.wait(IDLE_SECONDS)
        logger.info("worker %s stopped", self._name)

    def _purge(self) -> None:
        """Delete this machine's spectra that were to go; those used since were measured anew."""
        for purge in self._store.purges(self._last_purge):
            from alphalloc import SpectraCache  # numpy and all, which a worker otherwise does without

            gone = SpectraCache().discard(purge.spectra, used_before=purge.created_at)
            logger.info("deleted %d spectra of a deleted analysis", gone)
            self._last_purge = purge.seq

    def _prune(self) -> None:
        for what, seconds in (
            ("analyses", self._settings.retain_jobs_seconds),
            ("allocations", self._settings.retain_allocations_seconds),
        ):
            gone = self._store.prune(FOREVER_SECONDS if seconds is None else seconds, what)  # type: ignore[arg-type]
            if gone:
                logger.info("deleted %d old %s", gone, what)

    def _work(self, analysis: Analysis, owner: str) -> None:
        """Run one analysis to its end, or until it is not ours any more."""
        logger.info("analysis %s: attempt %d", analysis.id, analysis.attempt)
        started = time.monotonic()
        with _Lease(self._store, analysis.id, owner, self._settings.lease_seconds) as lease:
            try:
                job = JobProcess(
                    analysis.request, self._settings, self._folder, self._backend, self._ray_address, analysis.id
                )
            except OSError as exc:  # no memory or processes left on this machine: another may have some
                logger.error("analysis %s: no process for it: %s", analysis.id, exc)
                self._persist(lambda: self._store.release(analysis.id, owner))
                self._stop.wait(2 * IDLE_SECONDS)
                return
            try:
                write = self._follow(job, lease, analysis, owner)
            finally:
                job.end()
            if write is not None:
                self._end(analysis.id, owner, write)
        ended = self._ended(analysis.id)
        logger.info("analysis %s: %s", analysis.id, ended)
        if self._counting:
            metrics.job_ended(ended, time.monotonic() - started)

    def _follow(self, job: JobProcess, lease: _Lease, analysis: Analysis, owner: str) -> Callable[[], bool] | None:
        """Listen to the child until one thing or the other happens; return what to write then, None for nothing."""
        id, store = analysis.id, self._store
        deadline = time.monotonic() + self._settings.job_seconds
        following = _Following(self._store, id, owner, counting=self._counting)
        while True:
            try:
                message = job.receive(0.1)
            except EOFError:
                return self._accident(analysis, owner, job.exit_status())
            if message is not None and message["kind"] == "finished":
                return lambda: _succeed(store, id, owner, message)
            if message is not None and message["kind"] == "failed":
                return lambda: store.finish(id, owner, "failed", error=message["error"])
            if message is not None:
                following.take(message)
            if self._stop.is_set():
                return lambda: store.release(id, owner, count_attempt=False)
            if lease.lost.is_set() or not following.look():
                logger.warning("analysis %s: the lease is lost, another worker has it", id)
                return None
            if following.cancelled:
                return lambda: store.finish(id, owner, "cancelled")
            if time.monotonic() > deadline:
                detail = f"the analysis took longer than {self._settings.job_seconds:g} s (job_seconds) and was stopped"
                error = problem("job-timeout", 504, detail)
                return lambda: store.finish(id, owner, "failed", error=error)

    def _accident(self, analysis: Analysis, owner: str, status: int) -> Callable[[], bool]:
        """Return what to write when the child died: one more try, or the end."""
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        logger.error("analysis %s: its process %s", analysis.id, how)
        if analysis.attempt < self._settings.max_attempts:
            return lambda: self._store.release(analysis.id, owner)
        detail = f"the process {how} in attempt {analysis.attempt}, the last; is there enough memory?"
        error = problem("worker-lost", 500, detail)
        return lambda: self._store.finish(analysis.id, owner, "failed", error=error)

    def _end(self, id: str, owner: str, write: Callable[[], bool]) -> None:
        """Write how the analysis ended; what the database cannot hold is a failure."""
        try:
            self._persist(write)
        except UnstorableError as exc:
            logger.error("analysis %s: %s", id, exc)
            error = problem("internal", 500, "the result cannot be stored; the worker's log has the details")
            self._persist(lambda: self._store.finish(id, owner, "failed", error=error))

    def _persist(self, write: Callable[[], bool]) -> None:
        """Write, and again until the database takes it; when told to stop meanwhile the lease's end has to do."""
        delay = IDLE_SECONDS
        while True:
            try:
                if not write():
                    logger.warning("worker %s: the lease was lost; nothing is written", self._name)
                return
            except UnstorableError:
                raise
            except StorageError as exc:
                logger.warning("worker %s: %s", self._name, exc)
                if self._stop.wait(delay):
                    return
                delay = min(2 * delay, 5.0)

    def _ended(self, id: str) -> str:
        with contextlib.suppress(StorageError):
            found = self._store.analysis(id)
            return "deleted" if found is None else found.status
        return "unknown"


class _Following:
    """What is known of the running job: its latest progress, written every LOOK_SECONDS, and whether to cancel it."""

    def __init__(self, store: Store, id: str, owner: str, *, counting: bool) -> None:
        self._store, self._id, self._owner = store, id, owner
        self._counting = counting
        self._news: dict[str, Any] | None = None
        self._layers: list[LayerEvent] = []
        self._seconds = 0.0
        self._next_look = 0.0
        self.cancelled = False

    def take(self, message: dict[str, Any]) -> None:
        """Remember a progress message."""
        self._news = message
        if message["layer"] is not None:
            self._layers.append(_layer_event(message["layer"]))
        if self._counting and message["cached"]:
            metrics.cache_hit()
        elif self._counting:
            metrics.matrix_done(message["device"], message["seconds"] - self._seconds)
        self._seconds = message["seconds"]

    def look(self) -> bool:
        """Write the news and look at the row, if it is time to; False when the analysis is not ours any more."""
        if time.monotonic() < self._next_look:
            return True
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            row = self._store.analysis(self._id)
            if row is None or row.owner != self._owner:
                return False
            self.cancelled = row.cancel_requested
            if self._news is None or self.cancelled:
                return True
            news, layers = self._news, self._layers
            self._news, self._layers = None, []
            return self._store.progress(
                self._id, self._owner, news["done"], news["total"], name=news["name"], layer_events=layers
            )
        except StorageError as exc:
            logger.warning("analysis %s: %s", self._id, exc)
            return True  # the lease decides, and its thread goes on trying


class _Lease:
    """Renews a lease at a third of its length, on a thread of its own; ``lost`` is set when another has taken it."""

    def __init__(self, store: Store, id: str, owner: str, seconds: float) -> None:
        self._store, self._id, self._owner, self._seconds = store, id, owner, seconds
        self._done = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alphalloc-lease", daemon=True)

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._seconds / 3
        while not self._done.wait(pause):
            try:
                if not self._store.renew(self._id, self._owner, self._seconds):
                    self.lost.set()
                    return
                pause = self._seconds / 3
            except StorageError as exc:  # it may pass before the lease does
                logger.warning("analysis %s: its lease was not renewed: %s", self._id, exc)
                pause = min(1.0, self._seconds / 10)


def _succeed(store: Store, id: str, owner: str, message: dict[str, Any]) -> bool:
    return store.finish(
        id,
        owner,
        "succeeded",
        result=message["document"],
        spectra=message["spectra"],
        model=message["model"],
        summary=message["summary"],
        total=message["total"],
        layer_events=[_layer_event(layer) for layer in message["layers"]],  # those not told before
    )


def _layer_event(layer: dict[str, Any]) -> LayerEvent:
    # As JSON in ASCII: a stack is called as somebody's tensors are, and PostgreSQL takes no NUL.
    return LayerEvent(json.dumps([layer["stack"], layer["layer"]]), layer)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set ``stop``; a SIGINT becomes KeyboardInterrupt at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = threading.Event()

    def handle(signum: int, _: object) -> None:
        if signum == signal.SIGINT:
            interrupted.set()
        stop.set()

    previous = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt
