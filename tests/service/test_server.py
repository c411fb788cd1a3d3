"""A real server, started by the command line on a free port of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alphalloc_service.security import MAX_UNDER_WAY
from alphalloc_service.server import listen
from alphalloc_service.settings import Settings

from alphalloc.allocation import allocate
from alphalloc.errors import SettingsError

SAID: dict[int, list[str]] = {}
BODY = json.dumps({"source": {"alphas": [2.1, 2.9, 3.4]}, "budget": {"total": 15}})


def start(database_url: str, *options: str) -> tuple[subprocess.Popen[str], int]:
    """Start the server and return it with its port. A thread reads what it says, so that no full pipe stops it."""
    command = [sys.executable, "-m", "alphalloc", "serve", "--port", "0", "--database-url", database_url, *options]
    environ = {**os.environ, "ALPHALLOC_RATE_LIMIT": "off"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://(?:127\.0\.0\.1|\[::1\]):(\d+)", line)
    assert found, line + process.stderr.read()
    SAID[process.pid] = []
    threading.Thread(target=lambda: SAID[process.pid].extend(process.stderr or ()), daemon=True).start()
    return process, int(found[1])


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    return process.wait(60), "".join(SAID[process.pid])


@pytest.fixture(scope="module")
def port(database_url: str) -> Iterator[int]:
    process, port = start(database_url, "--no-worker")
    yield port
    code, text = stop(process, signal.SIGTERM)
    assert code == 0, text
    assert "Traceback" not in text


def request(
    port: int, method: str, path: str, body: str | bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_allocation_over_the_wire(port: int) -> None:
    answer, content = request(port, "POST", "/v1/allocations", BODY, content_type="application/json")
    assert answer.status in (200, 201)
    assert content == allocate([2.1, 2.9, 3.4], 15).to_json().encode()


def test_other_routes(port: int) -> None:
    for path in ("/healthz", "/v1/methods", "/openapi.json"):
        assert request(port, "GET", path)[0].status == 200
    answer, content = request(port, "GET", "/nothing", X_Request_Id="abc")
    assert (answer.status, json.loads(content)["request_id"]) == (404, "abc")
    assert answer.getheader("Server") is None


def test_large_body_is_refused_before_it_is_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        head = "POST /v1/allocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: 1000000000000\r\n\r\n".encode())
        answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


def test_chunked_body_is_counted(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    chunks = iter([b" " * 60_000] * 20)
    connection.request("POST", "/v1/allocations", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01" * 50, b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100, b"A" * 200_000])
def test_garbage_does_not_stop_it(port: int, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        try:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
        except OSError:
            pass  # hanging up is an answer too, at whichever call it is noticed
    assert request(port, "GET", "/healthz")[0].status == 200


def test_many_at_once_all_get_the_same_answer(port: int) -> None:
    answers: list[tuple[int, bytes]] = []

    def ask() -> None:
        for _ in range(10):
            answer, content = request(port, "POST", "/v1/allocations", BODY, content_type="application/json")
            answers.append((answer.status in (200, 201), content))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert set(answers) == {(True, allocate([2.1, 2.9, 3.4], 15).to_json().encode())}


def test_too_many_at_once_are_told_so_and_probes_are_answered(port: int) -> None:
    head = b"POST /v1/allocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 9\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_UNDER_WAY):  # each waits for its body
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(head)
        deadline = time.monotonic() + 20
        while (found := request(port, "GET", "/v1/methods", X_Request_Id="abc"))[0].status != 503:
            assert time.monotonic() < deadline
        answer, content = found
        assert answer.getheader("Content-Type") == "application/problem+json"
        assert (json.loads(content)["code"], json.loads(content)["request_id"]) == ("too-busy", "abc")
        assert answer.getheader("Retry-After") == "1"
        assert [request(port, "GET", path)[0].status for path in ("/healthz", "/readyz")] == [200, 200]
    deadline = time.monotonic() + 20
    while request(port, "GET", "/v1/methods")[0].status != 200:
        assert time.monotonic() < deadline


def test_names_and_origins_can_be_added_by_options(database_url: str) -> None:
    names = ("--allowed-host", "a.example", "--allowed-host", "b.example", "--cors-origin", "https://page.example")
    process, port = start(database_url, "--no-worker", *names)
    try:
        hosts = {host: request(port, "GET", "/v1/methods", Host=host)[0].status for host in ("a.example", "b.example")}
        assert hosts == {"a.example": 200, "b.example": 200}
        assert request(port, "GET", "/v1/methods", Host="c.example")[0].status == 421
        answer, _ = request(port, "GET", "/v1/methods", Origin="https://page.example")
        assert answer.getheader("Access-Control-Allow-Origin") == "https://page.example"
    finally:
        assert stop(process, signal.SIGTERM)[0] == 0


def test_interrupt_stops_it_with_130_and_frees_the_port(database_url: str) -> None:
    process, port = start(database_url, "--no-worker")
    assert request(port, "GET", "/healthz")[0].status == 200
    code, text = stop(process, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in text
    listen(Settings(port=port)).close()


def test_request_under_way_is_finished_on_sigterm(database_url: str) -> None:
    process, port = start(database_url, "--no-worker")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        head = "POST /v1/allocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(BODY)}"
        raw.sendall(f"{head}\r\n\r\n{BODY[:20]}".encode())
        deadline = time.monotonic() + 20
        while request(port, "GET", "/healthz")[0].status != 200:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        raw.sendall(BODY[20:].encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 20")
    assert process.wait(timeout=60) == 0


def test_taken_port_is_a_clear_error(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "alphalloc", "serve", "--port", str(port), "--database-url", database_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1:{port}: the port is taken; choose another --port, or 0 for any free one\n"
    )


def test_other_addresses_need_to_be_asked_for() -> None:
    with pytest.raises(SettingsError, match=r"other machines .* `alphalloc keys create`.* --insecure-no-auth"):
        listen(Settings(host="0.0.0.0", port=0))
    listen(Settings(host="0.0.0.0", port=0, insecure_no_auth=True)).close()
    listen(Settings(host="0.0.0.0", port=0), guarded=True).close()
    listen(Settings(host="localhost", port=0)).close()


@pytest.mark.parametrize("host", ["no such host", "host.invalid", "a" * 300, "192.0.2.1"])
def test_unusable_hosts(host: str) -> None:
    with pytest.raises(SettingsError, match="cannot listen on"):
        listen(Settings(host=host, port=0, insecure_no_auth=True))


def children(pid: int) -> list[int]:
    """The processes that any thread of ``pid`` has started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_embedded_makes_its_database_and_its_worker_dies_with_it(tmp_path: Path) -> None:
    process, port = start(f"sqlite:///{tmp_path / 'new' / 'own.db'}")
    answer, content = request(port, "GET", "/readyz")
    assert (answer.status, json.loads(content)["checks"]["database"]) == (200, "takes writes")
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    workers = children(process.pid)
    assert len(workers) == 1
    process.kill()
    process.wait()
    assert gone(workers)


def test_replicas_share_a_socket_and_are_started_again(database_url: str) -> None:
    process, port = start(database_url, "--no-worker", "--workers", "2")
    assert request(port, "POST", "/v1/allocations", BODY, content_type="application/json")[0].status in (200, 201)
    first = children(process.pid)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len(set(children(process.pid)) - {first[0]}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert request(port, "GET", "/healthz")[0].status == 200
    replicas = children(process.pid)
    code, text = stop(process, signal.SIGTERM)
    assert (code, "is started again" in text) == (0, True), text
    assert gone(replicas)
