"""Whether training steps are finite, without waiting for the device at each of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LOOK_EVERY = 10  # steps on a GPU: reading one number from it waits for all that it has been given to do


def look_every(device: torch.device, *, divided: bool) -> int:
    """Steps between looks: on a CPU there is nothing to wait for, and divided towers know no found_inf."""
    return 1 if device.type == "cpu" or divided else LOOK_EVERY


class FiniteSteps:
    """Notes every step, and looks at what it noted every few.

    On a GPU the first step that is not finite, and all after it, change nothing: AdamW leaves out its update where
    `found_inf` is set. So whoever looks later finds the weights as they were before that step, and can do it again.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, every: int):
        self.every = every
        self.loss = math.nan  # of the step that was looked at last
        self.broken: int | None = None  # the first step that is not finite, once looked at
        self.rows: dict[int, np.ndarray] = {}  # of the steps since then
        self._place = torch.full((), -1.0, device=device)  # of the first one among them
        self._latest = torch.zeros((), device=device)
        if every > 1:
            optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
        self._optimizer = optimizer

    def note(self, step: int, loss: Tensor, norm: Tensor, rows: np.ndarray) -> bool:
        """Before the update of a step: whether it may be done, as far as is known. `rows` of the data it is from."""
        broken = ~torch.isfinite(loss + norm) & (self._place < 0)
        self._place = torch.where(broken, float(len(self.rows)), self._place)
        self._latest = loss.to(self._place.dtype)
        self.rows[step] = rows
        if self.every > 1:
            self._optimizer.found_inf.copy_(self._place >= 0)  # type: ignore[attr-defined]
        if len(self.rows) >= self.every:
            self.look()
        return self.broken is None or self.every > 1

    def look(self) -> None:
        """Wait for the device, and learn of the steps noted so far."""
        if self.broken is not None or not self.rows:
            return
        place, self.loss = torch.stack([self._place, self._latest]).tolist()
        if place >= 0:
            self.broken = list(self.rows)[int(place)]
        else:
            self.rows.clear()
