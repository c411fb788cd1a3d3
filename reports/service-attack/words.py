"""Tries with text that somebody reads later: logs, headers, pages."""

from __future__ import annotations

from attacked import QUESTION, Service, Tries, Try


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
        *(
            Try(topic, f"X-Request-Id: a{sign!r}Set-Cookie: b", "^(400|200), not sent back", _echoed(service, sign))
            for sign in ("\n", "\r", "\x0b", "\x85")
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


def _echoed(service: Service, sign: str) -> str:
    """Return the status, and whether what follows ``sign`` in a header comes back as a header."""
    sent = f"GET /v1/methods HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: a{sign}Set-Cookie: b\r\n\r\n".encode(
        "latin-1"
    )
    answer = service.head(sent).decode("latin-1")
    status = answer.partition(" ")[2][:3]
    return f"{status}, {'sent back' if 'set-cookie: b' in answer.lower().splitlines() else 'not sent back'}"
