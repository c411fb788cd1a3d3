"""Keys in every place of a request, at a real service: none is in its log, in its traces or in what a job failed of."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from collector import Collector
from running_service import RunningService

KEY = "alph_" + "K" * 43
TOKEN = "hf_" + "T" * 34
PASSWORD = "hunter2-hunter2"
SIGNATURE = "0af1" * 8
SIGNED = f"https://cdn.example/f?X-Amz-Expires=60&X-Amz-Signature={SIGNATURE}"
HIDDEN = ("K" * 12, "T" * 12, PASSWORD, SIGNATURE)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """A hub whose every answer is an error that quotes a signed URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(400)
            self.send_header("X-Error-Message", f"no {SIGNED}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ask(service: RunningService) -> str:
    """Send keys in header, query, path and body; return the detail of the job that the hub failed."""
    for scheme in ("Bearer ", "BEARER  ", "Basic ", "alphalloc:"):
        service.request("GET", "/v1/nothing", headers={"Authorization": f"{scheme}{KEY}", "X-Api-Key": TOKEN})
    service.request("POST", "/v1/allocations", {}, {"Idempotency-Key": KEY, "X-Request-Id": KEY, "Cookie": TOKEN})
    query = f"token={TOKEN}&api_key={KEY}&password={PASSWORD}&url=postgresql://u:{PASSWORD}@h&signed={SIGNED}"
    for method, path in (("POST", "/v1/analyses"), ("GET", "/v1/analyses"), ("GET", "/v1/nothing")):
        service.request(method, f"{path}?{query}&limit={KEY}", {"password": PASSWORD})
    for secret in (KEY, TOKEN, f"password={PASSWORD}", f"X-Amz-Signature={SIGNATURE}"):
        service.request("DELETE", f"/v1/analyses/{secret}")
        service.request("POST", f"/{secret}/{secret}", {})
        service.request("POST", "/v1/analyses", {"model": {"id": f"org/{secret}"}, secret: secret})
        service.request("POST", "/v1/allocations", {"source": {"alphas": [secret]}, "budget": {"total": secret}})
    service.request("POST", "/v1/allocations", f"{{{KEY} {TOKEN}".encode(), {"Content-Type": "application/json"})
    status, analysis = service.json("POST", "/v1/analyses", {"model": {"id": "org/model", "revision": "main"}})
    assert status == 202
    return str(service.finished(analysis["id"])["error"]["detail"])


def test_no_key_is_in_the_log_the_traces_or_an_error(tmp_path: Path, hub: str) -> None:
    """With the variables that docs/containers.md names and no other; what is left to export leaves when it stops."""
    with Collector() as collector:
        environment = {
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "HF_ENDPOINT": hub,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hub"),
        }
        with RunningService(tmp_path, environment=environment, rate_limit="off") as service:
            detail = ask(service)
        posted = [(path, _plain(content)) for path, content in collector.posted]
    assert "400" in detail
    assert "X-Amz-Signature=***" in detail
    assert [word for word in HIDDEN if word in detail] == []
    assert len(service.log.splitlines()) > 20
    assert [line for line in service.log.splitlines() if any(word in line for word in HIDDEN)] == []
    assert {path for path, _ in posted} == {"/v1/traces"}
    exported = b"".join(plain for _, plain in posted)
    assert b"url.query" in exported
    assert [word for word in HIDDEN if word.encode() in exported] == []
    assert b"limit=" not in exported


def _plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
