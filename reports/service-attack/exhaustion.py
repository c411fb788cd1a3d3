"""Tries to use up memory, processor and connections."""

from __future__ import annotations

import json
import socket
import time
import zlib
from contextlib import suppress

from attacked import POST, Service, Tries, Try, memory_of


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
            "gzip that would unpack to 900 MiB",
            "^400",
            service.ask("POST", "/v1/allocations", _bomb(), Content_Type="application/json", Content_Encoding="gzip"),
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
        Try(
            topic,
            "1,500 silent connections to a process that was given 1,024 descriptors, then a request",
            "^200",
            _crowd(service, 1500),
        ),
        Try(topic, "600 clients that ask for 3 MB each and read nothing", "^healthz 200, .* 200 after", _deaf(service)),
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


def _deaf(service: Service) -> str:
    """Return whether the service is alive beside clients that read nothing, and when others are answered again."""
    asked = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    crowd = [socket.create_connection(("127.0.0.1", service.port), timeout=20) for _ in range(600)]
    try:
        for connection in crowd:
            connection.sendall(2 * asked)
        time.sleep(1)
        alive, began = service.ask("GET", "/healthz")[:3], time.monotonic()
        while (answer := service.ask("GET", "/v1/methods")[:3]) != "200" and time.monotonic() < began + 120:
            time.sleep(1)
        return f"healthz {alive}, everything else {answer} after {time.monotonic() - began:.0f} s"
    finally:
        for connection in crowd:
            connection.close()


def _bomb() -> bytes:
    """900 MiB of zeros in gzip, some 900 KB."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(b"\0" * 2**20) for _ in range(900)), packer.flush()])


def waiting(service: Service, key: str) -> Tries:
    """Places to wait and in the queue; ``service`` has no worker and lets 20 wait."""
    topic, may = "Waiting", {"Authorization": f"Bearer {key}"}
    path = service.path_of_new("POST", "/v1/analyses", {"model": {"id": "org/wanted"}}, **may)
    began = time.monotonic()
    long_poll = service.ask("GET", path, Prefer="wait=99999", **may)[:3]
    seconds = time.monotonic() - began
    full = [service.ask("POST", "/v1/analyses", {"model": {"id": f"org/made-up-{at}"}}, **may) for at in range(30)]
    ready = service.ask("GET", "/readyz")[:3]
    without, read = service.ask("GET", "/readyz?exclude=queue")[:3], service.ask("GET", "/v1/methods", **may)[:3]
    return [
        Try(topic, "`Prefer: wait=99999`", "^200 after (5[0-9]|6[0-5]) s", f"{long_poll} after {seconds:.0f} s"),
        Try(topic, "100 streams at once with one key", "^200, 429$", _streams(service, path, key)),
        Try(topic, "30 models that there are none of", "^429 queue-full", full[-1]),
        Try(
            topic,
            "is everything else answered then?",
            "^readyz 503, without the queue 200, reading 200",
            f"readyz {ready}, without the queue {without}, reading {read}",
        ),
    ]


def _streams(service: Service, path: str, key: str) -> str:
    """Return the statuses of 100 streams that are open at once."""
    asked = f"GET {path}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    crowd = [socket.create_connection(("127.0.0.1", service.port), timeout=20) for _ in range(100)]
    try:
        for connection in crowd:
            connection.sendall(asked)
        return ", ".join(sorted({connection.recv(65536).split(b" ")[1].decode() for connection in crowd}))
    finally:
        for connection in crowd:
            connection.close()
