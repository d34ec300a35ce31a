"""A modality's values -> features of a frozen model, computed once and kept in a store.

    OUT.features/                     while it runs: one file per part that is done, each written whole
    OUT                               the store, written when all parts are there; then the folder above goes

Killed, it resumes where it was. Under torchrun every rank computes its share of the parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from centrobind.binder.pretrained import Pretrained
from centrobind.data import Column, Samples, Strings, open_store, write_store
from centrobind.data.builtin import DATASETS
from centrobind.distributed import team as our_team
from centrobind.errors import ConfigError, DataError, StoreError
from centrobind.extras import own_function
from centrobind.files import write_atomically
from centrobind.progress import Watch, silent

Extractor = Callable[[Any], Any]  # list[str], or an array (n, ...) as stored -> (n, features)

PART = 1024  # values in a part: what a kill can cost
CHUNK = 4096  # samples that are written at a time


def featurize(
    samples: Samples | Mapping[str, Any],
    extractors: Mapping[str, str | Extractor],
    *,
    batch_size: int = 64,
    watch: Watch = silent,
) -> Samples:
    """The samples with the named modalities replaced by their features, in memory.

    An extractor is "hf:folder or name", "file.py:function", an nn.Module (it gets a tensor) or any callable (it gets
    list[str] or an array as stored, and returns a row per value). Raises DataError, ConfigError or ExtraError.
    """
    samples = Samples.of(samples)
    columns = dict(samples.columns)
    done = 0
    for name, given in _checked(samples, extractors).items():
        column = columns[name]
        extractor = open_extractor(given, column)
        used = np.unique(column.rows[column.present])
        made = []
        for start in range(0, len(used), batch_size):
            made.append(_run(extractor, column, used[start : start + batch_size], name))
            done += len(made[-1])
            watch(done)
        rows = np.where(column.present, np.searchsorted(used, column.rows), -1).astype(np.int32)
        columns[name] = _column(name, np.concatenate(made), rows, column, given)
    return replace(samples, columns=columns)


def featurize_store(
    source: str | Path,
    out: str | Path,
    extractors: Mapping[str, str | Extractor],
    *,
    batch_size: int = 64,
    force: bool = False,
    watch: Watch = silent,
) -> Path:
    """The same from a store to a store, of any size, resumed after a kill, shared by the ranks that were joined.

    Raises StoreError where `out` exists and `force` is not given, and what `featurize` raises.
    """
    team, out = our_team(), Path(out)
    if out.exists() and not force:
        raise StoreError(f"{out} exists already; choose another folder, or overwrite it with --force")
    samples = DATASETS[str(source)]() if str(source) in DATASETS and not Path(source).exists() else open_store(source)
    opened = {
        name: open_extractor(given, samples.columns[name]) for name, given in _checked(samples, extractors).items()
    }
    folder = out.with_name(out.name + ".features")
    identity = {"source": _digest(source, samples), "part": PART}
    identity |= {name: [str(extractors[name]), fingerprint(each)] for name, each in opened.items()}
    team.from_leader(lambda: _start(folder, identity))
    total = sum(int(samples.columns[name].present.sum()) for name in opened)
    done = 0
    for name, extractor in opened.items():
        column = samples.columns[name]
        used = np.unique(column.rows[column.present])
        for number, start in enumerate(range(0, len(used), PART)):
            rows = used[start : start + PART]
            file = folder / f"{name}-{number}.npy"
            if number % team.size == team.rank and not file.is_file():
                made = [_run(extractor, column, batch, name) for batch in _split(rows, batch_size)]
                write_atomically(file, _npy(np.concatenate(made)))
            done += len(rows)
            watch(min(done, total))
    team.any(False)  # all ranks have written their parts
    team.from_leader(lambda: _finish(samples, extractors, folder, out, force))
    return out


def open_extractor(given: str | Extractor, column: Column) -> Extractor:
    """What an extractor's text stands for, fit for a column; a callable is one already."""
    if not isinstance(given, str):
        return given
    how, _, rest = given.partition(":")
    if how == "hf" and rest:
        wave = column.kind == "vector" and column.reading.startswith("wave")
        if column.reading.startswith("sound"):
            raise ConfigError(f"{given}: reads waves, import the sound with --read NAME=wave:64000")
        return Pretrained(rest, "wave" if wave else column.kind).to(our_team().device)
    if not given.rpartition(":")[0].endswith(".py"):
        raise ConfigError(f"{given}: expected hf:FOLDER, hf:NAME or file.py:function")
    return own_function(given, called=given)


