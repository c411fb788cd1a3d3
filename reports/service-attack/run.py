"""An attacker's afternoon: what was tried against a running service, each with the answer it gave.

    python reports/service-attack/run.py    # starts `alphalloc serve`, tries everything, writes the page

Two services are attacked: one as it is started by default, without keys, and one with a key that may only read. Every
try names what must come of it; a try that ends otherwise is printed as BROKEN and makes the script fail.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ANALYSIS = f"/v1/analyses/an_{'0' * 32}"
POST = b"POST /v1/allocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
QUESTION = {"source": {"alphas": [2.1, 2.9, 3.4]}, "budget": {"total": 15}}


@dataclass(frozen=True)
class Try:
    """One thing that was tried: on what, how, what was wanted, and what came."""

    topic: str
    what: str
    wanted: str
    answer: str

    @property
    def held(self) -> bool:
        return re.search(self.wanted, self.answer) is not None


class Service:
    """`alphalloc serve` in a folder of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ALPHALLOC_")}
        self.environment |= {
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "ALPHALLOC_DATABASE_URL": f"sqlite:///{folder}/service.db",
            "ALPHALLOC_LOG_FORMAT": "json",
            **{f"ALPHALLOC_{name.upper()}": value for name, value in settings.items()},
        }
        self.headers: dict[str, str] = {}

    def command(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "alphalloc", *arguments]
        return subprocess.run(
            program, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False
        )

    @contextmanager
    def running(self) -> Iterator[Service]:
        log = (self.folder / "log.jsonl").open("a")
        program = [sys.executable, "-m", "alphalloc", "serve", "--port", "0"]
        process = subprocess.Popen(program, env=self.environment, cwd=self.folder, stderr=log)
        try:
            until = time.monotonic() + 300
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.log)):
                assert time.monotonic() < until, self.log
                time.sleep(0.1)
            self.port, self.pid = int(found[1]), process.pid
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)

    @property
    def log(self) -> str:
        return (self.folder / "log.jsonl").read_text()

    def raw(self, content: bytes, seconds: float = 20) -> str:
        """Send bytes and return the first line that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(content)
            answer = b""
            with suppress(TimeoutError, ConnectionResetError):
                while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                    answer += part
        return answer.split(b"\r\n")[0].decode("latin-1") or "connection closed"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> str:
        """Send a request and return status, and the code of the problem or the beginning of the answer."""
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, sent = json.dumps(body).encode(), {"Content-Type": "application/json", **sent}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        except OSError as exc:
            return f"connection closed ({type(exc).__name__})"
        finally:
            connection.close()
        text = content.decode("utf-8", "replace")
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict) and "code" in found:
                text = found["code"]
        return f"{answer.status} {' '.join(text.split())[:60]}".strip()

    def job(self, body: dict[str, Any]) -> str:
        """Have something analysed and return how that ended."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(
            "POST", "/v1/analyses", json.dumps(body), {"Content-Type": "application/json"} | self.headers
        )
        analysis = json.loads(connection.getresponse().read())
        if "id" not in analysis:
            return f"{analysis['status']} {analysis['code']}"
        for _ in range(60):
            connection.request("GET", analysis["links"]["self"], headers={"Prefer": "wait=10"} | self.headers)
            analysis = json.loads(connection.getresponse().read())
            if analysis["status"] not in ("queued", "running"):
                break
        return f"job {analysis['status']}: {(analysis.get('error') or {}).get('code', '')}"


def memory_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Tries = list[Try]


