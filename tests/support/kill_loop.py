"""Workers and their children are killed at random moments; what was acknowledged has to be there in the end.

Real processes, real SIGKILL, real analyses. The tests run it with few kills, the report with a hundred.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from alphalloc_service.handover import line_of
from alphalloc_service.settings import Settings
from alphalloc_service.store import Analysis, Store
from safetensors.numpy import save_file

import alphalloc
from alphalloc.documents import canonical_json

MATRICES, ROWS, COLS = 20, 300, 700
LEASE_SECONDS = 2.0
PATIENCE = 600.0  # seconds; on a machine with other things to do
LONGEST_WAIT = 2.5  # seconds from the sight of a running job to the kill, at most: about what a job takes


@dataclass
class KillReport:
    """What happened."""

    database: str
    workers: int
    lease_seconds: float
    kills_of_workers: int = 0
    kills_of_children: int = 0
    jobs: int = 0  # acknowledged by the store
    jobs_lost: int = 0  # of them: not succeeded in the end
    results_differing: int = 0  # of them: not the bytes of an undisturbed run
    most_attempts: int = 0
    spectra: int = 0  # matrices of all jobs
    spectra_seen: int = 0  # on disk at some kill
    spectra_lost: int = 0  # of them: gone in the end, or computed again
    orphans: int = 0  # children alive two seconds after their worker was killed
    recovery_seconds: list[float] = field(default_factory=list)  # from a kill to the next claim of the same job
    idle_seconds: list[float] = field(default_factory=list)  # of these, while no worker was at another job
    wrong_in_database: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


class WorkerProcess:
    """A worker of its own session; closing its stdin stops it, as the death of this process does."""

    def __init__(self, settings: Settings, environment: dict[str, str], log: Path) -> None:
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "alphalloc_service.embedded"],
                stdin=subprocess.PIPE,
                stderr=stream,
                env=os.environ | environment,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(line_of(settings))
        self.process.stdin.flush()

    @property
    def children(self) -> list[int]:
        """Process ids of its jobs."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; return its exit status."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(timeout=30)


def write_model(path: Path, seed: int, matrices: int = MATRICES, shape: tuple[int, int] = (ROWS, COLS)) -> Path:
    """Write a checkpoint of random matrices, one a layer."""
    rng = np.random.default_rng(seed)
    save_file({f"layers.{i}.weight": rng.standard_normal(shape).astype(np.float32) for i in range(matrices)}, path)
    return path


def request_for(model: Path) -> dict[str, object]:
    """Return the request of an analysis of a local model."""
    return {"model": {"path": str(model)}, "estimator": "xmin_peak_robust"}


def undisturbed(model: Path) -> bytes:
    """Return the document of an analysis that nobody kills, without any cache."""
    alphas = alphalloc.analyze(model, cache=False, histograms=True)
    return canonical_json(alphas.model_dump(mode="json")).encode()


def kill_loop(
    url: str, folder: Path, kills: int, *, workers: int = 1, lease_seconds: float = LEASE_SECONDS, seed: int = 0
) -> KillReport:
    """Kill ``kills`` times, a worker or a child by chance, while jobs never run out; report on what was left."""
    began = time.monotonic()
    moments = random.Random(seed)
    report = KillReport(url.partition(":")[0], workers, lease_seconds)
    cache = folder / "cache"
    # More attempts than kills: this is about what is lost, not about when to give up.
    settings = Settings(
        database_url=url, lease_seconds=lease_seconds, max_attempts=100, metrics=False, log_format="text"
    )
    environment = {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(folder)}
    store = Store.open(url)
    running = [WorkerProcess(settings, environment, folder / "workers.log") for _ in range(workers)]
    acknowledged: dict[str, Path] = {}
    seen: dict[Path, int] = {}
    watch = _Watch(store, report)
    try:
        for _ in range(kills):
            _top_up(store, folder, acknowledged, workers + 2)
            victim = _wait_for_child(watch, running)
            _pause(watch, moments, victim, cache)
            seen |= {path: path.stat().st_ino for path in _spectra(cache)}
            children = victim.children
            watch.killed(victim.process.pid)
            if children and moments.random() < 0.5:
                report.kills_of_children += 1
                with contextlib.suppress(ProcessLookupError):  # it finished just now
                    os.kill(children[0], signal.SIGKILL)
                continue
            report.kills_of_workers += 1
            victim.kill()
            report.orphans += _survivors(children)
            running[running.index(victim)] = WorkerProcess(settings, environment, folder / "workers.log")
        watch.until(lambda: not _unfinished(store), PATIENCE, "all jobs to end")
        statuses = [one.stop() for one in running]
        assert statuses == [0] * workers, statuses
    finally:
        for one in running:
            one.kill()
    _judge(report, store, folder, cache, acknowledged, seen)
    store.close()
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _pause(watch: _Watch, moments: random.Random, victim: WorkerProcess, cache: Path) -> None:
    """Wait for a random moment: some time, or some spectra of the running job and a little more."""
    if moments.random() < 0.5:
        watch.rest(moments.uniform(0, LONGEST_WAIT))
        return
    wanted, before = moments.randrange(1, MATRICES + 1), len(_spectra(cache))
    watch.until(lambda: len(_spectra(cache)) >= before + wanted or not victim.children, PATIENCE, "spectra")
    watch.rest(moments.uniform(0, 0.05))


