"""What a run shows and writes while it trains: progress, the log, TensorBoard, checkpoints. Only the leader has any."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from centrobind.progress import Watch, silent
from centrobind.training.config import TrainConfig
from centrobind.training.run_folder import RunFolder


class Journal:
    """The record of one run. Without a folder it only shows progress; with `silent`, it does nothing."""

    def __init__(self, run: RunFolder | None = None, watch: Watch = silent, settings: TrainConfig | None = None):
        self.run, self.watch = run, watch
        self._board = _tensorboard(run) if settings is not None and settings.tensorboard else None
        self._began = time.monotonic()

    def last_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest sound one in the folder, to continue from."""
        return None if self.run is None else self.run.read_last()

    def start(self, step: int) -> None:
        """Training is about to continue after `step` steps: what was logged of later ones will come again."""
        if self.run is not None:
            self.run.forget_after(step)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since training started, to the millisecond."""
        return round(time.monotonic() - self._began, 3)

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """One line of numbers, if there are any."""
        if not record or self.run is None:
            return
        self.run.log({"step": step, **record})
        if self._board is not None:
            for key, value in record.items():
                self._board.add_scalar(key, value, step)

    def checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the newest checkpoint."""
        if self.run is not None:
            self.run.write_last(tensors, state)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()


def _tensorboard(run: RunFolder | None) -> Any:
    """A SummaryWriter, if TensorBoard is installed and there is a folder to write to."""
    if run is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run.path / "tensorboard"))
