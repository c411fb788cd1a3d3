"""Clients that say nothing, drip, never end a header or take no answer lose their connection; honest ones notice
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from alphalloc_service import security, slow_clients
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store
from starlette.types import ASGIApp, Receive, Scope, Send

EVENTS = 6


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request at once: with ``ok``, or as many bytes as the path says; or tell events, one in a while."""
    if scope["type"] != "http":
        return
    said = scope["path"].strip("/")
    if said == "events":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(EVENTS):
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.sleep(0.4)
        await send({"type": "http.response.body", "body": b""})
        return
    body = b"a" * int(said) if said else b"ok"
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


MAX_HEADER_BYTES = 16_384
HTTPTOOLS = "uvicorn.protocols.http.httptools_impl"


Served = tuple[uvicorn.Server, socket.socket]


@contextlib.contextmanager
def serving(app: ASGIApp, protocol: type[asyncio.Protocol], loop: Any = "auto") -> Iterator[Served]:
    """Serve ``app`` in a thread; yield the server and the socket it listens on."""
    config = uvicorn.Config(
        app,
        http=protocol,
        loop=loop,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        lifespan="off",
        log_config=None,
        timeout_keep_alive=30,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield server, listener
        server.should_exit = True
        thread.join(20)


@pytest.fixture(params=["httptools", "h11"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Both protocols, one on each of the two loops."""
    monkeypatch.setattr(slow_clients, "HEADER_SECONDS", 0.6)
    if request.param == "h11":
        monkeypatch.setitem(sys.modules, HTTPTOOLS, None)
    protocol = slow_clients.protocol(MAX_HEADER_BYTES)
    assert hasattr(protocol, "on_headers_complete") is (request.param == "httptools")
    with serving(hello, protocol, "asyncio" if request.param == "h11" else "auto") as served:
        yield served


@pytest.fixture
def port(served: Served) -> int:
    return int(served[1].getsockname()[1])


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


# -- answers that nobody takes


def connect(port: int, receive_bytes: int = 4096) -> socket.socket:
    """Connect with a small buffer, so that what is not read stays with the server."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    return connection


def soon(holds: Any) -> bool:
    """Whether ``holds`` within ten seconds."""
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds())


@pytest.mark.parametrize(("size", "requests"), [(8_000_000, 1), (8_000_000, 2), (60_000, 1)])
def test_a_client_that_takes_nothing_of_its_answer_is_dropped(
    served: Served, port: int, size: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request waits to be answered; of the small answer too little is left for writing to be paused."""
    monkeypatch.setattr(slow_clients, "ANSWER_SECONDS", 0.6)
    server, listener = served
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with connect(port) as connection:
        connection.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * requests)
        assert soon(lambda: server.server_state.connections)
        assert soon(lambda: not server.server_state.connections)
        assert soon(lambda: not server.server_state.tasks)


def test_one_that_the_server_has_closed_is_dropped_too(
    served: Served, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "ANSWER_SECONDS", 0.6)
    server, _ = served
    with connect(port) as connection:
        connection.sendall(b"GET /8000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert soon(lambda: server.server_state.connections)
        assert soon(lambda: not server.server_state.connections)


def test_a_slow_client_that_goes_on_gets_everything(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first so slowly that the system wants nothing of the server in the time."""
    monkeypatch.setattr(slow_clients, "ANSWER_SECONDS", 1.2)
    size = 6_000_000
    with connect(port, 2**16) as connection:
        connection.sendall(b"GET /6000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, begin = connection.recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        received = len(begin)
        for _ in range(30):
            received += len(connection.recv(32768))
            time.sleep(0.1)
        while received < size:
            part = connection.recv(2**20)
            assert part, received
            received += len(part)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers(connection, 1)


def test_a_stream_of_events_lives(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they are further apart than an answer may stand still."""
    monkeypatch.setattr(slow_clients, "ANSWER_SECONDS", 0.2)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/events")
    assert connection.getresponse().read() == b"data: 1\n\n" * EVENTS
    connection.close()


def test_answers_that_nobody_takes_hold_no_place(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests each: the second waits until the first is taken, and all others are answered meanwhile."""
    monkeypatch.setattr(security, "MAX_UNDER_WAY", 2)
    app = create_app(Settings(database_url=database_url), Store.open(database_url))
    with serving(app, slow_clients.protocol(MAX_HEADER_BYTES)) as (server, listener), contextlib.ExitStack() as stack:
        port = listener.getsockname()[1]
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for _ in range(4):
            connection = stack.enter_context(connect(port))
            connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        assert soon(lambda: len(server.server_state.tasks) == 4)
        time.sleep(0.2)
        assert len(server.server_state.tasks) == 4
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        client.request("GET", "/v1/methods")
        assert client.getresponse().status == 200
        client.close()