def getting_in(service: Service, key: str) -> Tries:
    """Without a key, with a wrong one, with one that may only read, and with one that was revoked."""
    topic = "Getting in"
    service.headers = {}
    bad = {"none": "", "Basic": "Basic YWRtaW46YWRtaW4=", "a made-up one": "Bearer alph_" + "A" * 43}
    found = [
        Try(topic, f"key: {name}", "^401", service.ask("GET", "/v1/analyses", Authorization=value))
        for name, value in bad.items()
    ]
    found.append(
        Try(
            topic,
            "the key's SHA-256 as a key",
            "^401",
            service.ask("GET", "/v1/analyses", Authorization=f"Bearer {key[:20]}"),
        )
    )
    found.append(Try(topic, "the key in the query", "^401", service.ask("GET", f"/v1/analyses?api_key={key}")))
    found.append(Try(topic, "the key in a cookie", "^401", service.ask("GET", "/v1/analyses", Cookie=f"key={key}")))
    found.append(
        Try(
            topic,
            "claiming to come from this machine",
            "^401",
            service.ask("GET", "/v1/analyses", X_Forwarded_For="127.0.0.1"),
        )
    )
    for path in (
        "/v1/../v1/analyses",
        "//v1/analyses",
        "/v1/analyses/",
        "/V1/analyses",
        "/healthz/../v1/analyses",
        "/docs/../v1/analyses",
        "/static/..%2fv1/analyses",
        "/v1/schemas/../analyses",
    ):
        found.append(
            Try(
                topic,
                f"around the check: `{path}`",
                "(401|404|405|400)",
                service.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()),
            )
        )
    service.headers = {"Authorization": f"Bearer {key}"}
    found.append(Try(topic, "reading with a key that may read", "^200", service.ask("GET", "/v1/methods")))
    found.append(
        Try(
            topic,
            "starting an analysis with it",
            "^403 insufficient-scope",
            service.ask("POST", "/v1/analyses", {"model": {"id": "gpt2"}}),
        )
    )
    found.append(
        Try(
            topic,
            "storing a schedule with it",
            "^403 insufficient-scope",
            service.ask("POST", "/v1/allocations", QUESTION),
        )
    )
    found.append(Try(topic, "deleting with it", "^403 insufficient-scope", service.ask("DELETE", ANALYSIS)))
    found.append(
        Try(
            topic,
            "deleting by X-HTTP-Method-Override",
            "^404",
            service.ask("GET", ANALYSIS, X_HTTP_Method_Override="DELETE"),
        )
    )
    service.command("keys", "revoke", "reader")
    time.sleep(4)
    found.append(Try(topic, "the revoked key, four seconds later", "^401", service.ask("GET", "/v1/methods")))
    found.append(
        Try(
            topic,
            "no key, now that none is left",
            "^401",
            service.raw(b"GET /v1/methods HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").replace("HTTP/1.1 ", ""),
        )
    )
    found.append(Try(topic, "the key in the log", "not there", "there" if key in service.log else "not there"))
    database = b"".join(path.read_bytes() for path in service.folder.glob("service.db*"))
    found.append(
        Try(topic, "the key in the database file", "not there", "there" if key.encode() in database else "not there")
    )
    return found


def listening(folder: Path) -> Tries:
    """A service that others reach, without a key."""
    service = Service(folder)
    answer = service.command("serve", "--host", "0.0.0.0", "--port", "0", timeout=300)
    said = answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else "nothing"
    return [
        Try(
            "Getting in",
            "`serve --host 0.0.0.0` without a key",
            "^exit 2: .*no key",
            f"exit {answer.returncode}: {said[:140]}",
        )
    ]


def from_a_web_page(service: Service) -> Tries:
    """What a page elsewhere can make the user's browser send."""
    topic = "From a web page"
    return [
        Try(
            topic,
            "DNS rebinding: Host evil.example",
            "^421 host-not-allowed",
            service.ask("GET", "/v1/analyses", Host="evil.example"),
        ),
        Try(
            topic,
            "Host 127.0.0.1.evil.example",
            "^421",
            service.ask("GET", "/v1/analyses", Host="127.0.0.1.evil.example"),
        ),
        Try(topic, "no Host at all (HTTP/1.0)", "421|400", service.raw(b"GET /v1/analyses HTTP/1.0\r\n\r\n")),
        Try(
            topic,
            "a form posted across origins",
            "^403 origin-not-allowed",
            service.ask(
                "POST",
                "/v1/allocations",
                b"a=1",
                Origin="https://evil.example",
                Content_Type="application/x-www-form-urlencoded",
            ),
        ),
        Try(
            topic,
            "the same without Origin, as text/plain",
            "^415",
            service.ask("POST", "/v1/allocations", json.dumps(QUESTION).encode(), Content_Type="text/plain"),
        ),
        Try(
            topic,
            "cancelling across origins, no body",
            "^403 origin-not-allowed",
            service.ask("POST", f"{ANALYSIS}/cancel", b"", Origin="null"),
        ),
        Try(
            topic,
            "CORS preflight",
            "^(405|403|400)",
            service.ask("OPTIONS", "/v1/analyses", Origin="https://evil.example", Access_Control_Request_Method="POST"),
        ),
        Try(
            topic,
            "websocket",
            "^(404|400|405)",
            service.ask(
                "GET",
                "/v1/analyses/x",
                Upgrade="websocket",
                Connection="Upgrade",
                Sec_WebSocket_Key="x",
                Sec_WebSocket_Version="13",
            ),
        ),
    ]


