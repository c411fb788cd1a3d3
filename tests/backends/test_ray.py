"""The Ray backend on a real cluster of this machine's loopback: the bytes of the local one, whatever dies meanwhile.

One cluster for all tests, in a folder and with a token of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import alphalloc
from alphalloc.analysis.cache import SpectraCache
from alphalloc.analysis.measure import How, fit_function, measure
from alphalloc.analysis.trust import Trust
from alphalloc.backends import run_local
from alphalloc.backends.ray import cluster_gpus, run_ray
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import BackendError, CheckpointNotFoundError, DeviceError

# A dead node is noticed after about three seconds instead of fifteen (a busy one may still take ten to answer); no
# worker is started before it is needed.
SYSTEM = {
    "agent_register_timeout_ms": 120_000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
}
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def node() -> dict[str, Any]:
    """What a node of one CPU is started with. Ports it would choose itself it waits 15 s to learn, too few here."""
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in PORTS]
    few = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    return {"num_cpus": 1, "object_store_memory": 80 * 2**20, **few, **dict(zip(PORTS, free, strict=True))}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node with one CPU; everything listens on 127.0.0.1. Some starts fail on a busy machine: three tries."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets want a short path
    (folder / "token").write_text(os.urandom(32).hex())
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_TMPDIR": str(folder),
    }
    before = {name: os.environ.get(name) for name in (*settings, "RAY_ADDRESS")}
    os.environ.update(settings)
    os.environ.pop("RAY_ADDRESS", None)
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file

    started: Any = None
    for tries_left in (2, 1, 0):
        try:
            started = Cluster(initialize_head=True, head_node_args={**node(), "_system_config": SYSTEM})
            break
        except Exception:
            if not tries_left:
                raise
    try:
        yield started
    finally:
        started.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


def killed_once(marker: Path, compute: Callable[[Any], Any], task: Any) -> Any:
    """Compute, but kill this very process in the middle the first time."""
    if task[0].name.endswith("layer.3.output.dense.weight") and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(task)


def held_up(folder: Path, compute: Callable[[Any], Any], task: Any) -> Any:
    """Compute; a worker of the second node says that it was reached and takes for ever."""
    import ray

    if ray.get_runtime_context().get_node_id() == (folder / "second").read_text():
        (folder / "reached").touch()
        time.sleep(600)
    return compute(task)


def endless(folder: Path, number: int) -> int:
    """Answer the first task, then never."""
    if number:
        (folder / f"pid{os.getpid()}").touch()
        time.sleep(600)
    return number


def failing(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError("task 3")
    return number


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def measuring() -> Callable[[Any], Any]:
    return partial(measure, How(fit_function("xmin_peak_robust", 0.25), "xmin_peak_robust", 0.25, None, Trust()), None)


def test_an_analysis_gives_the_bytes_of_the_local_backend(cluster, minilm_file, tmp_path):
    states = []
    local = alphalloc.analyze(minilm_file, cache=False, stability=True)
    run = {"backend": "ray", "ray_address": cluster.address, "cache": tmp_path / "cache", "stability": True}
    assert alphalloc.analyze(minilm_file, **run, progress=states.append).to_json() == local.to_json()
    assert [state.done for state in states] == list(range(1, 37))
    assert SpectraCache(tmp_path / "cache").info().num_spectra == 36  # put there by the caller, not by workers
    nowhere = run | {"ray_address": "127.0.0.1:1"}  # all is cached now: nobody is asked
    assert alphalloc.analyze(minilm_file, **nowhere).to_json() == local.to_json()
    moved = shutil.copy(minilm_file, tmp_path / "moved.safetensors")
    matrices = open_checkpoint(moved).matrices
    Path(moved).unlink()
    with pytest.raises(CheckpointNotFoundError, match=rf"^node {socket.gethostname()}: .*moved.safetensors: no such"):
        list(run_ray(measuring(), [(matrices[0], False)], address=cluster.address))


def test_a_killed_worker_and_a_killed_node_are_survived(cluster, minilm_file, tmp_path):
    tasks = [(matrix, False) for matrix in open_checkpoint(minilm_file).matrices]
    expected = dict(run_local(measuring(), tasks))
    answers = {}
    for position, found in run_ray(
        partial(killed_once, tmp_path / "marker", measuring()), tasks, address=cluster.address
    ):
        assert position not in answers
        answers[position] = found.alpha
    assert (tmp_path / "marker").exists()
    assert answers == {position: found.alpha for position, found in expected.items()}

    second = cluster.add_node(**node())
    (tmp_path / "second").write_text(second.node_id)
    killer = threading.Thread(
        target=lambda: (wait_for((tmp_path / "reached").exists), cluster.remove_node(second, allow_graceful=False))
    )
    killer.start()
    answers = dict(run_ray(partial(held_up, tmp_path, measuring()), tasks, address=cluster.address))
    killer.join()
    assert {position: found.alpha for position, found in answers.items()} == {
        position: found.alpha for position, found in expected.items()
    }


def test_when_the_caller_stops_the_workers_are_killed(cluster, tmp_path):
    results = run_ray(partial(endless, tmp_path), range(20), address=cluster.address)
    assert next(results) == (0, 0)
    [note] = wait_for(lambda: list(tmp_path.glob("pid*")))
    results.close()
    worker = Path("/proc") / note.name.removeprefix("pid")
    wait_for(lambda: not worker.exists() or "State:\tZ" in (worker / "status").read_text(), seconds=20)


def test_errors_of_tasks_and_of_resources_are_raised_here(cluster, tmp_path):
    with pytest.raises(ZeroDivisionError, match="^task 3$") as caught:
        list(run_ray(failing, range(10), address=cluster.address))
    assert type(caught.value) is ZeroDivisionError
    with pytest.raises(DeviceError, match="no node of the Ray cluster has 1 GPU"):
        list(run_ray(failing, [0], address=cluster.address, num_gpus=1))
    with cluster_gpus(cluster.address) as cards:
        assert cards == 0
        assert list(run_ray(failing, [0], address=cluster.address)) == [(0, 0)]  # over the same connection
    with pytest.raises(BackendError, match="task 1 of 1 was given up after 0 further tries: WorkerCrashedError"):
        list(run_ray(os._exit, [1], address=cluster.address, max_retries=0))


CONNECT = "import sys; from alphalloc.backends.ray_cluster import connected\nwith connected(sys.argv[1]): pass"


def test_an_address_that_does_not_work_says_what_to_do(cluster, tmp_path, monkeypatch):
    with socket.socket() as free, socket.create_server(("127.0.0.1", 0)) as dumb:
        free.bind(("127.0.0.1", 0))
        threading.Thread(target=lambda: dumb.accept()[0].sendall(b"220 mail ready"), daemon=True).start()
        nobody, other = (f"127.0.0.1:{one.getsockname()[1]}" for one in (free, dumb))
        for address, words in (
            (nobody, "no Ray cluster answers .*`ray start --head --port 6379`"),
            (other, "is no Ray head node"),
            ("ray://127.0.0.1:10001", "Ray Client is not used here"),
            ("head", "expected a Ray address such as 10.0.0.1:6379"),
        ):
            with pytest.raises(BackendError, match=words):
                list(run_ray(failing, [0], address=address))
    token = tmp_path / "token"
    token.write_text("0" * 64)
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)}
    command = [sys.executable, "-c", CONNECT, cluster.address]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "BackendError: Ray at 127.0.0.1" in refused.stderr
    assert "export RAY_AUTH_MODE=token and the cluster's own token" in refused.stderr
