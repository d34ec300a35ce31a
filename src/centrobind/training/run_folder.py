"""A run on disk: one folder that holds all a run was, is and found.

config.yaml                  what was asked for, every default spelled out
metrics.jsonl                one JSON object a line, by step
last.safetensors             to go on from; previous.safetensors is the one before
best.safetensors             best on validation so far
binder.safetensors           the result, without the optimizer
lock                         held by the process that writes here
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from torch import Tensor

from centrobind.binder.checkpoint import read_tensors, write_tensors
from centrobind.errors import CentrobindWarning, CheckpointError, ConfigError, RunError
from centrobind.files import lock_of, not_written, write_atomically
from centrobind.training.config import check_config

FREE = ("shard", "device")  # settings that do not change what a run computes, and may differ when it continues
LOCK = "lock"


class RunFolder:
    """Where a run writes. Opening one that already holds a run is refused unless `resume` or `replace`.

    Only one process at a time can have it open, until it closes it (`with`) or ends, however that comes about.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, replace: bool = False):
        self.path = Path(path)
        self.log_path = self.path / "metrics.jsonl"
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; expected a folder for the run")
        # A kill while the very first file was written leaves a .partial, and that is no work of anyone's.
        held = self.path.is_dir() and any(
            file.suffix != ".partial" and file.name != LOCK for file in self.path.iterdir()
        )
        if held and not (self.path / "config.yaml").is_file():
            raise RunError(f"{self.path} holds something that is not a run; choose another folder")
        if held and not (resume or replace):
            raise RunError(
                f"{self.path} already holds a run; choose another folder, "
                "continue with --resume, or start over with --force"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(not_written(self.path, error)) from None
        self._lock = self._locked()
        if replace and not resume:
            for name in ("metrics.jsonl", "nonfinite.json", "nonfinite", "last", "fresh", "previous", "best", "binder"):
                (self.path / (name if "." in name else f"{name}.safetensors")).unlink(missing_ok=True)

    def _locked(self) -> FileLock:
        """The lock of this folder, which dies with its process. Within a process it may be held several times."""
        try:
            lock = lock_of(self.path / LOCK, shared=True)
        except OSError as error:
            raise RunError(not_written(self.path / LOCK, error)) from None
        if lock is None:
            raise RunError(
                f"{self.path}: another process is training there; wait until it is done, stop it, or choose another "
                "folder"
            )
        return lock

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def write_config(self, text: str, *, same: bool = False) -> None:
        """Write config.yaml; with `same`, RunError if it differs from what is there already.

        Settings in FREE may differ, and more steps lengthen the run, with a warning.
        """
        path = self.path / "config.yaml"
        if same and path.is_file():
            before, now = (_settings(each) for each in (path.read_text(encoding="utf-8", errors="replace"), text))
            keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
            differ = [key for key in keys if key.rpartition(".")[2] not in FREE]
            if differ == ["train.steps"] and lengthened(before[differ[0]], now[differ[0]]):
                warnings.warn(
                    f"{self.path}: lengthened from {before[differ[0]]} to {now[differ[0]]} steps; from here on the "
                    "learning rate is that of the longer run",
                    CentrobindWarning,
                    stacklevel=2,
                )
            elif differ:
                told = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differ)
                raise RunError(f"{self.path}: --resume needs the settings of the run; these differ: {told}")
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


def lengthened(before: Any, now: Any) -> bool:
    """Whether there are more steps now."""
    return isinstance(before, int) and isinstance(now, int) and now > before


def _settings(text: str) -> dict[str, Any]:
    """A config as {"train.lr": 0.002}, with the defaults of what it leaves out if it is a whole one."""
    try:
        values = yaml.safe_load(text)
        values = check_config(values).model_dump(mode="json") if isinstance(values, dict) else {"config": text}
    except ConfigError:
        pass
    except (yaml.YAMLError, RecursionError):
        values = {"config": text}
    return dict(_flat(values, ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


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
