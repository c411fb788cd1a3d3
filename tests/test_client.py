"""The client against a real service with its worker: the library's own answers, waiting, refusals, tries, a trainer."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import RunningService
from tiny_llama import save_tiny_llama

import alphalloc
from alphalloc.client import AnalysisState, Client
from alphalloc.errors import (
    AnalysisFailedError,
    ServiceRefusedError,
    ServiceUnreachableError,
    SettingsError,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, and a file that is no checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llama(folder / "tiny")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    return folder


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("service"), "--model-root", str(models), rate_limit="off") as service:
        yield service


@pytest.fixture
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def test_alphas_give_the_librarys_schedule(client: Client) -> None:
    expected = alphalloc.allocate([2.1, 2.9, 3.4], 15, beta=2.0)
    schedule = client.allocate(alphas=[2.1, 2.9, 3.4], budget=15, params={"beta": 2.0})
    assert schedule == expected
    assert client.schedule(schedule.id) == expected
    assert client.allocate(alphas=[2.1, 2.9, 3.4], per_layer_mean=5, params={"beta": 2.0}) == expected
    assert json.loads(client.export(schedule.id, "peft", r=4))["r"] >= 4


def test_budget_defaults_to_five_a_layer(client: Client) -> None:
    assert client.allocate(alphas=[2.1, 2.9]) == alphalloc.allocate([2.1, 2.9], 10)


def test_a_model_is_analysed_and_the_answer_is_the_librarys(client: Client, models: Path) -> None:
    states: list[AnalysisState] = []
    schedule = client.allocate(model=str(models / "tiny"), budget=20, progress=states.append)
    local = alphalloc.analyze(models / "tiny", cache=False, histograms=True)
    assert schedule.id == alphalloc.allocate(local, 20).id
    assert states[-1].status == "succeeded"
    assert states[-1].done == states[-1].total == len(local.matrices)
    assert client.analyze(str(models / "tiny")).layers == local.layers
    assert client.allocate(analysis_id=states[-1].id, budget=20) == schedule
    sure = client.allocate(analysis_id=states[-1].id, budget=20, confidence=True)
    assert sure.confidence is not None


def test_a_purged_analysis_leaves_no_spectra(models: Path, tmp_path: Path) -> None:
    def spectra() -> int:
        return len(list((tmp_path / "cache").rglob("*.esd")))

    with (
        RunningService(tmp_path, "--model-root", str(models), rate_limit="off") as service,
        Client(service.url) as client,
    ):
        for purge in (False, True):
            states: list[AnalysisState] = []
            measured = client.analyze(str(models / "tiny"), progress=states.append)
            client.delete(states[-1].id, purge=purge)
            with pytest.raises(ServiceRefusedError, match="404 analysis-not-found"):
                client.analysis(states[-1].id)
            if not purge:
                assert spectra() == len(measured.matrices)
        until = time.monotonic() + 60
        while spectra() and time.monotonic() < until:
            time.sleep(0.1)
        assert spectra() == 0


def test_a_failed_analysis_says_why(client: Client, models: Path) -> None:
    with pytest.raises(AnalysisFailedError, match="failed: "):
        client.analyze(str(models / "broken.safetensors"))


def test_refusals_carry_the_problem(client: Client, models: Path) -> None:
    with pytest.raises(ServiceRefusedError, match="422 infeasible-budget: a budget of 1 experts") as refused:
        client.allocate(alphas=[2.1, 2.9], budget=1)
    assert refused.value.problem["code"] == "infeasible-budget"
    with pytest.raises(ServiceRefusedError, match="404 model-not-found"):
        client.allocate(model=str(models / "missing"), budget=20)
    with pytest.raises(ServiceRefusedError, match="403 path-not-allowed"):
        client.allocate(model="/etc/passwd", budget=20)
    with pytest.raises(ServiceRefusedError, match="404 analysis-not-found"):
        client.analysis("an_" + "0" * 32)


def test_methods(client: Client) -> None:
    assert "alpha_power" in [rule["name"] for rule in client.methods()["rules"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of model, alphas and analysis_id, found none"),
        ({"model": "a/b", "alphas": [2.0]}, "found model and alphas"),
        ({"alphas": [2.0], "revision": "main"}, "revision and estimator belong to model"),
        ({"alphas": [2.0], "budget": 5, "per_layer_mean": 5.0}, "found budget and per_layer_mean"),
        ({"model": "./a", "revision": "main"}, "only hub ids have revisions"),
    ],
)
def test_contradictions_are_refused_before_anything_is_sent(arguments: dict[str, object], message: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(SettingsError, match=message):
        client.allocate(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", "ftp://host", "http://[::1"])
def test_what_is_not_a_url(url: str) -> None:
    with pytest.raises(SettingsError):
        Client(url)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    message = "no usable answer in 2 tries; the last: ConnectError"
    with Client(f"http://127.0.0.1:{port}", tries=2) as client, pytest.raises(ServiceUnreachableError, match=message):
        client.methods()


class Moody(http.server.BaseHTTPRequestHandler):
    """Answers 503, hangs up, answers 429, then what was asked for."""

    calls = 0

    def do_GET(self) -> None:
        type(self).calls += 1
        if self.calls == 2:
            self.connection.close()
            return
        status = {1: 503, 3: 429}.get(self.calls, 200)
        body = b'{"rules": []}' if status == 200 else b"busy"
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_tries_again_when_the_service_is_busy_or_hangs_up() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            assert client.methods() == {"rules": []}
        server.shutdown()
    assert Moody.calls == 4


def test_the_command_line_asks_the_service(service: RunningService, models: Path, tmp_path: Path) -> None:
    def allocate(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "alphalloc", "allocate", *options, "--server", service.url]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)

    done = allocate(str(models / "tiny"), "--experts", "20", "--beta", "2.0", "-o", "schedule.json", "--json")
    assert done.returncode == 0, done.stderr
    expected = alphalloc.allocate(alphalloc.analyze(models / "tiny", cache=False, histograms=True), 20, beta=2.0)
    assert alphalloc.ExpertSchedule.load(tmp_path / "schedule.json").id == expected.id == json.loads(done.stdout)["id"]
    refused = allocate(str(models / "tiny"), "--ranks", "64")
    assert refused.returncode == 2
    assert "the service does not offer a budget in parameters, megabytes or ranks" in refused.stderr


@pytest.mark.parametrize("stacks", [("", ""), ("encoder", "decoder")], ids=["one-stack", "two-stacks"])
def test_the_command_line_sends_no_alphas_file(
    service: RunningService, client: Client, models: Path, tmp_path: Path, stacks: tuple[str, str]
) -> None:
    """Its numbers alone are another question: the schedule of a file names model, analysis and layers."""
    first, second = stacks
    analysed = alphalloc.analyze(models / "tiny", cache=False)
    places = [(0, first), (1, first), (2 if first == second else 0, second), (3 if first == second else 1, second)]
    layers = tuple(
        layer.model_copy(update={"layer": at, "stack": stack})
        for layer, (at, stack) in zip(analysed.layers, places, strict=True)
    )
    alphas = analysed.model_copy(update={"layers": layers})
    alphas.save(tmp_path / "alphas.json")
    assert client.allocate(alphas=alphas.per_layer, budget=20).id != alphalloc.allocate(alphas, 20).id
    command = [sys.executable, "-m", "alphalloc", "allocate", "alphas.json", "--experts", "20", "-o", "schedule.json"]
    done = subprocess.run(
        [*command, "--server", service.url], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "leave out --server to allocate here (it needs no weights), or name the model (here tiny)" in done.stderr
    assert not (tmp_path / "schedule.json").exists()
    subprocess.run(command, cwd=tmp_path, timeout=60, check=True, capture_output=True)
    assert alphalloc.ExpertSchedule.load(tmp_path / "schedule.json") == alphalloc.allocate(alphas, 20)


TRAINER = """
import sys
import alphalloc, peft, torch, transformers
from alphalloc.client import Client
from alphalloc.peft import MoELoraConfig

