"""Weights on disk: one safetensors file with JSON in its header, written whole or not at all, never unpickled.

A binder and a training checkpoint are the same kind of file; the checkpoint holds more. The header carries a
format, a version and a SHA-256 over everything else, so that a truncated, edited, foreign or newer file is
refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from centrobind.binder.binder import Binder, rebuild_binder
from centrobind.errors import CentrobindError, CheckpointError
from centrobind.files import named, write_atomically

HEADER, FORMAT, VERSION = "centrobind", "centrobind-checkpoint", 1
TOWERS = "towers/"  # prefix of the tensors that make a binder


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write to a temporary name, flush to the disk, rename: the file at `path` is always a whole one."""
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    said = json.dumps(state, sort_keys=True)
    header = {"format": FORMAT, "version": VERSION, "sha256": _digest(tensors, said), "state": said}
    # One entry, because safetensors writes several in random order: equal weights should be equal files.
    write_atomically(path, to_bytes(tensors, metadata={HEADER: json.dumps(header)}))


def read_tensors(path: str | Path, *, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors whose names start with `prefix`, and the state; CheckpointError if anything is off."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .safetensors file written by centrobind")
    try:
        with safe_open(path, framework="pt") as file:
            if HEADER not in (file.metadata() or {}):
                raise CheckpointError(f"{path}: not written by centrobind (no {HEADER!r} in its header)")
            header = json.loads(file.metadata()[HEADER])
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{path}: holds {header.get('format')!r}, expected {FORMAT!r}")
            if header.get("version") != VERSION:
                raise CheckpointError(
                    f"{path}: checkpoint version {header.get('version')}, this centrobind reads {VERSION}; upgrade it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = json.loads(header["state"])
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: expected its state to be an object, got {type(state).__name__}")
        if _digest(tensors, header["state"]) != header["sha256"]:
            raise CheckpointError(f"{path}: checksum differs, the file was damaged or edited; use an earlier one")
    except CheckpointError:
        raise
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); is it truncated? Use an earlier one") from None
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}, state


def _digest(tensors: Mapping[str, Tensor], said: str) -> str:
    digest = hashlib.sha256(said.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def binder_tensors(binder: Binder) -> dict[str, Tensor]:
    return {TOWERS + name: value for name, value in binder.state_dict().items()}


def save(binder: Binder, path: str | Path) -> Path:
    """Write a binder to one file (`.safetensors` is added if missing) and return its path."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, binder_tensors(binder), {"binder": binder.describe()})
    return path


def load(path: str | Path, *, encoders: Mapping[str, nn.Module] | None = None) -> Binder:
    """Open a binder file, a checkpoint, or the folder of a run (its binder, else its best, else its last).

    `encoders` hands encoders of one's own in again. Raises CheckpointError.
    """
    path = named(path, CheckpointError)
    if path.is_dir():
        found = [path / f"{name}.safetensors" for name in ("binder", "best", "last")]
        path = next((file for file in found if file.is_file()), path / "binder.safetensors")
    elif not path.exists() and path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    tensors, state = read_tensors(path, prefix=TOWERS)
    weights = {name.removeprefix(TOWERS): value for name, value in tensors.items()}
    try:
        _check_size(state["binder"], weights)
        with torch.device("meta"):  # shapes without memory: a description may ask for more than there is
            planned = rebuild_binder(state["binder"], encoders).state_dict()
        if differ := sorted(
            {name for name in planned.keys() | weights if _shape(planned, name) != _shape(weights, name)}
        ):
            raise CheckpointError(f"{path}: its weights do not fit its description: {differ[:5]}")
        binder = rebuild_binder(state["binder"], encoders)
        binder.load_state_dict(weights)
    except CentrobindError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its weights do not fit its description ({error})") from None
    return binder.eval()


def _check_size(description: Any, weights: Mapping[str, Tensor]) -> None:
    """No width, depth or shape in a binder's description can be larger than its number of weights.

    The depths of towers are bounded by the number of tensors: a million layers take minutes even without memory.
    """
    most = {"depth": len(weights)}
    pending = [("", description)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(key, each) for key, each in value.items() if key != "seen"]  # numbers of the data, not sizes
        elif isinstance(value, list):
            pending += [(name, one) for one in value]
        elif isinstance(value, int | float) and not 0 <= value <= most.get(name, 2**31):
            raise ValueError(f"{name} {value} is out of range")


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
