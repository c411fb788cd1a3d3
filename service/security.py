"""Who may ask what: how many at once, host names, origins, sizes, API keys, rates; and the headers that browsers obey.

One middleware in plain ASGI, awaited but for a read of the store every few seconds: a synchronous dependency would
cost half of the throughput, and even an awaited one a fifth of a short answer. What it refuses never reaches a route.
Every path but those of ``PUBLIC`` needs a key: with the scope ``read`` to see, ``write`` to change. A route that needs
``admin`` says so itself, by ``Depends(require("admin"))``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alphalloc.errors import AlphallocError

from .keys import MAX_REMEMBERED, OPEN, Caller, KeyRing, KeyStore
from .problems import ProblemError, problem, responses
from .settings import Settings
from .statuses import status_of

__all__ = ["PAGE_POLICY", "REPORT_POLICY", "describe", "install", "is_loopback", "require"]

PUBLIC = frozenset({"/", "/healthz", "/readyz", "/openapi.json", "/docs"})
PUBLIC_FOLDERS = ("/static/", "/docs/", "/v1/schemas/")
PROBES = frozenset({"/healthz", "/readyz"})  # asked for by address, and they tell nothing worth a rebinding
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READING_POSTS = frozenset({"/v1/schedules/validate", "/v1/allocations"})  # questions; the latter asks for more itself
BODY_SECONDS = 30.0  # chosen here: 1 MiB in that time is 35 KB/s
MAX_HEADERS = 100  # lines; chosen here
MAX_UNDER_WAY = 512  # requests of a process that were not answered yet; chosen here
NETWORK_BITS = 64  # of IPv6: one customer is given at least so much, and has 2**64 addresses in it (RFC 6177)
CORS_TAKES = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Prefer")

# Answers are data. The page and the report say their own policy; a browser obeys whichever comes first here.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
REPORT_POLICY = (  # its scripts are inline, so it runs in an origin of its own and may load nothing
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'none'"
)
_HEADERS = [
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_DATA_POLICY = (b"content-security-policy", DATA_POLICY.encode())
_PAGE_POLICY = (b"content-security-policy", PAGE_POLICY.encode())


def install(app: FastAPI, settings: Settings, store: KeyStore | None) -> None:
    """Put the checks in front of ``app``. Call it after the routes and before the middleware of request ids, which
    must lie outside of it. ``store`` None means that there are no keys at all.
    """
    app.add_middleware(SecurityMiddleware, settings=settings, store=store)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=list(CORS_TAKES),
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-Id"],
        )


def require(scope: Literal["read", "write", "admin"]) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """Return a dependency that raises ProblemError 403 when the request's key does not include ``scope``."""

    async def check(request: Request) -> None:
        check_scope(caller_of(request), scope)

    return check


def caller_of(request: Request) -> Caller:
    """Return who asks; without keys anyone, who may do everything."""
    caller: Caller = getattr(request.state, "caller", OPEN)
    return caller


def counted_as(request: Request) -> str | None:
    """Return whom a request counts for: its key's name, without keys its address; None for this machine's own user, if
    nobody else reaches the service: who would be kept from what?
    """
    return _counted_as(request.scope, caller_of(request), is_loopback(request.app.state.settings.host))


