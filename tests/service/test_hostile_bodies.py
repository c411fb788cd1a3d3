"""Bodies, paths, queries and headers made by hand to hurt: every one gets a 4xx with a problem document, none a 5xx.

``test_bodies.py`` says for POST /v1/allocations which field is named; here is the law for every route with a body.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from alphalloc_service.app import create_app
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from starlette.testclient import TestClient

ALPHAS = {"source": {"alphas": [2.1, 2.9]}, "budget": {"total": 8}}
MODEL = {"model": {"id": "org/model"}}
DEEP: Any = 1
for _ in range(900):
    DEEP = {"a": DEEP}


def changed(base: dict[str, Any], path: str, value: Any) -> bytes:
    """Return ``base`` as JSON with what lies at ``path`` replaced."""
    copy = json.loads(json.dumps(base))
    *parents, last = path.split("/")
    at = copy
    for parent in parents:
        at = at[parent]
    at[last] = value
    return json.dumps(copy).encode()


RAW: dict[str, bytes] = {
    "nothing": b"",
    "one NUL": b"\0",
    "only a BOM": b"\xef\xbb\xbf",
    "UTF-16": json.dumps(ALPHAS).encode("utf-16"),
    "UTF-32": json.dumps(ALPHAS).encode("utf-32"),
    "UTF-7": b"+AHs-",
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "cut in a character": '{"a": "é"}'.encode()[:-3],
    "CESU surrogates": b'{"a": "\xed\xa0\x80"}',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00C\xbf\xa6\xa3\x02\x00\x00\x00",
    "a pickle": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "YAML": b"a: !!python/object/apply:os.system [id]",
    "a form": b"source=1&budget=2",
    "multipart": b'--x\r\nContent-Disposition: form-data; name="a"; filename="../../x"\r\n\r\n1\r\n--x--',
    "msgpack": b"\x81\xa1a\x01",
    "lists 100,000 deep": b"[" * 100_000,
    "closed lists 50,000 deep": b"[" * 50_000 + b"]" * 50_000,
    "objects 900 deep": json.dumps(DEEP).encode(),
    "a key of 900 KB": b'{"' + b"k" * 900_000 + b'": 1}',
    "a string of 900 KB": b'{"model": {"id": "' + b"m" * 900_000 + b'"}}',
    "a number of 900 KB": b'{"budget": ' + b"9" * 900_000 + b"}",
    "an exponent of 100 digits": b'{"budget": 1e' + b"9" * 100 + b"}",
    "100,000 keys": json.dumps({f"k{at}": at for at in range(60_000)}).encode(),
    "colliding duplicates": b"{" + b",".join(b'"a":1' for _ in range(50_000)) + b"}",
    "200,000 nulls": b"[" + b"null," * 200_000 + b"null]",
    "escapes": b'{"\\u0000\\u001b]0;x\\u0007": "\\u202e"}',
    "half a pair": b'{"\\ud83d": "\\ude00"}',
    "proto": b'{"__proto__": {"admin": true}, "constructor": {"prototype": 1}}',
    "a JSON string of JSON": json.dumps(json.dumps(ALPHAS)).encode(),
    "JSON5": b"{source: {alphas: [2.1, .5,]}, /* */}",
    "JSON lines": b'{"a": 1}\n{"b": 2}',
    "true": b"true",
    "one quote": b'"',
    "minus": b"-",
    "1e5 spaces": b" " * 100_000,
}

ODD_VALUES: dict[str, Any] = {
    "null": None, "true": True, "an empty list": [], "an empty object": {}, "a negative": -1, "zero": 0, "2^63": 2**63,
    "2^1000": 2**1000, "a fraction": 0.1, "denormal": 5e-324, "huge": 1.7e308, "empty text": "", "SQL": "' OR 1=1; --",
    "a template": "{{7*7}}${7*7}%{7*7}", "a path": "../../../../etc/passwd", "a URL": "http://169.254.169.254/latest/",
    "a token": "hf_" + "a" * 34, "a surrogate": "\ud800", "NUL": "a\0b", "CRLF": "a\r\nSet-Cookie: b",
    "emoji": "😀" * 200, "right to left": "\u202egnp.exe", "a pattern that backtracks": "(a+)+$" * 40,
    "globs": "*" * 200 + "[!]", "5,000 letters": "x" * 5000, "nested": [[[[[[1]]]]]], "mixed": [1, "a", None, {}],
}  # fmt: skip

PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "source": ("/v1/allocations", ALPHAS), "source/alphas": ("/v1/allocations", ALPHAS),
    "budget": ("/v1/allocations", ALPHAS), "budget/total": ("/v1/allocations", ALPHAS),
    "method": ("/v1/allocations", ALPHAS), "params": ("/v1/allocations", ALPHAS), "bounds": ("/v1/allocations", ALPHAS),
    "rounding": ("/v1/allocations", ALPHAS), "top_k": ("/v1/allocations", ALPHAS), "store": ("/v1/allocations", ALPHAS),
    "model": ("/v1/analyses", MODEL), "model/id": ("/v1/analyses", MODEL), "model/revision": ("/v1/analyses", MODEL),
    "model/path": ("/v1/analyses", MODEL), "model/token": ("/v1/analyses", MODEL), "device": ("/v1/analyses", MODEL),
    "model/endpoint": ("/v1/analyses", MODEL), "estimator": ("/v1/analyses", MODEL),
    "layer_filter": ("/v1/analyses", MODEL), "priority": ("/v1/analyses", MODEL),
    "hill_fraction": ("/v1/analyses", MODEL),
}  # fmt: skip
# What is a fine value of its field after all.
FINE = {
    ("store", "true"), ("params", "an empty object"), ("bounds", "an empty object"),
    ("layer_filter", "an empty object"),
    ("priority", "zero"), ("priority", "a negative"), ("hill_fraction", "a fraction"), ("hill_fraction", "denormal"),
    ("model/revision", "null"), ("model/revision", "a token"), ("model/revision", "5,000 letters"),
    ("model/id", "a token"),
}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile')}/service.db"
    upgrade(url)
    settings = Settings(database_url=url, max_queued=1_000_000)
    with TestClient(
        create_app(settings, Store.open(url)), base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as c:
        yield c


def post(client: TestClient, path: str, body: bytes, content_type: str = "application/json") -> Any:
    return client.post(path, content=body, headers={"Content-Type": content_type})


def assert_refused(answer: Any) -> None:
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["code"]
    assert len(answer.content) < 20_000
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/v1/allocations", "/v1/analyses", "/v1/schedules/validate"])
@pytest.mark.parametrize("name", RAW)
def test_what_is_no_request_is_refused(
    client: TestClient, path: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = post(client, path, RAW[name])
    if path == "/v1/schedules/validate" and answer.status_code == 200:
        assert answer.json()["valid"] is False  # it is JSON, and the answer is no
    else:
        assert_refused(answer)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("place", PLACES)
def test_a_field_of_the_wrong_kind_is_refused(client: TestClient, place: str, caplog: pytest.LogCaptureFixture) -> None:
    path, base = PLACES[place]
    for name, value in ODD_VALUES.items():
        answer = post(client, path, changed(base, place, value))
        if answer.status_code < 300:
            assert (place, name) in FINE, (place, name, answer.text[:300])
        else:
            assert_refused(answer)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_there_are_enough_of_them() -> None:
    assert len(RAW) + len(PLACES) * len(ODD_VALUES) >= 60 * 3


PATHS = [
    "/%2e%2e/%2e%2e/etc/passwd", "/v1//methods", "/v1/methods/", "/v1/methods%00", "/v1/methods%0d%0aSet-Cookie:a",
    "/v1/allocations/..%2f..%2fetc", "/v1/analyses/%ff%fe", "/v1/analyses/an_" + "0" * 5000, "/v1/allocations/al_",
    "/v1/analyses/an_" + "g" * 32, "/v1/analyses/AN_" + "0" * 32, "/v1/allocations/' OR '1'='1",
    "/v1/allocations/al_" + "0" * 32 + "/export?format=../../x", "/v1/schemas/%2e%2e%2fsettings.py",
    "/v1/schemas/schedule-9.9.json", "/static/%2e%2e/settings.py", "/static/..%2f..%2f..%2fetc%2fpasswd",
    "/static/%252e%252e/settings.py", "/.env", "/.git/config", "/admin", "/v2/methods", "/V1/METHODS",
    "/v1/analyses?limit=0", "/v1/analyses?limit=101", "/v1/analyses?limit=1e2", "/v1/analyses?limit=-1",
    "/v1/analyses?limit=9" + "9" * 400, "/v1/analyses?cursor=%00", "/v1/analyses?cursor=../..",
    "/v1/analyses?cursor=" + "A" * 500, "/v1/analyses?status=dead", "/v1/analyses?limit=1&limit=x",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_and_queries_lead_nowhere(client: TestClient, path: str) -> None:
    request = client.build_request("GET", "/")
    raw, _, query = path.partition("?")
    request.url = request.url.copy_with(raw_path=(raw.replace(" ", "%20") + (f"?{query}" if query else "")).encode())
    assert_refused(client.send(request))


HEADERS: list[dict[str, str]] = [
    {"Prefer": "wait=9999999999999999999"}, {"Prefer": "wait=-1"}, {"Prefer": "wait=NaN, wait=1"},
    {"Prefer": "," * 5000}, {"If-None-Match": '"' * 3000}, {"If-None-Match": "*"}, {"Accept": "*/*;q=" + "9" * 1000},
    {"Accept": "text/\0x"}, {"Range": "bytes=0-0,-1"}, {"Last-Event-ID": "9" * 500}, {"Last-Event-ID": "-1"},
    {"Idempotency-Key": "k" * 5000}, {"Idempotency-Key": ""}, {"Idempotency-Key": "\u00e9"}, {"X-Request-Id": "a\tb"},
    {"X-Request-Id": "x" * 5000}, {"X-Forwarded-For": "127.0.0.1, evil"}, {"X-Forwarded-Host": "evil"},
    {"Forwarded": 'for="_x";host=evil'}, {"Content-Type": "application/json; charset=\0"}, {"Cookie": "a" * 8000},
    {"Content-Encoding": "gzip, br, x" * 100}, {"Expect": "200-maybe"}, {"Upgrade": "websocket"},
    {"Transfer-Encoding": "identity, x"}, {"X-HTTP-Method-Override": "DELETE"},
]  # fmt: skip


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: next(iter(headers)))
def test_headers_never_fail_the_service(client: TestClient, headers: dict[str, str]) -> None:
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    analysis = f"/v1/analyses/an_{'0' * 32}"
    for method, path, body in (
        ("GET", "/v1/methods", b""), ("GET", analysis, b""), ("GET", f"{analysis}/events", b""),
        ("GET", f"{analysis}/layers", b""), ("POST", "/v1/analyses", b'{"model": {"id": "no such"}}'),
        ("POST", "/v1/allocations", json.dumps(ALPHAS).encode()), ("POST", f"{analysis}/cancel", b""),
    ):  # fmt: skip
        answer = client.request(
            method, path, content=body, headers=[(b"Content-Type", b"application/json"), *sent][-2:]
        )
        assert answer.status_code < 500, (path, answer.text[:300])
        assert "\n" not in answer.headers["x-request-id"]
        assert len(answer.headers["x-request-id"]) <= 128


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PUT", "PATCH", "PROPFIND", "X" * 200])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    for path in ("/v1/allocations", "/healthz", "/v1/methods"):
        assert_refused(client.request(method, path))
