"""A run on disk: one folder that holds all a run was, is and found.

config.yaml                  what was asked for, every default spelled out
metrics.jsonl                one JSON object a line, by step
last.safetensors             to go on from; previous.safetensors is the one before
best.safetensors             best on validation so far
binder.safetensors           the result, without the optimizer
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from centrobind.binder.checkpoint import read_tensors, write_tensors
from centrobind.errors import CentrobindWarning, CheckpointError, RunError
from centrobind.files import not_written, write_atomically

FREE = ("shard",)  # settings that do not change what a run computes, and may differ when it goes on


class RunFolder:
    """Where a run writes. Opening one that already holds a run is refused unless `resume` or `replace`."""

    def __init__(self, path: str | Path, *, resume: bool = False, replace: bool = False):
        self.path = Path(path)
        self.log_path = self.path / "metrics.jsonl"
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; expected a folder for the run")
        # A kill while the very first file was written leaves a .partial, and that is no work of anyone's.
        held = self.path.is_dir() and any(file.suffix != ".partial" for file in self.path.iterdir())
        if held and not (self.path / "config.yaml").is_file():
            raise RunError(f"{self.path} holds something that is not a run; choose another folder")
        if held and not (resume or replace):
            raise RunError(
                f"{self.path} already holds a run; choose another folder, "
                "go on with --resume, or start over with --force"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(not_written(self.path, error)) from None
        if replace and not resume:
            for name in ("metrics.jsonl", "nonfinite.json", "nonfinite", "last", "fresh", "previous", "best", "binder"):
                (self.path / (name if "." in name else f"{name}.safetensors")).unlink(missing_ok=True)

    def write_config(self, text: str, *, same: bool = False) -> None:
        """Write config.yaml; with `same`, RunError if it differs (but in FREE) from what is there already."""
        path = self.path / "config.yaml"
        if same and path.is_file():
            before = path.read_text(encoding="utf-8")
            differ = sorted(set(text.splitlines()) ^ set(before.splitlines()))
            if differ := [line for line in differ if line.partition(":")[0].strip() not in FREE]:
                raise RunError(f"{self.path}: --resume needs the settings of the run; these lines differ: {differ}")
        write_atomically(path, text.encode())

    def log(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record) + "\n"
        try:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            said = not_written(self.log_path, error, len(line))
            raise RunError(f"{said}; the last checkpoint is intact. Make room, then go on with --resume") from None

    def read_log(self) -> list[dict[str, Any]]:
        return read_log(self.log_path)

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps that will be done again."""
        if not self.log_path.is_file():
            return
        kept = [record for record in self.read_log() if record["step"] <= step]
        write_atomically(self.log_path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def write_last(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The newest checkpoint; the one before it stays until this one is safe on the disk."""
        last, fresh = self.path / "last.safetensors", self.path / "fresh.safetensors"
        write_tensors(fresh, tensors, state)
        if last.exists():
            os.replace(last, self.path / "previous.safetensors")
        os.replace(fresh, last)

    def read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None if there is none yet.

        CheckpointError if there are checkpoints but every one is damaged.
        """
        trouble = []
        for name in ("last", "previous"):
            path = self.path / f"{name}.safetensors"
            if path.exists():
                try:
                    found = read_tensors(path)
                except CheckpointError as error:
                    trouble.append(str(error))
                    continue
                if trouble:
                    step = found[1].get("step")
                    warnings.warn(f"{trouble[0]}\ngoing on from {path}, step {step}", CentrobindWarning, stacklevel=2)
                return found
        if trouble:
            raise CheckpointError("no checkpoint to go on from:\n" + "\n".join(trouble))
        return None

    def write_json(self, name: str, value: Any) -> None:
        write_atomically(self.path / name, (json.dumps(value, indent=1) + "\n").encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a crash is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records
