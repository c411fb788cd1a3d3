"""Clients that say nothing, or say it slowly, lose their connection; honest ones notice nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from alphalloc_service import slow_clients


async def hello(scope: dict, receive: object, send: object) -> None:
    """Answer every request at once."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(slow_clients, "HEADER_SECONDS", 0.6)
    config = uvicorn.Config(hello, http=slow_clients.protocol(), lifespan="off", log_config=None, timeout_keep_alive=30)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection without a word."""
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 3000])
def test_a_client_that_says_nothing_is_dropped(port: int, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(said)
        assert closed(connection)


def test_a_client_that_drips_is_dropped(port: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        pytest.raises(OSError, match=r"reset|[Bb]roken pipe"),
    ):
        drip(connection)


def drip(connection: socket.socket) -> None:
    """Send a byte now and then for a minute."""
    for _ in range(1200):
        connection.sendall(b"G")
        time.sleep(0.05)


def test_an_honest_client_is_answered_again_and_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for pause in (0.0, 0.0, 0.8, 0.8):  # idle between requests longer than a header may take
            time.sleep(pause)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                part = connection.recv(1000)
                assert part
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


def test_a_header_in_parts_that_comes_in_time_is_answered(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in (b"GET / HT", b"TP/1.1\r\nHo", b"st: x\r\n\r\n"):
            connection.sendall(part)
            time.sleep(0.02)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
