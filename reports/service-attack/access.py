"""Tries to get in: without a key, past the checks, from a web page."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from attacked import ANALYSIS, QUESTION, Service, Tries, Try


def getting_in(service: Service, key: str, writer: str) -> Tries:
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
            "the key's SHA-256, all that the database holds, as a key",
            "^401",
            service.ask("GET", "/v1/analyses", Authorization=f"Bearer {hashlib.sha256(key.encode()).hexdigest()}"),
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
    found.append(Try(topic, "deleting by X-HTTP-Method-Override", "^200, then 200", _overridden(service, writer)))
    purge = service.ask("DELETE", f"{ANALYSIS}?purge=true", Authorization=f"Bearer {writer}")
    found.append(Try(topic, "deleting everybody's spectra with a key that may write", "^403 insufficient-scope", purge))
    service.command("keys", "revoke", "reader")
    time.sleep(4)  # a key is remembered for three
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
    found.append(Try(topic, "a key's 1,300 requests in a minute", "^429 rate-limited", _greedy(service)))
    found.append(Try(topic, "keys made up one after another", "^429 rate-limited", _made_up(service)))
    database = b"".join(path.read_bytes() for path in service.folder.glob("service.db*"))
    found.append(
        Try(topic, "the key in the database file", "not there", "there" if key.encode() in database else "not there")
    )
    return found


def _overridden(service: Service, writer: str) -> str:
    """Return how a GET that calls itself a DELETE is answered, with a key that may delete, and whether it did."""
    may = {"Authorization": f"Bearer {writer}"}
    path = service.path_of_new("POST", "/v1/analyses", {"model": {"id": "org/model"}}, **may)
    service.ask("POST", f"{path}/cancel", b"", **may)
    first = service.ask("GET", path, X_HTTP_Method_Override="DELETE", **may)
    return f"{first[:3]}, then {service.ask('GET', path, **may)[:3]}"


def _greedy(service: Service) -> str:
    """Return the first refusal of a good key; twice the rate, lest a new window begins meanwhile."""
    key = service.command("keys", "create", "greedy", "--scope", "read").stdout.strip()
    for _ in range(1300):
        answer = service.ask("GET", "/v1/methods", Authorization=f"Bearer {key}")
        if not answer.startswith("200"):
            break
    return answer


def _made_up(service: Service) -> str:
    """Return the first answer that is not 401; twice the rate, lest a new window begins meanwhile."""
    for at in range(1300):
        answer = service.ask("GET", "/v1/analyses", Authorization=f"Bearer alph_{at:043d}")
        if not answer.startswith("401"):
            break
    return answer


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
                ANALYSIS,
                Upgrade="websocket",
                Connection="Upgrade",
                Sec_WebSocket_Key="x",
                Sec_WebSocket_Version="13",
            ),
        ),
    ]
