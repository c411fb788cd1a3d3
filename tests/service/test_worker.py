"""Workers: jobs in child processes, from the database and back into it. Real processes throughout."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from alphalloc_service.embedded import EmbeddedWorker
from alphalloc_service.settings import Settings
from alphalloc_service.store import LayerEvent, Store, UnstorableError
from alphalloc_service.worker import Worker, run_worker
from databases import DATABASES, new_url
from kill_loop import WorkerProcess, request_for, undisturbed, write_model
from safetensors.numpy import save_file

import alphalloc
from alphalloc.errors import SettingsError, StorageError

CANCEL_SECONDS = 10  # the promise is 2 on an idle machine (reports/service-reliability); tests share theirs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
def url(tmp_path):
    return new_url("sqlite", tmp_path)


@pytest.fixture
def store(url):
    store = Store.open(url)
    yield store
    store.close()


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    """One matrix whose eigenvalues take much longer than any wait in these tests."""
    path = tmp_path_factory.mktemp("slow") / "slow.safetensors"
    save_file({"layers.0.weight": np.random.default_rng(0).standard_normal((5000, 5000)).astype(np.float32)}, path)
    return path


@contextmanager
def working(url, **settings):
    """A worker in a thread."""
    stop = threading.Event()
    chosen = Settings(database_url=url, **settings)
    thread = threading.Thread(target=run_worker, args=(chosen,), kwargs={"stop": stop})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until(condition, seconds=120):
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)
    return found


def work_off(url, **settings):
    """Run everything that waits."""
    run_worker(Settings(database_url=url, **settings), once=True, stop=threading.Event())


def job_pids() -> list[int]:
    """Job processes of this process, whichever thread started them."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    pids = [int(pid) for part in children for pid in part]
    return [pid for pid in pids if b"alphalloc_service.jobs" in command_line(pid)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kind", DATABASES)
def test_a_job_ends_with_the_document_that_the_library_makes(kind, tmp_path):
    url = new_url(kind, tmp_path)
    store = Store.open(url)
    model = write_model(tmp_path / "model.safetensors", 0, matrices=4, shape=(60, 90))
    id = store.submit(
        "a", request_for(model) | {"layer_filter": {"include": [], "exclude": ["layers.3.*"]}}
    ).analysis.id
    work_off(url)
    analysis = store.analysis(id)
    assert (analysis.status, analysis.attempt, analysis.done, analysis.total) == ("succeeded", 1, 3, 3)
    expected = alphalloc.analyze(model, cache=False, histograms=True, exclude=["layers.3.*"])
    assert store.result(id).decode() == json.dumps(
        expected.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert analysis.model == expected.model.model_dump(mode="json")
    assert analysis.summary == expected.summary()
    layers = [event.data for event in store.events(id) if event.kind == "layer"]
    assert layers == [layer.model_dump(mode="json") for layer in expected.layers]
    assert store.events(id)[-1].data == {"status": "succeeded"}
    assert len(list((tmp_path / "cache").rglob("*.esd"))) == 3
    store.close()


def hostile_pickle(path: Path, proof: Path) -> Path:
    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {proof}",))

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Payload()))
        archive.writestr("model/version", "3\n")
    return path