def files_and_requests(service: Service) -> Tries:
    """Reading this machine's files, and making it ask others."""
    topic = "Files, and requests made for us"
    found = []
    for path in (
        "/etc/passwd",
        "../../../../etc",
        "/proc/self/environ",
        str(service.folder),
        "tiny/../../secret",
        "out",
        "device",
        "a\0b",
    ):
        found.append(
            Try(
                topic,
                f"path `{path!r}`".replace("'", ""),
                "^(403|404) (path-not-allowed|model-not-found)",
                service.ask("POST", "/v1/analyses", {"model": {"path": path}}),
            )
        )
    for model in (
        "/etc/passwd",
        "../../etc",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "org/model/../../x",
        "a/b?c",
        "a/b@evil",
    ):
        found.append(
            Try(
                topic,
                f"id `{model}`",
                "^422 invalid-request",
                service.ask("POST", "/v1/analyses", {"model": {"id": model}}),
            )
        )
    for revision in ("../../../../../../etc/hostname", "/etc/passwd", "a/../../b", "main\n"):
        found.append(
            Try(
                topic,
                f"revision `{revision!r}`".replace("'", ""),
                "^422 invalid-request",
                service.ask("POST", "/v1/analyses", {"model": {"id": "a/b", "revision": revision}}),
            )
        )
    for extra in (
        {"token": "hf_x"},
        {"endpoint": "http://evil.example"},
        {"url": "http://evil.example"},
        {"trust_remote_code": True},
    ):
        found.append(
            Try(
                topic,
                f"model with `{next(iter(extra))}`",
                "^422 invalid-request",
                service.ask("POST", "/v1/analyses", {"model": {"id": "a/b", **extra}}),
            )
        )
    found.append(
        Try(
            topic,
            "a denied model",
            "^403 model-not-allowed",
            service.ask("POST", "/v1/analyses", {"model": {"id": "Denied/Model"}}),
        )
    )
    found.append(
        Try(
            topic,
            "an id that is a folder where it was started",
            "job failed: hub-unreachable",
            service.job({"model": {"id": "org/model"}}),
        )
    )
    for path in (
        "/static/../settings.py",
        "/static/%2e%2e/settings.py",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/schemas/..%2f..%2fsettings.py",
        "/.env",
        "/docs/../../etc/passwd",
    ):
        found.append(
            Try(
                topic,
                f"GET `{path}`",
                "40[04]",
                service.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()),
            )
        )
    return found


def checkpoints(service: Service) -> Tries:
    """Files made to hurt whoever opens them, as jobs."""
    import pickle
    import zipfile

    import torch

    models = service.folder / "models"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {service.folder}/pwned",)

    (models / "cut.safetensors").write_bytes(struct.pack("<Q", 200_000_000) + b"{")
    (models / "many.safetensors").write_bytes(_many())
    (models / "pickle.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"layers.0.q.weight": Payload()}, models / "code.bin")
    torch.save({"a": torch.zeros(1).expand(200_000, 200_000)}, models / "stride.bin")
    torch.save({"layers.0.q.weight": torch.zeros(2, 2)}, models / "plain.bin")
    with zipfile.ZipFile(models / "plain.bin") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(models / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if not name.endswith("/0") else b"\0" * 2**28)
    side = 2**16
    header = json.dumps(
        {
            "layers.0.q.weight": {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side**2]},
            "layers.1.q.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * side**2, 4 * side**2 + 4]},
        }
    ).encode()
    with (models / "huge.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + 4 * side**2 + 4)
    tries = {
        "cut.safetensors": ("a header of 200 MB in 9 bytes", "failed: corrupt-checkpoint"),
        "many.safetensors": ("120,000 empty tensors", "failed: corrupt-checkpoint"),
        "pickle.pt": ("a pickle that runs `touch pwned`", "failed: unsafe-checkpoint"),
        "code.bin": ("the same inside a PyTorch file", "failed: unsafe-checkpoint"),
        "stride.bin": ("1.6 KB that claim 160 GB by stride 0", "failed: corrupt-checkpoint"),
        "bomb.bin": ("a zip bomb of 256 MiB", "failed: corrupt-checkpoint"),
        "huge.safetensors": (
            "16 GiB of zeros that take no disk, limit 2 GiB",
            "failed: (memory-budget|worker-lost|unsupported|corrupt)",
        ),
    }
    topic = "Checkpoints"
    found = [Try(topic, what, wanted, service.job({"model": {"path": name}})) for name, (what, wanted) in tries.items()]
    found.append(Try(topic, "did the code run?", "^no$", "yes" if (service.folder / "pwned").exists() else "no"))
    return found


def _many() -> bytes:
    one = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(one % at for at in range(120_000)) + "}").encode()
    return struct.pack("<Q", len(header)) + header


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


