"""Two replicas of the API and two workers on one PostgreSQL; one of each is killed: every acknowledged job succeeds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from databases import new_url
from kill_loop import undisturbed, write_model

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
JOBS = 8
PATIENCE = 600.0


def ask(address: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
    """Return the status and the JSON of one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


class Process:
    """``python -m alphalloc ..`` with its stderr in a file."""

    def __init__(self, log: Path, environment: dict[str, str], *arguments: str) -> None:
        self.log = log
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alphalloc", *arguments], stderr=stream, env=os.environ | environment
            )

    def address(self) -> str:
        """Where a server listens, as soon as it answers."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())
            if found:
                try:
                    if ask(found[0], "/readyz")[0] == 200:
                        return found[0]
                except OSError:
                    pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def end(self, *, kill: bool = False) -> None:
        """SIGKILL, or SIGTERM."""
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(timeout=60)


@pytest.mark.skipif(not LONG, reason="run by `make test-reliability`")
def test_one_api_and_one_worker_may_die(tmp_path):
    environment = {
        "ALPHALLOC_DATABASE_URL": new_url("postgresql", tmp_path),
        "ALPHALLOC_LEASE_SECONDS": "3",
        "ALPHALLOC_RATE_LIMIT": "off",  # statuses are asked for as fast as they come
        "ALPHALLOC_MAX_ATTEMPTS": "10",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    models = tmp_path / "models"
    models.mkdir()
    files = [write_model(models / f"m{number}.safetensors", number) for number in range(JOBS)]
    serving = ("serve", "--no-worker", "--port", "0", "--model-root", str(models))
    servers = [Process(tmp_path / f"api{number}.log", environment, *serving) for number in range(2)]
    workers = [Process(tmp_path / f"worker{number}.log", environment, "worker") for number in range(2)]
    try:
        addresses = [server.address() for server in servers]
        acknowledged = {}
        for number, file in enumerate(files):
            status, answer = ask(addresses[number % 2], "/v1/analyses", {"model": {"path": str(file)}})
            assert status == 202, answer
            acknowledged[str(answer["id"])] = file
        alive = addresses[1]

        def statuses() -> list[object]:
            return [ask(alive, f"/v1/analyses/{id}")[1]["status"] for id in acknowledged]

        give_up = time.monotonic() + PATIENCE
        while "succeeded" not in statuses():  # in the middle of the others
            assert time.monotonic() < give_up
            time.sleep(0.1)
        servers[0].end(kill=True)
        workers[0].end(kill=True)
        assert "queued" in statuses(), "too late: everything was taken before the kill"
        # The survivor knows what was submitted to the dead one, and does not start it again.
        for id, file in acknowledged.items():
            assert ask(alive, "/v1/analyses", {"model": {"path": str(file)}})[1]["id"] == id
        while set(statuses()) != {"succeeded"}:
            assert time.monotonic() < give_up, statuses()
            assert "failed" not in statuses()
            time.sleep(0.2)
        for id, file in acknowledged.items():
            expected = json.loads(undisturbed(file))
            table = ask(alive, f"/v1/analyses/{id}/layers")[1]
            column = table["columns"].index("alpha")
            alphas = [row[column] for row in table["rows"]]
            assert alphas == [layer["alpha"] for layer in expected["layers"]]
    finally:
        for process in (*servers, *workers):
            process.end()
