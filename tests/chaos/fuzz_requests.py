"""Broken tokens and request heads, for chaos.fuzz: how they are broken, and what must hold whatever they are.

A case is a folder with two files: `token`, what the server is given, and `head`, what a client sends. The server is
the real one, its connection included, over a transport in memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import uvicorn
from uvicorn.server import ServerState

from centrobind.errors import DataError, RunError
from centrobind.serve.api import make_api
from centrobind.serve.connection import Connection
from centrobind.serve.guard import LOOPBACK, Bounds, Guard

TOKEN = "mJ8~correct-horse.battery_9"
HEAD = b"GET /api/about HTTP/1.1\r\nHost: localhost:8000\r\nAuthorization: Bearer %s\r\nUser-Agent: x\r\n\r\n"
BITS = ["", " ", "\0", "\r\n", "\n", ";", ",", '"', "\\", "é", "☃", "\ud800", "%00", "x" * 70_000, "\x1b[2J", "a=b", "​"]
VALUES = [
    b"", b" ", b"localhost", b"LOCALHOST:1", b"evil.example", b"localhost@evil.example", b"localhost, evil.example",
    b"[::1]", b"[::1", b"127.0.0.1.", b"chunked", b"identity", b"chunked, chunked", b"0", b"5", b"-5", b"+5", b"5, 5",
    b"99999999999999999999", b"\xb2", b"Bearer ", b"Bearer Bearer x", b"Basic Og==", b"centrobind_token=", b"null",
    b"centrobind_token=\"; \\\"", b"=;;;,\x80\xff", b"100-continue", b"websocket", b"Upgrade", b"http://[", b"keep-alive",
    b"http://localhost:8000", b"multipart/form-data", b"application/json; charset=bogus", b"a" * 70_000, b"\t", b"x\0y",
]  # fmt: skip
NAMES = [
    b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"Authorization", b"Cookie", b"Origin", b"Expect",
    b"Connection", b"Upgrade", b"Content-Type", b"Host ", b"X-\xff", b"", b":", b" folded", b"Sec-WebSocket-Key",
]  # fmt: skip
LINES = [
    b"POST /api/search HTTP/1.1", b"GET /?token= HTTP/1.1", b"GET http://evil.example/api/about HTTP/1.1", b"HEAD / HTTP/1.0",
    b"GET /static/..%2f..%2fetc%2fpasswd HTTP/1.1", b"GET /api/sample/%ff%fe HTTP/1.1", b"GET /api/value/%00/%0d%0a HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"CONNECT localhost:1 HTTP/1.1", b"PRI * HTTP/2.0", b"GET /api/about HTTP/9.9", b"GET", b"\x16\x03\x01",
    b"GET /\x1b[2J HTTP/1.1", b"FOO /api/about HTTP/1.1", b"GET /?" + b"a&" * 30_000 + b" HTTP/1.1", b"GET  /  HTTP/1.1",
]  # fmt: skip


def make_sound(folder: Path) -> None:
    """A token that protects, and a request that shows it."""
    folder.mkdir()
    (folder / "token").write_bytes(TOKEN.encode())
    (folder / "head").write_bytes(HEAD % TOKEN.encode())


def break_token(folder: Path, draw: random.Random) -> None:
    """A token cut short, or with something in it, and a request that shows just that."""
    token = TOKEN[: draw.choice([0, 1, 8, 15, 16, 99])]
    for _ in range(draw.randrange(3)):
        at = draw.randrange(len(token) + 1)
        token = token[:at] + draw.choice([*BITS, chr(draw.randrange(128)), chr(draw.randrange(1, 0x3000))]) + token[at:]
    (folder / "token").write_bytes(token.encode("utf-8", "surrogatepass"))
    (folder / "head").write_bytes(HEAD % token.encode("utf-8", "surrogatepass"))


def break_head(folder: Path, draw: random.Random) -> None:
    """Lines of a head replaced, doubled, dropped or added, or its bytes broken."""
    lines = (folder / "head").read_bytes().split(b"\r\n")
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(1, len(lines) - 1)
        how = draw.randrange(7)
        if how == 0:
            lines[0] = draw.choice(LINES)
        elif how == 1 and len(lines) > 4:
            del lines[at]
        elif how == 2:
            lines.insert(at, lines[at])
        elif how == 3:
            lines[at] = lines[at].partition(b":")[0] + b": " + draw.choice(VALUES)
        else:
            lines.insert(at, draw.choice(NAMES) + b": " + draw.choice(VALUES))
    head = bytearray(draw.choice([b"\r\n"] * 8 + [b"\n", b"\r"]).join(lines))
    if draw.random() < 0.2:
        head[draw.randrange(len(head))] = draw.randrange(256)
    (folder / "head").write_bytes(bytes(head) + draw.choice([b"", b"", b"{}", b"0\r\n\r\n", bytes(head)]))


def use_request(folder: Path) -> None:
    """Serve with the token and send the head; RunError where either is refused.

    AssertionError where an answer is a fault of the server's, or goes to a client that did not show the token or
    addressed somebody else.
    """
    token = (folder / "token").read_bytes().decode("utf-8", "surrogatepass")
    head = (folder / "head").read_bytes()
    guard = Guard(_api(), frozenset(LOOPBACK), token, Bounds(receive=0.02, answer=5))
    statuses = asyncio.run(_answered(guard, head))
    assert not set(statuses) & {500, 501, 502}, statuses
    if statuses and statuses[0] < 400:
        assert len(token) >= 16 and (token.encode() in head or quote(token).encode() in head), (
            "came in without the token"
        )
        first = re.split(rb"\r?\n\r?\n", head)[0]
        hosts = [host.lower() for host in re.findall(rb"(?im)^host:[ \t]*([^\r\n]*?)[ \t]*\r?$", first)]
        assert hosts and all(re.fullmatch(rb"(localhost|127\.0\.0\.1|\[::1\])\.?(:\d*)?", host) for host in hosts), (
            hosts
        )
    else:
        raise RunError(f"refused: {statuses}")


@cache
def _api() -> Any:
    """The real handlers over a gallery that has nothing."""

    def nothing(*_: Any, **__: Any) -> Any:
        raise DataError("nothing here")

    return make_api(SimpleNamespace(points=dict, about=dict, describe=nothing, value=nothing, page=None, report=dict))


class Wire(asyncio.Transport):
    """A transport to a client that reads everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.closed = bytearray(), False

    def write(self, data: Any) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _answered(guard: Guard, head: bytes) -> list[int]:
    """The statuses of all answers; whatever the server logs as an error is raised."""
    state, wire, faults = ServerState(), Wire(), []
    watch = logging.Handler(logging.ERROR)
    watch.emit = faults.append  # type: ignore[method-assign]
    config = uvicorn.Config(guard, lifespan="off", ws="none", log_config=None, server_header=False)
    logs = [logging.getLogger(name) for name in ("uvicorn.error", "centrobind.serve")]
    for log in logs:
        log.addHandler(watch)
    try:
        connection = Connection(config, state, {})
        connection.connection_made(wire)
        connection.data_received(head)
        while state.tasks:
            await asyncio.gather(*state.tasks)
        connection.connection_lost(None)
    finally:
        for log in logs:
            log.removeHandler(watch)
    assert not faults, faults[0].getMessage()
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3})", bytes(wire.sent), flags=re.MULTILINE)]