def injecting(service: Service) -> Tries:
    """Text that means something to whoever reads it later."""
    topic = "Injecting"
    found = [
        Try(topic, "SQL in an id", "^422", service.ask("GET", "/v1/analyses/' OR '1'='1".replace(" ", "%20"))),
        Try(
            topic,
            "SQL in a filter",
            '^200 {"object": "list", "data": \\[\\]',
            service.ask("GET", "/v1/analyses?model=%27%20OR%201=1;--"),
        ),
        Try(
            topic,
            "a line break in X-Request-Id",
            "400|200",
            service.raw(b"GET /v1/methods HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: a\x0bb\r\n\r\n"),
        ),
        Try(topic, "a forged log line in a path", "^404", service.ask("GET", "/v1/%0a%7b%22event%22:%22forged%22%7d")),
        Try(
            topic,
            "markup in a rule's name",
            "^422 unknown-method",
            service.ask("POST", "/v1/allocations", {**QUESTION, "method": "<script>alert(1)</script>"}),
        ),
        Try(
            topic,
            "half a character in a schedule",
            '^(200 {"valid": ?false|4..)',
            service.ask("POST", "/v1/schedules/validate", b'{"kind": "\\ud800"}', Content_Type="application/json"),
        ),
        Try(
            topic,
            "a template in a cursor",
            "^422 invalid-cursor",
            service.ask("GET", "/v1/analyses?cursor=%7b%7b7*7%7d%7d"),
        ),
    ]
    lines = service.log.splitlines()
    forged = [line for line in lines if line.startswith('{"event":"forged"') or '"event": "forged"' in line]
    found.append(Try(topic, "was a log line forged?", "^no", "yes" if forged else "no"))
    return found


def measure() -> Iterator[Try]:
    """Yield the tries as they are made."""
    with tempfile.TemporaryDirectory(prefix="alphalloc-attack-") as text:
        folder = Path(text)
        for name in ("keyed", "open", "public"):
            (folder / name).mkdir()
        yield from listening(folder / "public")
        keyed = Service(folder / "keyed", worker="false")
        key = keyed.command("keys", "create", "reader", "--scope", "read").stdout.strip()
        with keyed.running():
            yield from getting_in(keyed, key)
        place = folder / "open"
        (place / "models" / "tiny").mkdir(parents=True)
        (place / "secret").mkdir()
        (place / "org" / "model").mkdir(parents=True)
        (place / "models" / "out").symlink_to(place / "secret")
        (place / "models" / "device").symlink_to("/dev/zero")
        settings = {"model_roots": str(place / "models"), "deny_models": "denied/*", "job_memory_bytes": str(2**31)}
        service = Service(place, **settings)
        service.environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
        with service.running():
            steps: tuple[Callable[[Service], Tries], ...] = (
                from_a_web_page, files_and_requests, injecting, checkpoints, using_it_up,
            )  # fmt: skip
            for step in steps:
                yield from step(service)
            alive = service.ask("GET", "/readyz")
            yield Try("Afterwards", "is it ready?", "^200", alive)
            errors = [line for line in service.log.splitlines() if '"exception"' in line or '"status": 500' in line]
            yield Try("Afterwards", "answers of 500 and exceptions in the log", "^0$", str(len(errors)))


def page(found: Tries) -> str:
    """Return README.md."""
    lines = []
    for topic in dict.fromkeys(one.topic for one in found):
        lines += [f"## {topic}", "", "| Tried | Answer | |", "| --- | --- | --- |"]
        for one in found:
            if one.topic == topic:
                cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in (one.what, one.answer))
                lines.append(f"| {' | '.join(cells)} | {'held' if one.held else '**broken**'} |")
        lines.append("")
    held = sum(one.held for one in found)
    return f"""# An attacker's afternoon

{len(found)} things tried against `alphalloc serve` over its socket, {held} held. `run.py` starts the services, tries
everything and remakes this page; `docs/threat-model.md` says what is defended and what is not.

{chr(10).join(lines).rstrip()}

## What broke the first time, and holds now

- An upgrade to a websocket got a 500: with a library for them installed the server began a handshake that nobody took.
- 1 MB of unknown fields kept the service busy for a second or more, and a key of 900 KB came back whole in the answer.
- A schedule with half a character (`\\ud800`) in a key, or a number beyond float64, passed the reader's first checks.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the services are stopped too
    found = []
    for one in measure():
        found.append(one)
        print(f"{'held  ' if one.held else 'BROKEN'} {one.topic}: {one.what} -> {one.answer}", flush=True)
    if not options.no_report:
        (HERE / "results.json").write_text(
            json.dumps([{**vars(one), "held": one.held} for one in found], indent=1) + "\n"
        )
        (HERE / "README.md").write_text(page(found))
    sys.exit(any(not one.held for one in found))


if __name__ == "__main__":
    main()