def _judge(
    report: KillReport, store: Store, folder: Path, cache: Path, acknowledged: dict[str, Path], seen: dict[Path, int]
) -> None:
    report.jobs = len(acknowledged)
    for id, model in acknowledged.items():
        analysis = store.analysis(id)
        if analysis is None or analysis.status != "succeeded":
            report.jobs_lost += 1
            continue
        report.most_attempts = max(report.most_attempts, analysis.attempt)
        report.results_differing += store.result(id) != undisturbed(model)
    spectra = {path: path.stat().st_ino for path in _spectra(cache)}
    report.spectra, report.spectra_seen = len(spectra), len(seen)
    report.spectra_lost = sum(spectra.get(path) != inode for path, inode in seen.items())
    report.wrong_in_database = store.check()


def _top_up(store: Store, folder: Path, acknowledged: dict[str, Path], wanted: int) -> None:
    while len(_unfinished(store)) < wanted:
        number = len(acknowledged)
        model = write_model(folder / f"model{number}.safetensors", number)
        acknowledged[store.submit(model.name, dict(request_for(model))).analysis.id] = model


def _unfinished(store: Store) -> list[Analysis]:
    return store.list_analyses(status="queued", limit=100) + store.list_analyses(status="running", limit=100)


class _Watch:
    """Waits, and sees meanwhile when jobs whose process was killed are claimed again."""

    def __init__(self, store: Store, report: KillReport) -> None:
        self._store, self._report = store, report
        self._killed: dict[str, tuple[float, Analysis]] = {}
        self._idle: dict[str, float] = {}

    def killed(self, pid: int) -> None:
        """Note that the worker ``pid``, or its child, is killed now."""
        for analysis in self._store.list_analyses(status="running", limit=100):
            if analysis.owner is not None and f":{pid}:" in analysis.owner:
                self._killed[analysis.id] = (time.monotonic(), analysis)
                self._idle[analysis.id] = 0.0

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Return what ``condition`` does as soon as that is true. Raises AssertionError after ``seconds``."""
        give_up = time.monotonic() + seconds
        before_that = time.monotonic()
        while not (found := condition()):
            if time.monotonic() > give_up:
                raise AssertionError(f"waited {seconds:g} s in vain for {what}")
            passed, before_that = time.monotonic() - before_that, time.monotonic()
            if self._killed and not self.fresh():
                self._idle = {id: idle + passed for id, idle in self._idle.items()}
            for id, (at, before) in list(self._killed.items()):
                now = self._store.analysis(id)
                if now is None or now.finished or now.attempt > before.attempt:
                    self._report.recovery_seconds.append(round(time.monotonic() - at, 2))
                    self._report.idle_seconds.append(round(self._idle.pop(id), 2))
                    del self._killed[id]
            time.sleep(0.03)
        return found

    def rest(self, seconds: float) -> None:
        """Wait so long."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + PATIENCE, "time to pass")

    def fresh(self) -> set[int]:
        """Process ids of the owners of what runs, those that were killed left out."""
        now = self._store.list_analyses(status="running", limit=100)
        dead = {before.owner for _, before in self._killed.values()}
        return {int(one.owner.split(":")[1]) for one in now if one.owner is not None and one.owner not in dead}


def _wait_for_child(watch: _Watch, running: list[WorkerProcess]) -> WorkerProcess:
    """Return a worker that has a job's process, as soon as there is one."""

    def found() -> WorkerProcess | None:
        pids = watch.fresh()
        return next((one for one in running if one.process.pid in pids and one.children), None)

    victim: WorkerProcess = watch.until(found, PATIENCE, "a worker to take a job")
    return victim


def _survivors(children: list[int]) -> int:
    """How many of the processes are alive two seconds from now (fewer when they are gone earlier)."""
    give_up = time.monotonic() + 2
    while alive := [pid for pid in children if _alive(pid)]:
        if time.monotonic() > give_up:
            return len(alive)
        time.sleep(0.01)
    return 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _spectra(cache: Path) -> list[Path]:
    return list((cache / "alphalloc" / "spectra").glob("*/*.esd"))
