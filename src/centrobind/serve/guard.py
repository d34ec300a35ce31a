"""What stands between a network and the handlers: who may ask, how much, how long, and what an answer must say.

Plain ASGI around the whole application, so that no route can be forgotten.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "centrobind_token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Scripts and styles only from our own files: a text or a label of somebody's data can never become code.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
FAULT = "a fault of the server's; its log says which"
log = logging.getLogger("centrobind.serve")


class Refused(Exception):
    """A request that is not served: the status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Bounds:
    """How much one client may ask for, and all together."""

    bytes: int = 2**24  # of a request's body
    uploads: int = 8  # bodies of more than SMALL bytes held at a time, others wait
    receive: float = 20.0  # seconds for a body to arrive, waiting included
    answer: float = 60.0  # seconds for everything


SMALL = 2**16


@dataclass
class Guard:
    """Wraps an ASGI application; see `Bounds` for the limits. Everything it refuses is JSON with an `error`.

    `hosts`: names, without port, that a request may be addressed to; any other one is DNS rebinding or a mistake. None
    allows all, for who listens on every address. `token`: what a client has to know, None = nothing.
    """

    app: App
    hosts: frozenset[str] | None
    token: str | None = None
    bounds: Bounds = field(default_factory=Bounds)
    _uploads: asyncio.Semaphore | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name.decode().lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            async with asyncio.timeout(self.bounds.answer):
                self._check(scope)
                if (location := self._login(scope)) is not None:
                    await _redirect(answer, location, self.token or "")
                    return
                await self._with_body(scope, receive, answer)
        except Refused as refused:
            if not started:
                await say(answer, refused.status, refused.reason)
        except TimeoutError:
            if started:
                raise  # the client does not read: the connection is closed
            await say(answer, 503, f"no answer within {self.bounds.answer:.0f} seconds; ask for less, or later")
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not started:
                await say(answer, 500, FAULT)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body before the handler runs, so that a slow or endless one costs nothing but its own time."""
        headers = _headers(scope)
        announced = headers.get("content-length", "0" if "transfer-encoding" not in headers else str(2**63))
        size = int(announced) if announced.isdecimal() else 2**63
        if "content-length" in headers and size > self.bounds.bytes:
            raise Refused(413, f"a body of {size:,} bytes; at most {self.bounds.bytes:,} are taken")
        if self._uploads is None:
            self._uploads = asyncio.Semaphore(self.bounds.uploads)
        large = size > SMALL
        try:
            async with asyncio.timeout(self.bounds.receive):
                if large:
                    await self._uploads.acquire()
                try:
                    body = await self._body(receive)
                except BaseException:
                    if large:
                        self._uploads.release()
                    raise
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self.bounds.receive:.0f} seconds") from None
        try:
            await self.app(scope, _replayed(body, receive), send)
        finally:
            if large:
                self._uploads.release()

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client went away")
            body += message.get("body", b"")
            if len(body) > self.bounds.bytes:
                raise Refused(413, f"a body of more than the {self.bounds.bytes:,} bytes that are taken")
            if not message.get("more_body", False):
                return bytes(body)

    def _check(self, scope: Scope) -> None:
        headers = _headers(scope)
        host = headers.get("host", "")
        if self.hosts is not None and _without_port(host) not in self.hosts:
            raise Refused(
                421, f"addressed to {host[:80]!r}; this server answers to {sorted(self.hosts)}, see --allow-host"
            )
        origin = headers.get("origin")
        if scope["method"] != "GET" and origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, f"sent by a page of {origin[:80]!r}; only pages of this server may")
        if self.token is not None and not self._knows(scope, headers):
            raise Refused(
                401,
                "expected the token: open the address that `centrobind serve` printed, "
                "or send the header Authorization: Bearer TOKEN",
            )

    def _knows(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        said = [headers.get("authorization", "").removeprefix("Bearer "), "" if cookie is None else cookie.value]
        said += _asked(scope).get("token", []) if scope["path"] == "/" else []
        return any(hmac.compare_digest(one.encode(), self.token.encode()) for one in said)

    def _login(self, scope: Scope) -> str | None:
        """Where to go on without the token in the address, once it is in a cookie."""
        if self.token is not None and scope["path"] == "/" and "token" in _asked(scope):
            return "/"
        return None


def _asked(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"))


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _without_port(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0].lower()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What `receive` would have said, from memory; then whatever comes later, such as the client leaving."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict[str, Any]:
        return pending.pop() if pending else await receive()

    return again


async def say(send: Send, status: int, reason: str) -> None:
    """An error as every error is said: JSON with the reason."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(send: Send, location: str, token: str) -> None:
    cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
    headers = [(b"location", location.encode()), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
