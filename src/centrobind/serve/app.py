"""Serving: a socket, a guard, the application, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from centrobind.errors import RunError
from centrobind.extras import extra
from centrobind.serve.access import allowed_name, is_everywhere, is_loopback
from centrobind.serve.gallery import Gallery
from centrobind.serve.guard import LOOPBACK, Bounds, Guard

if TYPE_CHECKING:
    from centrobind.serve.connection import Deadlines

CONNECTIONS = 256  # at a time; more are told to come back (503)
STOP_SECONDS = 15  # for requests in flight when the server is told to stop


def needed() -> None:
    """Raises ExtraError if a package of the extra `serve` is not there."""
    for module in ("starlette", "uvicorn", "python_multipart"):
        extra(module, of="serve", to="serving")


def make_app(
    gallery: Gallery,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    allow: Sequence[str] = (),
    bounds: Bounds | None = None,
) -> Guard:
    """The ASGI application for `host`: guarded against other names than its own and, with a token, other people.

    Raises ExtraError without starlette, RunError for an address that others can reach and no token, or a token that
    protects nothing.
    """
    needed()
    from centrobind.serve.api import make_api

    if token is None and not is_loopback(host):
        raise RunError(f"{host} can be reached from other machines; that needs a token")
    names = frozenset(LOOPBACK) | {
        allowed_name(host, "--host"),
        *(allowed_name(name, "--allow-host") for name in allow),
    }
    # Nobody can list the names of this machine: where all of its addresses are listened on, the token has to do.
    return Guard(make_api(gallery), None if is_everywhere(host) and not allow else names, token, bounds or Bounds())


@dataclass(frozen=True)
class Listening:
    """A server whose socket is open already: clients that know its address can connect, and wait until it runs."""

    server: Any  # uvicorn.Server
    listener: socket.socket
    address: str  # with the token, if there is one

    async def run(self) -> None:
        """Answer until `server.should_exit`; what is being answered then is still answered."""
        await self.server.serve(sockets=[self.listener])


def listen(
    gallery: Gallery,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow: Sequence[str] = (),
    bounds: Bounds | None = None,
    deadlines: Deadlines | None = None,
) -> Listening:
    """A server for a gallery; `port` 0 takes a free one; beyond loopback a random token is made if none is given.

    Raises RunError for a port that is taken, a host that is none or a token that does not protect, ExtraError without
    the extra.
    """
    needed()
    import uvicorn

    from centrobind.serve.connection import Connection, Deadlines

    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    app = make_app(gallery, host=host, token=token, allow=allow, bounds=bounds)
    # A body and its answer may take `Bounds.answer`; the connection is there to say so for some seconds more.
    deadlines = deadlines or Deadlines(exchange=(bounds or Bounds()).answer + 30)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=type("Connection", (Connection,), {"deadlines": deadlines}),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,  # addresses hold queries, and the first one the token
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    shown = "localhost" if is_everywhere(host) else allowed_name(host, "--host")
    secret = "" if token is None else f"?token={quote(token, safe='')}"
    address = f"http://{shown}:{listener.getsockname()[1]}/{secret}"
    return Listening(uvicorn.Server(config), listener, address)


def serve(gallery: Gallery, *, browse: bool = False, say: Callable[[str], Any] = print, **options: Any) -> None:
    """Serve until Ctrl-C or SIGTERM, and then return; options and errors as for `listen`."""
    listening = listen(gallery, **options)
    # uvicorn stops in order and then raises the signal again; that it should end here, quietly.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        say(f"{gallery.name}: {listening.address}\nCtrl-C stops it.")
        if browse:
            webbrowser.open(listening.address)
        asyncio.run(listening.run())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens from here on: whoever reads the printed address can use it at once."""
    listener = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise RunError(f"cannot listen on {host} port {port} ({error}); choose another with --port") from None
    return listener