def check_scope(caller: Caller, scope: str) -> None:
    """Raise ProblemError 403 when ``caller`` has not ``scope``."""
    if scope not in caller.scopes:
        raise ProblemError(
            403,
            "insufficient-scope",
            f"this needs a key with the scope {scope}; {caller.name!r} has {', '.join(sorted(caller.scopes))}",
            {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``. A name other than localhost is taken for reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def describe(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document how requests are authenticated, and what is answered before any route is asked."""
    components = document.setdefault("components", {})
    components.setdefault("securitySchemes", {})["key"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `alph_...`; needed as soon as the service has one.",
    }
    for path, operations in document["paths"].items():
        guarded = not _is_public(path)
        refusals = responses(401, 403, 429, 431, 503) if guarded else {} if path in PROBES else responses(503)
        for operation in operations.values():
            if isinstance(operation, dict) and "responses" in operation:
                if guarded:
                    operation["security"] = [{"key": []}, {}]
                for status, entry in refusals.items():
                    operation["responses"].setdefault(str(status), entry)


class SecurityMiddleware:
    """Refuses in this order: too many at once, sizes, host, foreign origins, missing or unknown keys, a rate passed."""

    def __init__(self, app: ASGIApp, settings: Settings, store: KeyStore | None) -> None:
        self.app = app
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._origins = frozenset(settings.cors_origins)
        self._max_body, self._max_headers = settings.max_body_bytes, settings.max_header_bytes
        self._local = is_loopback(settings.host)
        self._keys = KeyRing(store, closed=not self._local and not settings.insecure_no_auth)
        self._rate = parse(settings.rate_limit) if settings.rate_limit else None
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._refused = FixedWindowRateLimiter(MemoryStorage())  # keys that were, by address
        self._under_way = 0
        self._block = _block(self._rate.amount) if self._rate else 1
        self._granted: dict[str, tuple[int, float]] = {}  # requests taken from the window ahead, and until when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # there are no websockets
                await self.app(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        send = _with_headers(scope, self._set_aside(send))
        try:
            self._check_room(scope["path"])
            headers = self._headers(scope)
            self._check_host(scope["path"], headers)
            self._check_origin(scope["method"], headers)
            caller = await self._caller(scope, headers)
            scope["state"]["caller"] = caller
            reads = scope["method"] in SAFE_METHODS or scope["path"] in READING_POSTS
            check_scope(caller, "read" if reads else "write")
            self._check_rate(scope, caller)
        except ProblemError as exc:
            refusal = problem(Request(scope), exc.status_code, exc.code, exc.detail, headers=dict(exc.headers or {}))
            await refusal(scope, receive, send)
            return
        except AlphallocError as exc:  # the store cannot be read: nobody is let in on a guess
            refusal = problem(Request(scope), status_of(exc), exc.code, str(exc), headers={"Retry-After": "5"})
            await refusal(scope, receive, send)
            return
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        await self.app(scope, _with_deadline(receive) if has_body else receive, send)

    def _set_aside(self, send: Send) -> Send:
        """Return ``send`` during which the request is not under way: it waits for nobody but its own client, who may
        take its time (slow_clients says how much).
        """

        async def send_set_aside(message: Message) -> None:
            self._under_way -= 1
            try:
                await send(message)
            finally:
                self._under_way += 1

        return send_set_aside

    def _check_room(self, path: str) -> None:
        """Raise ProblemError 503 when too many requests are under way; the probes are answered even so."""
        if self._under_way > MAX_UNDER_WAY and path not in PROBES:
            detail = f"{MAX_UNDER_WAY} requests are under way here already; try again in a moment"
            raise ProblemError(503, "too-busy", detail, {"Retry-After": "1"})

    def _headers(self, scope: Scope) -> dict[bytes, bytes]:
        """Return the headers by name. Raises ProblemError 431 for too much, 400 for a key or host given twice, and 413
        for a body that announces itself as too large.
        """
        given = scope["headers"]
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in given)
        if size > self._max_headers or len(given) > MAX_HEADERS:
            detail = f"expected at most {MAX_HEADERS} headers and {self._max_headers} bytes of them with the path"
            raise ProblemError(431, "headers-too-large", f"{detail}, found {len(given)} and {size}")
        headers = dict(given)
        if len(headers) != len(given):
            for name in (b"authorization", b"host", b"content-type", b"content-length", b"origin"):
                if name in headers and sum(one == name for one, _ in given) > 1:
                    raise ProblemError(400, "malformed", f"the header {name.decode()} is given twice")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > self._max_body):
            raise ProblemError(413, "body-too-large", f"the body is larger than {self._max_body} bytes")
        return headers

    def _check_host(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raise ProblemError 421 for a name that is not ours: a page elsewhere that let its name point here."""
        host = _host(headers)
        if host.rpartition(":")[0] not in self._hosts and host not in self._hosts and "*" not in self._hosts:
            if path in PROBES:
                return
            detail = f"the host {host[:100]!r} is not served here; --allowed-host adds one"
            raise ProblemError(421, "host-not-allowed", detail)

    def _check_origin(self, method: str, headers: dict[bytes, bytes]) -> None:
        """Raise ProblemError 403 when a page of another origin wants something changed."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or method in SAFE_METHODS or origin in self._origins or "*" in self._origins:
            return
        try:
            same = urlsplit(origin).netloc.lower() == _host(headers)
        except ValueError:
            same = False
        if not same:
            detail = f"pages of {origin[:100]!r} may change nothing here; --cors-origin allows one"
            raise ProblemError(403, "origin-not-allowed", detail)

    async def _caller(self, scope: Scope, headers: dict[bytes, bytes]) -> Caller:
        """Return who asks. Raises ProblemError 401, 429 for one more unknown key after too many of them from the same
        address, and StorageError when the keys cannot be read.
        """
        if _is_public(scope["path"]) or not await self._keys.wanted():
            return OPEN
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            key, who = key.strip(), _address(scope)
            if self._rate is not None and not self._keys.remembers(key) and not self._refused.test(self._rate, who):
                raise _rate_limited(self._refused, self._rate, who, "with unknown keys from")
            caller = await self._keys.caller(key)
            if caller is not None:
                return caller
            if self._rate is not None:
                self._refused.hit(self._rate, who)
            detail = "the key is unknown or revoked; `alphalloc keys create` on the service's machine makes one"
        else:
            detail = "expected the header Authorization: Bearer alph_..."
        raise ProblemError(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})

    def _check_rate(self, scope: Scope, caller: Caller) -> None:
        """Raise ProblemError 429 beyond the rate: of a key, or of an address where there are no keys."""
        who = _counted_as(scope, caller, self._local)
        if self._rate is None or who is None or (not caller.keyed and _is_public(scope["path"])):
            return
        left, until = self._granted.get(who, (0, 0.0))
        if left > 0 and time.time() < until:
            self._granted[who] = (left - 1, until)
        else:
            self._take(self._rate, who)

    def _take(self, rate: RateLimitItem, who: str) -> None:
        """Take the next requests of ``who`` from its window: up to a sixtieth of it at once, as the library's count
        costs as much as the rest of this middleware. Raises ProblemError 429.
        """
        hit = self._limiter.hit(rate, who, cost=self._block)
        if not hit:
            raise _rate_limited(self._limiter, rate, who, "for")
        if len(self._granted) >= MAX_REMEMBERED:
            self._granted.clear()
        self._granted[who] = (self._block - 1, self._limiter.get_window_stats(rate, who).reset_time)


def _rate_limited(limiter: FixedWindowRateLimiter, rate: RateLimitItem, who: str, by: str) -> ProblemError:
    """Return the error for ``who``, whose window of ``limiter`` is used up."""
    wait = max(1, int(limiter.get_window_stats(rate, who).reset_time - time.time()) + 1)
    detail = f"more than {rate} {by} {who!r}; try again in {wait} s"
    return ProblemError(429, "rate-limited", detail, {"Retry-After": str(wait)})


def _block(amount: int) -> int:
    """Return the largest divisor of ``amount`` up to a sixtieth of it; only a divisor uses the whole window."""
    return next(size for size in range(max(1, amount // 60), 0, -1) if amount % size == 0)


def _counted_as(scope: Scope, caller: Caller, local: bool) -> str | None:
    return caller.name if caller.keyed else None if local else _address(scope)


def _address(scope: Scope) -> str:
    return _network(str((scope.get("client") or ("",))[0]))


@lru_cache(MAX_REMEMBERED)
def _network(host: str) -> str:
    """Return what an address counts as: of IPv6 its network, else one client would be 2**64; of IPv4, also written as
    IPv6, itself; and what is no address as it is.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), NETWORK_BITS), strict=False))


