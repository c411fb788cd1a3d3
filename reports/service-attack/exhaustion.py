"""Tries to use up memory, processor and connections."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

from attacked import ANALYSIS, POST, Service, Tries, Try, memory_of


def using_it_up(service: Service) -> Tries:
    """Memory, processor, connections."""
    topic = "Using it up"
    before = memory_of(service.pid)

    def post(content: bytes) -> str:
        began = time.monotonic()
        answer = service.ask("POST", "/v1/allocations", content, Content_Type="application/json")
        return f"{answer} ({time.monotonic() - began:.1f} s)"

    found = [
        Try(
            topic,
            "Content-Length of 1 TB",
            "413",
            service.raw(POST + b"Content-Length: 1000000000000\r\n\r\n"),
        ),
        Try(topic, "2 MiB of spaces", "^413|^connection closed", post(b" " * 2**21)),
        Try(topic, "lists 500,000 deep", "^400", post(b"[" * 500_000)),
        Try(topic, "60,000 unknown fields", "^400", post(json.dumps({f"k{at}": at for at in range(60_000)}).encode())),
        Try(topic, "a number of a million digits", "^400", post(b'{"budget": ' + b"9" * 1_000_000 + b"}")),
        Try(
            topic,
            "gzip that would unpack to 10 GB",
            "^400",
            service.ask(
                "POST",
                "/v1/allocations",
                b"\x1f\x8b" + b"\0" * 1000,
                Content_Type="application/json",
                Content_Encoding="gzip",
            ),
        ),
        Try(
            topic,
            "a million experts over 512 layers",
            "^20[01]",
            post(json.dumps({"source": {"alphas": [2.5] * 512}, "budget": {"total": 1_000_000}}).encode()),
        ),
        Try(
            topic,
            "a header of 64 KB",
            "431|400",
            service.raw(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 65536 + b"\r\n\r\n"),
        ),
        Try(
            topic,
            "a path of 30 KB",
            "431|400|414",
            service.raw(b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
        ),
        Try(
            topic,
            "500 headers",
            "431|400",
            service.raw(
                b"GET /v1/methods HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                + b"".join(b"X-%d: 1\r\n" % at for at in range(500))
                + b"\r\n"
            ),
        ),
        Try(
            topic,
            "two Content-Lengths (smuggling)",
            "400",
            service.raw(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345"),
        ),
        Try(
            topic,
            "Content-Length and chunked (smuggling)",
            "400|415|413",
            service.raw(
                POST
                + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"0\r\n\r\nGET /v1/analyses HTTP/1.1\r\n\r\n"
            ),
        ),
        Try(
            topic, "not HTTP", "400|closed", service.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500)
        ),
        Try(
            topic,
            "a header that never ends (slow)",
            "closed after (9|1[0-9])",
            _silence(service, b"GET /v1/methods HTTP/1.1\r\nHost: "),
        ),
        Try(topic, "a connection that says nothing", "closed after (9|1[0-9])", _silence(service, b"")),
        Try(topic, "a header that never ends (fast)", "^cut off", _endless(service)),
        Try(
            topic,
            "600 requests without their bodies, then one more",
            "^503 too-busy, healthz 200",
            _unfinished(service),
        ),
        Try(topic, "300 silent connections, then a request", "^200", _crowd(service, 300)),
        Try(topic, "`Prefer: wait=99999`", "^404", service.ask("GET", ANALYSIS, Prefer="wait=99999")),
        Try(topic, "100 streams of one analysis", "429|404", _streams(service)),
    ]
    grown = (memory_of(service.pid) - before) / 2**20
    found.append(Try(topic, "memory of the service after all this", "^[+-][0-9]{1,2} MiB", f"{grown:+.0f} MiB"))
    return found


def _silence(service: Service, content: bytes) -> str:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(content)
        with suppress(ConnectionResetError):
            if connection.recv(100):
                return "answered"
    return f"closed after {time.monotonic() - began:.0f} s"


def _endless(service: Service) -> str:
    """Send 150 MB of one header."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(b"GET /v1/methods HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        for sent in range(150):
            try:
                connection.sendall(b"a" * 2**20)
            except ConnectionError:
                return "cut off within its first 16 MB" if sent < 16 else f"closed after {sent} MB"
    return "150 MB were taken"


def _unfinished(service: Service) -> str:
    crowd = [socket.create_connection(("127.0.0.1", service.port), timeout=20) for _ in range(600)]
    try:
        for connection in crowd:
            connection.sendall(POST + b"Content-Length: 9\r\n\r\n")
        time.sleep(1)
        return f"{service.ask('GET', '/v1/methods')}, healthz {service.ask('GET', '/healthz')[:3]}"
    finally:
        for connection in crowd:
            connection.close()
        time.sleep(1)


def _crowd(service: Service, size: int) -> str:
    crowd = [socket.create_connection(("127.0.0.1", service.port), timeout=20) for _ in range(size)]
    try:
        return service.ask("GET", "/v1/methods")[:3]
    finally:
        for connection in crowd:
            connection.close()


def _streams(service: Service) -> str:
    answers = [service.raw(f"GET {ANALYSIS}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()) for _ in range(100)]
    return ", ".join(sorted(set(answers)))
