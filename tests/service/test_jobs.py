"""The child process of a job: what it is asked, what it tells, what it cannot see."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from alphalloc_service.handover import line_of, read_line
from alphalloc_service.job_process import JobProcess
from alphalloc_service.jobs import arguments_of, error_document, problem
from alphalloc_service.settings import Settings
from kill_loop import request_for, undisturbed, write_model

from alphalloc.errors import GatedModelError, HubUnreachableError, SpectrumCheckError


def test_a_request_becomes_the_arguments_of_analyze():
    hub = {
        "model": {"id": "org/model", "revision": "v1"},
        "estimator": "hill_fraction",
        "hill_fraction": 0.3,
        "layer_filter": {"include": ["*q_proj*"], "exclude": []},
        "fill": None,
        "stability": True,
        "device": "auto",
        "priority": 7,
    }
    assert arguments_of(hub, "local", None) == {
        "model": "org/model",
        "revision": "v1",
        "estimator": "hill_fraction",
        "hill_fraction": 0.3,
        "include": ("*q_proj*",),
        "fill": None,
        "stability": True,
        "device": "auto",
    }
    assert arguments_of({"model": {"path": "/m"}}, "ray", "head:6379") == {
        "model": "/m",
        "revision": None,
        "backend": "ray",
        "ray_address": "head:6379",
    }


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (GatedModelError("accept the licence"), "gated-model", 403),
        (HubUnreachableError("offline"), "hub-unreachable", 503),
        (SpectrumCheckError("trace"), "spectrum-check", 500),
        (MemoryError(), "memory-budget", 503),
        (RuntimeError("hidden"), "internal", 500),
    ],
)
def test_an_error_becomes_a_problem_with_its_own_code(error, code, status):
    document = error_document(error)
    assert (document["code"], document["status"]) == (code, status)
    assert document["type"] == f"urn:alphalloc:problem:{code}"
    assert document["title"]
    assert "hidden" not in document["detail"]


def test_a_detail_of_any_length_is_cut():
    assert len(problem("x", 500, "y" * 10_000)["detail"]) == 2000


def test_settings_come_over_as_they_are_but_for_secrets():
    settings = Settings(database_url="postgresql+psycopg://u:secret@h/d", model_roots=("/a", "/b"), rate_limit=None)
    line = line_of(settings, more=[1])
    assert line.count(b"\n") == 1
    assert read_line(io.BytesIO(line)) == (settings, {"more": [1]})
    line = line_of(settings, secrets=False)
    assert b"secret" not in line
    assert read_line(io.BytesIO(line))[0].model_roots == ("/a", "/b")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Start a job on a model; the way into the database is in our environment, as it is in a worker's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_operator")
    monkeypatch.setenv("ALPHALLOC_DATABASE_URL", "postgresql+psycopg://u:secret@h/d")
    for name in ("PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE", "PGHOST", "ALPHALLOC_KEY"):
        monkeypatch.setenv(name, "secret")
    folder = tmp_path / "empty"
    folder.mkdir()
    started = []

    def start(model):
        started.append(JobProcess(request_for(model), Settings(), folder, "local", None))
        return started[-1]

    yield start
    for process in started:
        process.end()


def messages(process):
    """Everything the child says."""
    while True:
        try:
            message = process.receive(60)
        except EOFError:
            return
        assert message is not None, "silent for a minute"
        yield message


def test_a_job_tells_its_progress_and_its_document(job, tmp_path):
    model = write_model(tmp_path / "model.safetensors", 1, matrices=3, shape=(60, 90))
    process = job(model)
    *progress, last = messages(process)
    assert [(message["kind"], message["done"], message["total"]) for message in progress] == [
        ("progress", done, 3) for done in (1, 2, 3)
    ]
    assert last["kind"] == "finished"
    assert last["document"] == undisturbed(model)
    assert (last["total"], len(last["layers"])) == (3, 3)
    assert process.exit_status() == 0


def test_a_job_sees_no_way_into_the_database(job, tmp_path):
    process = job(write_model(tmp_path / "model.safetensors", 1, matrices=2, shape=(60, 90)))
    given = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"secret" not in given
    names = {entry.partition(b"=")[0].decode() for entry in given.split(b"\0")}
    assert not [name for name in names if name.startswith(("ALPHALLOC_", "PG"))]
    assert {"HF_TOKEN", "XDG_CACHE_HOME", "PATH", "HOME"} <= names
    assert list(messages(process))[-1]["kind"] == "finished"


def test_a_job_leaves_with_its_descendants(job, tmp_path):
    process = job(write_model(tmp_path / "slow.safetensors", 0, matrices=1, shape=(3000, 3000)))
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    assert process.end() in (-signal.SIGTERM, -signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert process.end() < 0  # again is no error
