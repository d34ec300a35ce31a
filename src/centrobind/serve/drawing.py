"""A map that is drawn while its gallery is served already: how far it is, and the map once it is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from centrobind.errors import CentrobindError
from centrobind.report.atlas import STEPS, Atlas

log = logging.getLogger("centrobind.serve")


class Drawing:
    """Draws in a thread of its own, which ends with the program; `draw` is called with what to tell of each step."""

    def __init__(self, draw: Callable[[Callable[[int], None]], Atlas]):
        self.done = 0.0  # the share that is drawn
        self._future: Future[Atlas] = Future()
        self._thread = threading.Thread(target=self._run, args=(draw,), name="map", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, atlas: Atlas) -> Drawing:
        """One that is done."""
        return cls(lambda _: atlas).wait()

    def wait(self) -> Drawing:
        """This one, once it is done; raises what drawing it raised."""
        self.atlas()
        return self

    def _run(self, draw: Callable[[Callable[[int], None]], Atlas]) -> None:
        try:
            self._future.set_result(draw(self._step))
        except BaseException as error:
            self._future.set_exception(error)
            if not isinstance(error, CentrobindError):
                log.exception("the map")

    def _step(self, step: int) -> None:
        self.done = step / STEPS

    @property
    def ready(self) -> bool:
        """Whether the map is there."""
        return self._future.done() and self._future.exception() is None

    @property
    def fault(self) -> str | None:
        """Why there will be no map, if there will be none."""
        error = self._future.exception() if self._future.done() else None
        return None if error is None else str(error) if isinstance(error, CentrobindError) else type(error).__name__

    def atlas(self) -> Atlas:
        """The map; waits for it, and raises what drawing it raised."""
        return self._future.result()
