"""What stands between a network and the handlers: who may ask, how much, how long, and what an answer must say.

Plain ASGI around the whole application, so that no route can be forgotten.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from centrobind.serve.access import COOKIE, checked_token, host_name, knows_token

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

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
# Twice with two values, one program may decide by the first and the next one by the last.
DECIDING = frozenset({"authorization", "content-length", "content-type", "host", "origin", "transfer-encoding"})
CLOSED_AFTER = frozenset({400, 401, 403, 408, 413, 421})  # the rest of the request is not read, nor another one
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
    pace: float = 2.0  # seconds for another SMALL bytes of a body that others may wait for
    answer: float = 60.0  # seconds for everything


SMALL = 2**16
HEALTH = "/healthz"  # for whoever watches over the server: it says nothing but that it runs, under any name


@dataclass
class Guard:
    """Wraps an ASGI application; see `Bounds` for the limits. Everything it refuses is JSON with an `error`.

    `hosts`: names as `host_name` has them that a request may be addressed to; any other one is DNS rebinding or a
    mistake. None allows all, for servers that listen on every address. `token`: what a client has to know, None =
    nothing; RunError for one that does not protect.
    """

    app: App
    hosts: frozenset[str] | None
    token: str | None = None
    bounds: Bounds = field(default_factory=Bounds)
    _uploads: asyncio.Semaphore | None = None

    def __post_init__(self) -> None:
        if self.token is not None:
            checked_token(self.token)

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
                if scope["path"] != HEALTH:
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
            log.exception("%r", f"{scope['method']} {scope['path']}")  # quoted: a path can hold a terminal's commands
            if not started:
                await say(answer, 500, FAULT)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body before the handler runs, so that a slow or endless one costs nothing but its own time."""
        announced = _headers(scope).get("content-length", "0")
        size = int(announced) if announced.isdecimal() and announced.isascii() and len(announced) < 20 else 2**63
        if size > self.bounds.bytes:
            raise Refused(413, f"a body of {size:,} bytes; at most {self.bounds.bytes:,} are taken")
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self.bounds.receive):
                    body = await self._body(receive, held)
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {self.bounds.receive:.0f} seconds") from None
            await self.app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive, held: AsyncExitStack) -> bytes:
        """All of a body. One of more than SMALL bytes takes a place among `uploads`, in `held`, and keeps a pace.

        The place is taken when the bytes are there and not when they are announced: clients that announce much and
        send nothing would keep all others waiting.
        """
        body = bytearray()
        if self._uploads is None:
            self._uploads = asyncio.Semaphore(self.bounds.uploads)
        loop = asyncio.get_running_loop()
        until: float | None = None  # SMALL more bytes have to be there by then
        while True:
            before = len(body) // SMALL
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"less than {SMALL:,} bytes of the body in {self.bounds.pace:.0f} seconds") from None
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client went away")
            body += message.get("body", b"")
            if len(body) > self.bounds.bytes:
                raise Refused(413, f"a body of more than the {self.bounds.bytes:,} bytes that are taken")
            if len(body) > SMALL and until is None:
                await held.enter_async_context(self._uploads)
                until = loop.time() + self.bounds.pace
            elif until is not None and len(body) // SMALL > before:
                until = loop.time() + self.bounds.pace
            if not message.get("more_body", False):
                return bytes(body)

    def _check(self, scope: Scope) -> None:
        headers = _headers(scope)
        host = headers.get("host", "")
        if self.hosts is not None and host_name(host) not in self.hosts:
            raise Refused(
                421, f"addressed to {host[:80]!r}; this server answers to {sorted(self.hosts)}, see --allow-host"
            )
        origin = headers.get("origin")
        if scope["method"] != "GET" and origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Refused(403, f"sent by a page of {origin[:80]!r}; only pages of this server may")
        asked = _asked(scope).get("token", []) if scope["path"] == "/" else []
        if self.token is not None and not knows_token(self.token, headers, asked):
            raise Refused(
                401,
                "expected the token: open the address that `centrobind serve` printed, "
                "or send the header Authorization: Bearer TOKEN",
            )

    def _login(self, scope: Scope) -> str | None:
        """Where the browser goes without the token in the address, once it is in a cookie."""
        if self.token is not None and scope["path"] == "/" and "token" in _asked(scope):
            return "/"
        return None


def _asked(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"))


def _headers(scope: Scope) -> dict[str, str]:
    """The headers of a request; Refused (400) for those that two programs could read in two ways."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in headers and key in DECIDING:
            raise Refused(400, f"the header {key} is there twice")
        headers[key] = value.decode("latin-1")
    if "content-length" in headers and "transfer-encoding" in headers:
        raise Refused(400, "content-length together with transfer-encoding: where the body ends is not clear")
    return headers


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
    if status in CLOSED_AFTER:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(send: Send, location: str, token: str) -> None:
    cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
    headers = [(b"location", location.encode()), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
