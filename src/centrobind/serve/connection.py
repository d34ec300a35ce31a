"""A connection of the server, with a deadline for each of its stages, whoever is at the other end.

uvicorn waits without end for the head of a request, and for a client that does not read its answer; a few hundred such
connections, which need no token, would keep everybody else out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class Deadlines:
    """Seconds that each stage of a connection may take; past them it is cut off."""

    head: float = 10.0  # until the head of a request is complete, the second and every later one too
    exchange: float = 90.0  # from there until the answer is written: beyond what `Bounds` give to body and answer
    reading: float = 60.0  # until the client has read what was written


class Connection(H11Protocol):
    """One connection at a time: waiting for a head, in an exchange, or being read, each with its deadline."""

    deadlines = Deadlines()
    _deadline: asyncio.TimerHandle | None = None
    _stage = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow(answered=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._follow()

    def _follow(self, answered: bool = False) -> None:
        """Enter the stage that the connection is in now; one that continues keeps its deadline."""
        if self.cycle is not None and not self.cycle.response_complete:
            stage = "exchange"
        elif self.transport.get_write_buffer_size() > 0:
            stage = "reading"
        else:
            stage = "head"
        if answered or stage != self._stage:
            self._enter(stage)

    def _enter(self, stage: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._stage = stage
        self._deadline = self.loop.call_later(getattr(self.deadlines, stage), self._cut_off)

    def _cut_off(self) -> None:
        """`close` would wait for a client to read what it was sent; `abort` does not."""
        self.transport.abort()