def _host(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"host", b"").decode("latin-1").lower()


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def _with_headers(scope: Scope, send: Send) -> Send:
    """Return ``send`` that adds the headers of every answer; a policy that the answer brought stays.

    What anybody may cache is for the caller alone where there are keys: a shared cache asks for none.
    """

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            names = dict(headers)
            headers.extend(pair for pair in _HEADERS if pair[0] not in names)
            if b"content-security-policy" not in names:
                is_page = names.get(b"content-type", b"").startswith(b"text/html")
                headers.append(_PAGE_POLICY if is_page else _DATA_POLICY)
            if scope["state"].get("caller", OPEN).keyed and names.get(b"cache-control", b"").startswith(b"public"):
                headers.remove((b"cache-control", names[b"cache-control"]))
                headers.append((b"cache-control", names[b"cache-control"].replace(b"public", b"private", 1)))
        await send(message)

    return send_with_headers


def _with_deadline(receive: Receive) -> Receive:
    """Return ``receive`` that gives the whole body BODY_SECONDS from now. Raises ProblemError 408."""
    until = time.monotonic() + BODY_SECONDS
    whole = False

    async def receive_in_time() -> Message:
        nonlocal whole
        if whole:  # what comes after the body is the news that the client has gone
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), until - time.monotonic())
        except TimeoutError as exc:
            detail = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise ProblemError(408, "request-timeout", detail, {"Connection": "close"}) from exc
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return receive_in_time
