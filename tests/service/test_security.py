"""What is refused before any route sees it: hosts, origins, sizes, keys, rates; and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alphalloc_service import security
from alphalloc_service.app import create_app
from alphalloc_service.keys import digest, new_key
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from starlette.testclient import TestClient

Client = Callable[..., TestClient]
QUESTION = {"source": {"alphas": [2.1, 2.9]}, "budget": {"total": 8}}
ALLOCATION = f"/v1/allocations/al_{'0' * 32}"
ANALYSIS = f"/v1/analyses/an_{'0' * 32}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    url = f"sqlite:///{tmp_path}/service.db"
    upgrade(url)
    return Store.open(url)


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[Client]:
    """Make clients of applications with the settings given; one database."""
    entered: list[TestClient] = []

    def make(base_url: str = "http://127.0.0.1:8000", **settings: Any) -> TestClient:
        full = Settings(database_url=f"sqlite:///{tmp_path}/service.db", **{"log_format": "json", **settings})
        test_client = TestClient(create_app(full, store), base_url=base_url, raise_server_exceptions=False)
        entered.append(test_client)
        return test_client

    yield make
    for test_client in entered:
        test_client.close()
    store.close()


def key(store: Store, *scopes: str) -> dict[str, str]:
    """Return the header of a new key."""
    made = new_key()
    store.add_key("-".join(scopes), digest(made), scopes)
    return {"Authorization": f"Bearer {made}"}


def code(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, answer.json()["code"]


# -- keys


def test_without_keys_a_loopback_service_is_open(client: Client) -> None:
    assert client().get("/v1/methods").status_code == 200
    assert client().get("/v1/methods", headers={"Authorization": "Bearer nonsense"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "models.example.org"])
def test_a_public_address_wants_a_key_though_there_is_none(client: Client, host: str) -> None:
    base = f"http://[{host}]:8000" if ":" in host else f"http://{host}:8000"
    assert code(client(base, host=host).get("/v1/methods")) == (401, "unauthorized")
    assert client(base, host=host, insecure_no_auth=True).get("/v1/methods").status_code == 200


def test_with_a_key_everything_but_health_and_page_wants_one(client: Client, store: Store) -> None:
    header = key(store, "read")
    service = client()
    guarded = ("/v1/methods", "/v1/info", "/v1/analyses", ALLOCATION, ANALYSIS, "/metrics", "/no/such/path", "/v1/")
    for path in guarded:
        answer = service.get(path)
        assert code(answer) == (401, "unauthorized"), path
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/openapi.json", "/v1/schemas/schedule-1.0.json"):
        assert service.get(path).status_code == 200, path
    assert service.get("/v1/methods", headers=header).status_code == 200
    assert service.get("/metrics", headers=header).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Basic abc", "bearer alph_", "Bearer alph_" + "A" * 43, "Bearer " + "A" * 9000,
     "alph_" + "A" * 43, "Bearer alph_' or 1=1 --", "Bearer \xff\xfe", "Token x", "Bearer null"],
)  # fmt: skip
def test_a_wrong_authorization_gets_401(client: Client, store: Store, value: str) -> None:
    key(store, "read")
    answer = client().get("/v1/methods", headers={"Authorization": value.encode("latin-1")})
    assert code(answer) == (401, "unauthorized")
    assert "A" * 20 not in answer.text


def test_scopes_decide_what_may_be_done(client: Client, store: Store) -> None:
    service, reading, writing = client(), key(store, "read"), key(store, "write")
    changes = (
        ("POST", "/v1/allocations"),
        ("POST", "/v1/analyses"),
        ("POST", f"{ANALYSIS}/cancel"),
        ("DELETE", ANALYSIS),
    )
    for method, path in changes:
        answer = service.request(method, path, json=QUESTION if path.endswith("allocations") else None, headers=reading)
        assert code(answer) == (403, "insufficient-scope"), path
        assert 'scope="write"' in answer.headers["www-authenticate"]
    assert service.get("/v1/methods", headers=writing).status_code == 200
    assert service.post("/v1/allocations", json=QUESTION, headers=writing).status_code == 201
    schedule = service.post("/v1/allocations", json=QUESTION, headers=writing).json()
    assert service.post("/v1/schedules/validate", json=schedule, headers=reading).status_code == 200
    refused = service.delete(f"{ANALYSIS}?purge=true", headers=writing)
    assert code(refused) == (403, "insufficient-scope")
    assert 'scope="admin"' in refused.headers["www-authenticate"]
    assert code(service.delete(f"{ANALYSIS}?purge=true", headers=key(store, "admin"))) == (404, "analysis-not-found")


def test_a_schedule_is_for_shared_caches_only_where_there_are_no_keys(client: Client, store: Store) -> None:
    made = client().post("/v1/allocations", json=QUESTION)
    path = made.headers["location"]
    assert client().get(path).headers["cache-control"].startswith("public")
    header = key(store, "read")
    assert client().get(path, headers=header).headers["cache-control"].startswith("private")


def test_two_authorizations_are_one_too_many(client: Client, store: Store) -> None:
    header = key(store, "read")["Authorization"]
    answer = client().get("/v1/methods", headers=[("Authorization", "Bearer x"), ("Authorization", header)])
    assert code(answer) == (400, "malformed")


def test_without_the_database_nobody_gets_in(client: Client, store: Store, tmp_path: Path) -> None:
    header = key(store, "read")
    store.close()
    (tmp_path / "service.db").write_bytes(b"not a database" * 1000)
    for path in tmp_path.glob("service.db-*"):
        path.unlink()
    for host in ("127.0.0.1", "0.0.0.0"):
        answer = client(f"http://{host}:8000", host=host).get("/v1/methods", headers=header)
        assert code(answer) == (503, "storage-unavailable")


# -- hosts and origins


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]"])
def test_own_names_are_served(client: Client, host: str) -> None:
    assert client().get("/v1/methods", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "evil.example:127.0.0.1", "",
             ":8000", "localhost@evil.example", "127.0.0.1:8000:9", "169.254.169.254", "[::1", "xn--lcalhost-57a"],
)  # fmt: skip
def test_a_rebound_name_is_refused(client: Client, host: str) -> None:
    for method, path in (("GET", "/v1/methods"), ("POST", "/v1/allocations"), ("GET", "/openapi.json"), ("GET", "/")):
        assert code(client().request(method, path, headers={"Host": host})) == (421, "host-not-allowed")
    assert client().get("/healthz", headers={"Host": host}).status_code == 200


def test_other_names_can_be_allowed(client: Client) -> None:
    service = client(allowed_hosts=("alphalloc.example.org",))
    assert service.get("/v1/methods", headers={"Host": "alphalloc.example.org:443"}).status_code == 200
    assert client(allowed_hosts=("*",)).get("/v1/methods", headers={"Host": "anything"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost.evil.example:8000", "garbage",
               "http://[::1", "file://"],
)  # fmt: skip
def test_pages_elsewhere_change_nothing(client: Client, origin: str) -> None:
    service = client()
    for path in ("/v1/allocations", f"{ANALYSIS}/cancel"):
        assert code(service.post(path, headers={"Origin": origin})) == (403, "origin-not-allowed")
    answer = service.get("/v1/methods", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_may_change_things(client: Client) -> None:
    answer = client().post("/v1/allocations", json=QUESTION, headers={"Origin": "http://127.0.0.1:8000"})
    assert answer.status_code == 201


def test_no_other_origin_reads_unless_allowed(client: Client) -> None:
    asking = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    refused = client().options("/v1/allocations", headers=asking)
    assert "access-control-allow-origin" not in refused.headers
    service = client(cors_origins=("https://page.example",))
    assert service.options("/v1/allocations", headers=asking).headers["access-control-allow-origin"] == asking["Origin"]
    made = service.post("/v1/allocations", json=QUESTION, headers={"Origin": asking["Origin"]})
    assert (made.status_code, made.headers["access-control-allow-origin"]) == (201, asking["Origin"])
    other = service.get("/v1/methods", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-credentials" not in made.headers


# -- sizes and time


def test_large_headers_are_refused(client: Client) -> None:
    service = client(max_header_bytes=2048)
    assert code(service.get("/v1/methods", headers={"X-Filler": "a" * 2048})) == (431, "headers-too-large")
    assert code(service.get("/v1/methods?" + "a" * 2048)) == (431, "headers-too-large")
    many = [(f"X-{at}", "") for at in range(security.MAX_HEADERS + 1)]
    assert code(client().get("/v1/methods", headers=many)) == (431, "headers-too-large")


@pytest.mark.parametrize("length", ["1048577", "9" * 18, "9" * 400])
def test_a_large_body_is_refused_by_its_length_on_every_path(client: Client, length: str) -> None:
    for path in ("/v1/allocations", f"{ANALYSIS}/cancel", "/no/such/path"):
        answer = client().post(
            path, content=b"{}", headers={"Content-Length": length, "Content-Type": "application/json"}
        )
        assert code(answer) == (413, "body-too-large")


def test_a_body_that_drips_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.2)
    app = client().app
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    asyncio.run(app(scope_of("POST", "/v1/allocations", headers), receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "request-timeout"


# -- rates


def test_a_key_has_a_rate_of_its_own(client: Client, store: Store) -> None:
    service, first, second = client(rate_limit="3/hour"), key(store, "read"), key(store, "write")
    assert [service.get("/v1/methods", headers=first).status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = service.get("/v1/methods", headers=first)
    assert code(answer) == (429, "rate-limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 3601
    assert service.get("/v1/methods", headers=second).status_code == 200
    assert service.get("/healthz").status_code == 200


def test_large_rates_are_kept_exactly(client: Client, store: Store) -> None:
    service, header = client(rate_limit="250/hour"), key(store, "read")
    codes = [service.get("/v1/no/such/thing", headers=header).status_code for _ in range(260)]
    assert codes == [404] * 250 + [429] * 10


def test_without_keys_the_address_counts_where_others_reach_it(client: Client) -> None:
    public = client("http://0.0.0.0:8000", host="0.0.0.0", insecure_no_auth=True, rate_limit="2/hour")
    assert [public.get("/v1/methods").status_code for _ in range(3)] == [200, 200, 429]
    local = client(rate_limit="2/hour")
    assert [local.get("/v1/methods").status_code for _ in range(3)] == [200, 200, 200]
    unlimited = client("http://0.0.0.0:8000", host="0.0.0.0", insecure_no_auth=True, rate_limit=None)
    assert [unlimited.get("/v1/methods").status_code for _ in range(3)] == [200, 200, 200]


def test_unknown_keys_are_counted_before_the_database_is_asked(client: Client, store: Store) -> None:
    service, known = client(rate_limit="5/hour"), key(store, "read")
    assert service.get("/v1/methods", headers=known).status_code == 200
    asked, find = [], store.key_by_hash
    store.key_by_hash = lambda hashed: asked.append(hashed) or find(hashed)  # type: ignore[method-assign]
    flood = [service.get("/v1/methods", headers={"Authorization": f"Bearer {new_key()}"}) for _ in range(8)]
    assert [answer.status_code for answer in flood] == [401] * 5 + [429] * 3
    assert code(flood[-1]) == (429, "rate-limited")
    assert 1 <= int(flood[-1].headers["retry-after"]) <= 3601
    assert len(asked) == 5
    assert service.get("/v1/methods", headers=known).status_code == 200
    unlimited = client(rate_limit=None)
    assert unlimited.get("/v1/methods", headers={"Authorization": f"Bearer {new_key()}"}).status_code == 401


@pytest.mark.parametrize(
    ("address", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("testclient", "another", False),
    ],
)
def test_a_network_of_ipv6_counts_as_one_address(
    client: Client, store: Store, address: str, other: str, same: bool
) -> None:
    """Those who have one have 2**64 addresses, so each could be used for one unknown key."""
    key(store, "read")
    app = client(rate_limit="2/hour").app
    unknown = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {new_key()}".encode())]
    assert [status(app, address, unknown) for _ in range(3)] == [401, 401, 429]
    assert status(app, other, unknown) == (429 if same else 401)


def status(app: Any, address: str, headers: list[tuple[bytes, bytes]]) -> int:
    """Return the status of the answer to a request from ``address``."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({**scope_of("GET", "/v1/methods", headers), "client": (address, 1)}, receive, send))
    return int(sent[0]["status"])