def fingerprint(extractor: Extractor) -> str:
    """16 hex digits that change with any weight of a module; the name of a function, which has none."""
    if not isinstance(extractor, nn.Module):
        return getattr(extractor, "__qualname__", type(extractor).__qualname__)
    digest = hashlib.sha256()
    for name, value in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _checked(samples: Samples, extractors: Mapping[str, Any]) -> Mapping[str, Any]:
    if not extractors:
        raise DataError("expected at least one modality to make features of")
    if unknown := [name for name in extractors if name not in samples.columns]:
        raise DataError(f"unknown modalities {unknown}, expected some of {list(samples.columns)}")
    if gone := [name for name in extractors if not samples.columns[name].present.any()]:
        raise DataError(f"modalities {gone} are missing from all samples")
    return extractors


@torch.no_grad()
def _run(extractor: Extractor, column: Column, rows: np.ndarray, name: str) -> np.ndarray:
    """The features of some values; DataError if they are not one row of finite numbers for each."""
    values: Any = column.values[rows] if isinstance(column.values, Strings) else np.take(column.values, rows, axis=0)
    if isinstance(values, np.ndarray) and values.dtype == np.float64:
        values = values.astype(np.float32)  # what models compute in
    if isinstance(extractor, nn.Module) and not isinstance(extractor, Pretrained):
        first = next(extractor.parameters(), torch.zeros(0))
        values = values if isinstance(values, list) else torch.from_numpy(np.ascontiguousarray(values)).to(first.device)
        extractor.eval()
    made = extractor.extract(values) if isinstance(extractor, Pretrained) else extractor(values)
    made = made.detach().float().cpu().numpy() if isinstance(made, torch.Tensor) else np.asarray(made)
    if made.dtype.kind not in "biuf" or made.ndim < 2 or len(made) != len(rows):
        raise DataError(
            f"modality {name!r}: expected ({len(rows)}, features) numbers from its extractor, one row for each value, "
            f"got {made.dtype} of shape {made.shape}"
        )
    made = made.astype(np.float32)
    if not np.isfinite(made).all():
        raise DataError(f"modality {name!r}: its extractor made NaN or inf of values {rows[:3].tolist()} or near them")
    return made


def _column(name: str, values: np.ndarray, rows: np.ndarray, raw: Column, given: Any) -> Column:
    kind = "vector" if values.ndim == 2 else "sequence"
    said = given if isinstance(given, str) else ""
    return Column(values, rows, kind, f"{raw.reading or raw.kind} | {said}" if said else "")


def _split(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _digest(source: str | Path, samples: Samples) -> str:
    """What tells one source from another: a store's description holds a checksum of every file."""
    meta = Path(source) / "meta.json"
    return hashlib.sha256(meta.read_bytes()).hexdigest() if meta.is_file() else f"{source}, {len(samples)} samples"


def _start(folder: Path, identity: Mapping[str, Any]) -> None:
    """Keep the parts that are there if they were made of the same by the same, else begin anew."""
    said = json.dumps(identity, sort_keys=True).encode()
    known = folder / "made_of.json"
    try:
        if not (known.is_file() and known.read_bytes() == said):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_atomically(known, said)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror})") from None


def _finish(samples: Samples, extractors: Mapping[str, Any], folder: Path, out: Path, force: bool) -> None:
    @lru_cache(maxsize=8)
    def part(name: str, number: int) -> np.ndarray:
        return np.load(folder / f"{name}-{number}.npy", mmap_mode="r", allow_pickle=False)

    def chunks() -> Iterator[Samples]:
        used = {name: np.unique(c.rows[c.present]) for name, c in samples.columns.items() if name in extractors}
        for start in range(0, len(samples), CHUNK):
            chunk = samples.take(slice(start, start + CHUNK))
            columns = dict(chunk.columns)
            for name, owned in used.items():
                raw = chunk.columns[name]
                places = np.searchsorted(owned, raw.rows[raw.present])
                values = [part(name, place // PART)[place % PART] for place in places.tolist()]
                width = part(name, 0).shape[1:]
                rows = np.where(raw.present, np.cumsum(raw.present) - 1, -1).astype(np.int32)
                made = np.stack(values) if values else np.zeros((0, *width), np.float32)
                columns[name] = _column(name, made, rows, raw, extractors[name])
            yield replace(chunk, columns=columns)

    write_store(out, chunks(), replace=force)
    shutil.rmtree(folder, ignore_errors=True)