url, path = sys.argv[1:]
schedule = Client(url).allocate(model=path, budget=10)
model = transformers.AutoModelForCausalLM.from_pretrained(path)
model = peft.get_peft_model(model, MoELoraConfig.from_schedule(schedule, r=2, lora_alpha=4))
tokens = torch.arange(16) % 64
arguments = transformers.TrainingArguments("out", max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
trainer = transformers.Trainer(model, arguments, train_dataset=[{"input_ids": tokens, "labels": tokens}] * 8)
print(trainer.train().training_loss > 0, schedule.id)
"""


def test_a_trainer_fetches_its_schedule(service: RunningService, client: Client, models: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    done = subprocess.run(
        [sys.executable, script, service.url, str(models / "tiny")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = client.allocate(model=str(models / "tiny"), budget=10)
    assert done.stdout.splitlines()[-1] == f"True {expected.id}"


def test_a_shell_script_fetches_its_schedule(service: RunningService, models: Path, tmp_path: Path) -> None:
    script = """
    until [ "$(curl --silent --output schedule.json --write-out '%{http_code}' --header 'Prefer: wait=60' \\
        "$ALPHALLOC_URL/v1/allocations" --json "$QUESTION")" != 202 ]; do :; done
    """
    question = {
        "source": {"model": {"path": str(models / "tiny")}, "estimator": "ks"},
        "budget": {"per_layer_mean": 5},
    }
    environ = {**os.environ, "ALPHALLOC_URL": service.url, "QUESTION": json.dumps(question)}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environ, timeout=120, check=True)
    schedule = alphalloc.ExpertSchedule.load(tmp_path / "schedule.json")
    assert schedule.totals.num_experts == 20
    assert schedule.analysis is not None
    assert schedule.analysis.estimator == "ks"