def test_what_is_wrong_with_a_model_becomes_the_problem_of_its_analysis(url, store, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    evil = hostile_pickle(tmp_path / "evil.pt", tmp_path / "proof")
    wrong = {
        "model-not-found": (404, {"path": str(tmp_path / "nothing")}),
        "corrupt-checkpoint": (422, {"path": str(broken)}),
        "unsafe-checkpoint": (422, {"path": str(evil)}),
    }
    ids = {code: store.submit(code, {"model": model}).analysis.id for code, (_, model) in wrong.items()}
    work_off(url)
    for code, id in ids.items():
        analysis = store.analysis(id)
        assert (analysis.status, analysis.attempt) == ("failed", 1)
        assert (analysis.error["code"], analysis.error["status"]) == (code, wrong[code][0]), analysis.error
        assert set(analysis.error) == {"type", "title", "status", "code", "detail"}
        assert analysis.error["detail"]
    assert not (tmp_path / "proof").exists()


def test_a_worker_of_its_own_answers_for_its_metrics(url, store, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    store.submit("a", request_for(write_model(tmp_path / "model.safetensors", 0, matrices=3, shape=(60, 90))))
    store.submit("b", {"model": {"path": str(tmp_path / "gone")}, "estimator": "ks"})
    command = [sys.executable, "-m", "alphalloc", "worker", "--metrics", address]
    worker = subprocess.Popen(command, env={**os.environ, "ALPHALLOC_DATABASE_URL": url})
    try:
        until(lambda: store.counts()["succeeded"] == store.counts()["failed"] == 1)
        counted = {"succeeded": 1.0, "failed": 1.0}

        def seen():
            text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
            found = re.findall(r'alphalloc_job_seconds_count\{status="(\w+)"\} (\S+)', text)
            return {status: float(number) for status, number in found} == counted and text

        assert 'alphalloc_matrix_seconds_count{device="cpu"} 3.0' in until(seen, seconds=10)
    finally:
        worker.terminate()
        assert worker.wait(30) == 0


@pytest.mark.parametrize("address", ["here", "127.0.0.1:", "127.0.0.1:99999", "256.0.0.1:0"])
def test_metrics_are_answered_at_an_address(url, store, address):
    with pytest.raises(SettingsError, match=re.escape(address)):
        run_worker(Settings(database_url=url), once=True, metrics_address=address)


@pytest.mark.parametrize("kind", DATABASES)
def test_a_stack_may_be_called_anything(kind, tmp_path):
    url = new_url(kind, tmp_path)
    store = Store.open(url)
    rng = np.random.default_rng(0)
    names = [f"{stack}.layers.{i}.self_attn.q_proj.weight" for stack in ('a\0\\"/enc', "dec") for i in range(2)]
    path = tmp_path / "model.safetensors"
    save_file({name: rng.standard_normal((40, 30)).astype(np.float32) for name in names}, path)
    id = store.submit("a", request_for(path)).analysis.id
    work_off(url)
    assert store.analysis(id).status == "succeeded"
    layers = [event.data for event in store.events(id) if event.kind == "layer"]
    assert {(layer["stack"], layer["layer"]) for layer in layers} >= {("dec", 0), ("dec", 1)}
    assert "\0" in "".join(layer["stack"] for layer in layers)
    assert len(layers) == 4
    store.close()


def test_what_the_database_can_never_hold_fails_the_analysis(tmp_path):
    url = new_url("postgresql", tmp_path)
    store = Store.open(url)
    id = store.submit("a", {"model": {"path": "/m"}}).analysis.id
    claimed = store.claim("owner", 30)

    def write():
        nul = LayerEvent("\0", {})  # which PostgreSQL's text cannot hold
        return store.finish(claimed.id, "owner", "succeeded", result=b"{}", total=1, layer_events=[nul])

    with pytest.raises(UnstorableError, match="cannot hold"):
        write()
    Worker(Settings(database_url=url), store, tmp_path, "local", None, threading.Event())._end(id, "owner", write)
    analysis = store.analysis(id)
    assert (analysis.status, analysis.error["code"]) == ("failed", "internal")
    store.close()


def test_a_cancel_ends_a_job_inside_an_eigensolver(url, store, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    with working(url):
        (pid,) = until(job_pids)
        until(lambda: processor_seconds(pid) > 4)  # well inside: importing and reading take two
        asked = time.monotonic()
        assert store.request_cancel(id).cancel_requested
        until(lambda: store.analysis(id).status == "cancelled" and not command_line(pid), seconds=CANCEL_SECONDS)
        # The promise is two seconds; the rest is for machines that run other tests beside this one.
        assert time.monotonic() - asked < 10
    assert store.events(id)[-1].data == {"status": "cancelled"}


def test_a_job_that_takes_too_long_fails(url, store, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    work_off(url, job_seconds=3)
    error = store.analysis(id).error
    assert (error["code"], error["status"]) == ("job-timeout", 504)
    assert "longer than 3 s" in error["detail"]
    assert job_pids() == []


def test_a_job_that_takes_too_much_memory_fails(url, store, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    work_off(url, job_memory_bytes=200 * 2**20, max_attempts=1)
    analysis = store.analysis(id)
    assert (analysis.status, analysis.error["code"]) == ("failed", "memory-budget")
    assert "layers.0.weight" in analysis.error["detail"]


def test_a_job_that_keeps_dying_is_tried_again_and_then_fails(url, store, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    killed = []
    with working(url, max_attempts=2):
        for _ in range(2):
            (pid,) = until(lambda: [pid for pid in job_pids() if pid not in killed])
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        until(lambda: store.analysis(id).finished)
    analysis = store.analysis(id)
    assert (analysis.status, analysis.attempt, analysis.error["code"]) == ("failed", 2, "worker-lost")
    assert "killed by signal 9 in attempt 2, the last" in analysis.error["detail"]


def test_a_worker_that_lost_its_lease_stops_and_writes_nothing(url, store, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    with working(url, lease_seconds=3):
        until(job_pids)
        thief = Store.open(url, clock=lambda: time.time() + 60)  # on a host whose clock goes wrong
        stolen = thief.claim("thief", 300)
        assert (stolen.id, stolen.attempt) == (id, 2)
        until(lambda: not job_pids())
        time.sleep(0.2)
        now = store.analysis(id)
        assert (now.status, now.owner, now.attempt) == ("running", "thief", 2)
        assert thief.finish(id, "thief", "failed")
        thief.close()


def test_a_worker_that_is_told_to_stop_hands_its_job_over_at_once(url, store, tmp_path, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    worker = WorkerProcess(Settings(database_url=url, lease_seconds=3600), {}, tmp_path / "log")
    try:
        (child,) = until(lambda: worker.children)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=30) == 0
        assert not command_line(child)
        released = store.analysis(id)
        assert (released.status, released.owner, released.attempt) == ("queued", None, 0)
        assert store.claim("next", 30).attempt == 1
    finally:
        worker.kill()


def test_a_killed_worker_takes_its_job_with_it(url, store, tmp_path, slow_model):
    id = store.submit("a", request_for(slow_model)).analysis.id
    worker = WorkerProcess(Settings(database_url=url, lease_seconds=1), {}, tmp_path / "log")
    (child,) = until(lambda: worker.children)
    worker.kill()
    until(lambda: not command_line(child), seconds=20)
    assert until(lambda: store.claim("next", 30), seconds=20).id == id


def test_the_command_works_until_nothing_waits(url, store, tmp_path):
    model = write_model(tmp_path / "model.safetensors", 0, matrices=2, shape=(60, 90))
    id = store.submit("a", request_for(model)).analysis.id
    environment = os.environ | {"ALPHALLOC_DATABASE_URL": url}
    command = [sys.executable, "-m", "alphalloc", "worker", "--once"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert store.result(id) == undisturbed(model)


@pytest.mark.parametrize("kind", DATABASES)
def test_a_purge_reaches_the_spectra_of_every_machine(kind, tmp_path):
    url = new_url(kind, tmp_path)
    store = Store.open(url)
    ids = []
    for number, content in enumerate("ab"):
        model = write_model(tmp_path / f"{content}.safetensors", number, matrices=3, shape=(60, 90))
        ids.append(store.submit(content, request_for(model)).analysis.id)
    work_off(url)
    here, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    shutil.copytree(here, elsewhere)

    def spectra(folder):
        return {path.name for path in folder.rglob("*.esd")}

    assert len(spectra(here)) == 6
    assert store.delete_analysis(ids[0], purge=True)
    work_off(url)
    left = spectra(here)
    assert len(left) == 3
    assert len(spectra(elsewhere)) == 6
    command = [sys.executable, "-m", "alphalloc", "worker", "--once"]
    subprocess.run(
        command, env={**os.environ, "ALPHALLOC_DATABASE_URL": url, "XDG_CACHE_HOME": str(elsewhere)}, check=True
    )
    assert spectra(elsewhere) == left
    again = store.submit("a", request_for(tmp_path / "a.safetensors")).analysis.id
    work_off(url)  # sees the purge once more, as a new worker does, and measures anew
    work_off(url)
    assert store.analysis(again).status == "succeeded"
    assert len(spectra(here)) == 6
    store.close()


def test_old_rows_go_by_the_retention(url, store, tmp_path):
    id = store.submit("a", {"model": {"path": str(tmp_path / "nothing")}}).analysis.id
    work_off(url)
    assert store.analysis(id).status == "failed"
    time.sleep(1.1)
    work_off(url, retain_jobs_seconds=1)
    assert store.analysis(id) is None


def test_settings_that_make_no_sense_are_refused(url, tmp_path):
    with pytest.raises(SettingsError, match="belongs to backend ray"):
        run_worker(Settings(database_url=url), ray_address="head:6379")
    with pytest.raises(StorageError, match="alphalloc db upgrade"):
        run_worker(Settings(database_url=f"sqlite:///{tmp_path / 'none.db'}"))


def test_neither_the_worker_nor_the_store_load_torch_or_numpy():
    code = (
        "import sys, alphalloc_service.worker, alphalloc_service.embedded, alphalloc_service.store\n"
        "assert not {'torch', 'numpy', 'scipy', 'ray', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_embedded_worker_is_started_again_and_stops_with_its_server(url, store, tmp_path):
    worker = EmbeddedWorker(Settings(database_url=url))
    try:
        first = until(lambda: worker.pid)
        os.kill(first, signal.SIGKILL)
        second = until(lambda: worker.pid if worker.pid != first else None)
        model = write_model(tmp_path / "model.safetensors", 0, matrices=2, shape=(60, 90))
        id = store.submit("a", request_for(model)).analysis.id
        until(lambda: store.analysis(id).finished)
        assert store.analysis(id).status == "succeeded"
    finally:
        worker.stop()
    assert worker.pid is None
    assert not command_line(second)


def test_the_embedded_worker_ends_when_its_server_is_killed(url):
    code = (
        "import sys, time; from alphalloc_service.embedded import EmbeddedWorker; "
        "from alphalloc_service.settings import Settings\n"
        "worker = EmbeddedWorker(Settings(database_url=sys.argv[1]))\n"
        "while worker.pid is None: time.sleep(0.01)\n"
        "print(worker.pid, flush=True); time.sleep(1000)"
    )
    server = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    pid = int(server.stdout.readline())
    server.kill()
    server.wait()
    server.stdout.close()
    until(lambda: not command_line(pid))
