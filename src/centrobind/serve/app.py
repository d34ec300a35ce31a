"""Serving: a socket, a guard, the application, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import signal
import socket
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from centrobind.errors import RunError
from centrobind.extras import extra
from centrobind.serve.gallery import Gallery
from centrobind.serve.guard import LOOPBACK, Bounds, Guard

CONNECTIONS = 256  # at a time; more are told to come back (503)
HEAD_SECONDS = 10.0  # for a new connection to say what it wants
EVERYWHERE = ("0.0.0.0", "::")
STOP_SECONDS = 15  # for requests in flight when the server is told to stop


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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

    Raises ExtraError without starlette, RunError for an address that others can reach and no token.
    """
    needed()
    from centrobind.serve.api import make_api

    if token is None and not is_loopback(host):
        raise RunError(f"{host} can be reached from other machines; that needs a token")
    names = frozenset(LOOPBACK) | {host, *allow}
    # Nobody can list the names of this machine: for who listens on all of them, the token has to do.
    return Guard(make_api(gallery), None if host in EVERYWHERE and not allow else names, token, bounds or Bounds())


@dataclass(frozen=True)
class Listening:
    """A server whose socket is open already: who knows its address can connect, and waits until it runs."""

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
) -> Listening:
    """A server for a gallery; `port` 0 takes a free one, and beyond loopback a token is made up where none is given.

    Raises RunError for a port that is taken, ExtraError without the extra.
    """
    needed()
    import uvicorn

    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    app = make_app(gallery, host=host, token=token, allow=allow, bounds=bounds)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=_protocol(),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,  # addresses hold queries, and the first one the token
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    shown = "localhost" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/" + ("" if token is None else f"?token={token}")
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
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise RunError(f"cannot listen on {host} port {port} ({error}); choose another with --port") from None
    return listener


def _protocol() -> type:
    """uvicorn's HTTP, that hangs up on who connects and says nothing: by itself it would wait for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """With a limit for the first request's head."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(HEAD_SECONDS, self._hang_up_on_the_silent)

        def _hang_up_on_the_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Protocol
