"""Clients that say nothing, drip, or never end a header lose their connection; honest ones notice nothing."""

from __future__ import annotations

import socket
import sys
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


MAX_HEADER_BYTES = 16_384
HTTPTOOLS = "uvicorn.protocols.http.httptools_impl"


@pytest.fixture(params=["httptools", "h11"])
def port(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(slow_clients, "HEADER_SECONDS", 0.6)
    if request.param == "h11":
        monkeypatch.setitem(sys.modules, HTTPTOOLS, None)
    protocol = slow_clients.protocol(MAX_HEADER_BYTES)
    assert hasattr(protocol, "on_headers_complete") is (request.param == "httptools")
    config = uvicorn.Config(
        hello,
        http=protocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        lifespan="off",
        log_config=None,
        timeout_keep_alive=30,
    )
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


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 2**16),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: a\r\n" * 2**13),
        (b"GET /", b"a" * 2**16),
        (CHUNKED + b"1;", b"a" * 2**16),
        (CHUNKED + b"0\r\n", b"X: a\r\n" * 2**13),
    ],
    ids=["value", "fields", "path", "chunk", "trailer"],
)
def test_a_header_that_never_ends_is_cut_off(
    port: int, begin: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its deadline. What was sent until then lies in the buffers of the two sockets for the most part."""
    monkeypatch.setattr(slow_clients, "HEADER_SECONDS", 60.0)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        connection.sendall(begin)
        assert taken(connection, more, 2**25) < 2**24


def taken(connection: socket.socket, more: bytes, most: int) -> int:
    """Send ``more`` until the other side hangs up; return how many bytes that took, at ``most`` so many."""
    for sent in range(0, most, len(more)):
        try:
            connection.sendall(more)
        except ConnectionError:
            return sent
    return most


def answers(connection: socket.socket, count: int) -> None:
    """Read ``count`` answers of 200."""
    received = b""
    while received.count(b"HTTP/1.1 200") < count or not received.endswith(b"ok"):
        part = connection.recv(65536)
        assert part, received[-200:]
        received += part


def test_a_body_is_no_header(port: int) -> None:
    """Nobody reads these bodies, so most of them comes after the answer."""
    body = b"a" * 2**20
    chunks = b"".join(b"400\r\n" + body[:1024] + b"\r\n" for _ in range(1024)) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + body)
        answers(connection, 1)
        connection.sendall(CHUNKED + chunks)
        answers(connection, 1)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers(connection, 1)


def test_many_headers_on_one_connection_are_not_one_large_header(port: int) -> None:
    one = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 4000 + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(one * 40)  # pipelined
        answers(connection, 40)
        for _ in range(10):
            connection.sendall(one[:2000])
            connection.sendall(one[2000:])
            answers(connection, 1)