# -- answers


def test_every_answer_tells_browsers_what_they_may_not(client: Client) -> None:
    service = client()
    answers = [service.get(path) for path in ("/healthz", "/v1/methods", "/nothing", "/metrics")]
    answers.append(service.get("/healthz", headers={"Host": "evil.example"}))
    answers.append(service.get("/v1/methods", headers={"Host": "evil.example"}))
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_the_policies_of_pages_load_nothing_from_elsewhere() -> None:
    for policy in (security.PAGE_POLICY, security.REPORT_POLICY, security.DATA_POLICY):
        parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        assert parts["default-src"] in ("'self'", "'none'")
        assert "frame-ancestors" in parts
        assert "http" not in policy
        assert "*" not in policy
    assert "unsafe" not in security.PAGE_POLICY.replace("style-src 'self' 'unsafe-inline'", "")
    assert "sandbox" in security.REPORT_POLICY
    assert "allow-same-origin" not in security.REPORT_POLICY


def test_the_openapi_document_says_who_needs_a_key(client: Client) -> None:
    document = client().get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            open_to_all = path in security.PUBLIC or path.startswith(security.PUBLIC_FOLDERS)
            assert ("401" in operation["responses"]) is not open_to_all, path
            assert ("security" in operation) is not open_to_all, path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_what_only_this_machine_reaches(host: str) -> None:
    assert security.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.3", "example.org", "localhost.evil.example", "", "fe80::1%eth0", "127.0.0.1.x"]
)
def test_what_others_reach(host: str) -> None:
    assert not security.is_loopback(host)


# -- cost


def scope_of(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000), "scheme": "http", "root_path": "", "state": {},
    }  # fmt: skip


def test_a_known_key_asks_the_database_once_in_many_requests(client: Client, store: Store) -> None:
    header = key(store, "read")
    service, asked = client(), 0
    find = store.key_by_hash

    def counting(hashed: str) -> Any:
        nonlocal asked
        asked += 1
        return find(hashed)

    store.key_by_hash = counting  # type: ignore[method-assign]
    began = time.monotonic()
    assert {service.get("/v1/methods", headers=header).status_code for _ in range(50)} == {200}
    assert asked <= 2 + (time.monotonic() - began) / 3
