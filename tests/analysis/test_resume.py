"""Killed at any moment, the next run goes on; interrupted, it stops at once. Real processes, real signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import alphalloc
from alphalloc.analysis import Progress

WORKERS = 2

# Writes a line when a spectrum is begun, and one after every matrix that is done, each with one system call.
RUN = """
import os, sys
import alphalloc
import alphalloc.analysis.measure
module = sys.modules["alphalloc.analysis.measure"]
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
compute = module.esd

def counted(weight):
    os.write(log, b"begin\\n")
    return compute(weight)

module.esd = counted

def progress(state):
    os.write(log, f"{'kept' if state.cached else 'done'} {state.name}\\n".encode())

alphas = alphalloc.analyze(sys.argv[1], cache=sys.argv[2], workers=2, progress=progress)
open(sys.argv[4], "w").write(alphas.to_json())
"""


def write_model(path: Path, count: int, shape: tuple[int, int]) -> Path:
    rng = np.random.default_rng(0)
    save_file({f"layers.{i}.weight": rng.standard_normal(shape).astype(np.float32) for i in range(count)}, path)
    return path


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.long)])
def test_killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path, kills):
    count = 10 * kills
    model = write_model(tmp_path / "model.safetensors", count, (300, 700))
    undisturbed = alphalloc.analyze(model, cache=False).to_json()
    cache, output = tmp_path / "cache", tmp_path / "alphas.json"
    moments = random.Random(0)
    finished: set[str] = set()
    begun = 0
    for attempt in range(kills + 1):
        log = tmp_path / f"log{attempt}"
        process = subprocess.Popen([sys.executable, "-c", RUN, str(model), str(cache), str(log), str(output)])
        if attempt < kills:  # kill when so many spectra were begun, and a little later
            wanted = moments.randrange(1, 8)
            while process.poll() is None and lines(log).count("begin") < wanted:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
        assert process.wait(timeout=120) == (-signal.SIGKILL if attempt < kills else 0)
        happened = lines(log)
        kept = {line[5:] for line in happened if line.startswith("kept ")}
        done = {line[5:] for line in happened if line.startswith("done ")}
        assert not done & finished, "a spectrum that was finished is computed again"
        finished |= kept | done
        begun += happened.count("begin")
    assert output.read_text() == undisturbed
    assert len(finished) == count
    assert begun <= count + kills * 2 * WORKERS, "more than the matrices in hand were lost"  # computing or handed over


INTERRUPTED = """
import os, pathlib, signal, sys, threading, time
import alphalloc

def interrupt():
    while not list(pathlib.Path(sys.argv[2]).glob("spectra/*/*.esd")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    alphalloc.analyze(sys.argv[1], cache=sys.argv[2], workers=2)
except KeyboardInterrupt:
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("alphalloc")]
    print("interrupted", len(alive), flush=True)
    for thread in threading.enumerate():
        if thread.name.startswith("alphalloc"):
            thread.join()
"""


def test_an_interrupt_does_not_wait_for_the_matrices_in_hand(tmp_path):
    model = write_model(tmp_path / "model.safetensors", 20, (1000, 1000))
    command = [sys.executable, "-c", INTERRUPTED, str(model), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    word, running = result.stdout.split()
    assert word == "interrupted"
    assert int(running) >= 1  # a worker was still computing when the caller had the interrupt
    stored = len(list((tmp_path / "cache" / "spectra").glob("*/*.esd")))
    assert stored < 20
    seen: list[Progress] = []
    alphalloc.analyze(model, cache=tmp_path / "cache", progress=seen.append, include=["layers.0.*", "layers.1.*"])
    assert seen[-1].num_cached <= stored


def test_ctrl_c_ends_the_command_with_130_and_one_word(tmp_path):
    model = write_model(tmp_path / "model.safetensors", 30, (1000, 1000))
    output = tmp_path / "a.json"
    command = [sys.executable, "-m", "alphalloc", "analyze", str(model), "--workers", "2", "-o", str(output)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    spectra = tmp_path / "cache" / "alphalloc" / "spectra"
    while not list(spectra.glob("*/*.esd")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not output.exists()
    assert list(tmp_path.rglob("*.tmp")) == []


def test_progress_tells_cached_from_computed_and_the_time_left(tmp_path):
    model = write_model(tmp_path / "model.safetensors", 6, (60, 90))
    first: list[Progress] = []
    alphalloc.analyze(model, cache=tmp_path / "cache", progress=first.append, include=["layers.[0-3].*"])
    assert [state.cached for state in first] == [False] * 4
    assert all(state.seconds_left is not None and state.seconds_left >= 0 for state in first)
    assert first[-1].seconds_left == 0
    assert first[-1].bytes_per_second == pytest.approx(4 * 60 * 90 * 4 / first[-1].seconds)
    second: list[Progress] = []
    alphalloc.analyze(model, cache=tmp_path / "cache", progress=second.append)
    assert sum(state.cached for state in second) == second[-1].num_cached == 4
    third: list[Progress] = []
    alphalloc.analyze(model, cache=tmp_path / "cache", progress=third.append)
    assert [state.num_cached for state in third] == [1, 2, 3, 4, 5, 6]
    assert {state.bytes_per_second for state in third} == {0.0}
    assert [state.seconds_left for state in third] == [None] * 5 + [0.0]
