"""An index on disk, the exact engine's: immutable segments and one manifest that says which of them count.

    index.json          format, version, fingerprint, dim, modalities, and the segments with their dead
    segment-7/          a store of embeddings, written once: vectors, ids, captions, labels, splits and groups
    dead-7-9.npy        int32: which samples of segment 7 were deleted or replaced, as of write 9
    lock                held by the one process that writes

A write makes new files beside the old ones, flushes them, and renames a new manifest into place: that is the moment
at which it happened, all of it. What a killed write left behind is in no manifest, and the next write removes it.
Readers map the files of the manifest they read; removing a file does not take it from who has it mapped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.data import Samples, open_store, write_store
from centrobind.data.samples import NAME, NOT_AN_ARRAY
from centrobind.errors import CheckpointError, StoreError
from centrobind.files import lock_of, not_written, write_atomically
from centrobind.index.engine import CAPTION, About

FORMAT, VERSION, MANIFEST = "centrobind-index", 1, "index.json"
OURS = re.compile(r"segment-\d+(\.partial|\.old)?|dead-\d+-\d+\.npy(\.partial)?|index\.json(\.partial)?|lock")
PATIENCE = 60.0  # seconds to wait for another writer
CHUNK = 65_536  # samples at a time when segments are merged


@dataclass(frozen=True)
class Segment:
    """A store of embeddings, and which of its samples are no more."""

    number: int
    samples: Samples
    vectors: dict[str, Tensor]  # the modalities that somebody has: the same files as `samples`, for torch
    dead_file: str | None = None
    dead: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # ascending

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def alive(self) -> np.ndarray:
        """(N,) bool."""
        alive = np.ones(len(self), bool)
        alive[self.dead] = False
        return alive

    @property
    def living(self) -> int:
        return len(self) - len(self.dead)


@dataclass(frozen=True)
class Manifest:
    """What index.json says, its segments opened."""

    about: About
    writes: int  # so far
    segments: tuple[Segment, ...]

    def as_dict(self) -> dict[str, Any]:
        segments = [{"number": one.number, "samples": len(one), "dead": one.dead_file} for one in self.segments]
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.about.as_dict(),
            "writes": self.writes,
            "segments": segments,
        }


def read_manifest(path: Path) -> Manifest:
    """The index as the last write left it; StoreError if the folder holds none, or a damaged or newer one."""
    for _ in range(100):
        said = read_said(path)
        try:
            return _opened(path, said)
        except (StoreError, OSError) as error:
            if read_said(path) == said:  # else: a writer has removed these files meanwhile, there are new ones
                raise StoreError(f"{path}: {error}; build the index again") from None
    raise StoreError(f"{path}: changes faster than it can be read; try again")


def read_said(path: Path) -> dict[str, Any]:
    """index.json as it stands, its format and version checked."""
    file = path / MANIFEST
    if not file.is_file():
        what = "no such folder" if not path.exists() else f"no {MANIFEST} in it"
        raise StoreError(f"{path} is not an index ({what}); make one with `centrobind index RUN STORE --out {path}`")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise StoreError(f"{file}: expected format {FORMAT!r}; this folder was not made by centrobind")
        if said["version"] != VERSION:
            raise StoreError(f"{file}: index version {said['version']}, this centrobind reads {VERSION}; upgrade it")
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise StoreError(f"{file}: cannot be read ({error}); build the index again") from None
    return said


def _opened(path: Path, said: dict[str, Any]) -> Manifest:
    try:
        names, dim, writes = tuple(said["modalities"]), said["dim"], said["writes"]
        good = isinstance(said["fingerprint"], str) and type(dim) is int and type(writes) is int and names
        good = good and all(NAME.fullmatch(name) for name in names)
        numbers = [one["number"] for one in said["segments"]]
        good = good and all(type(number) is int and number >= 0 for number in numbers) and numbers == sorted({*numbers})
        dead_files = [one["dead"] for one in said["segments"]]
        good = good and all(dead is None or OURS.fullmatch(dead) for dead in dead_files)
        counts = [one["samples"] for one in said["segments"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{MANIFEST} is not a manifest ({error})") from None
    if not good:
        raise StoreError(f"a value in {MANIFEST} is not what an index holds")
    segments = tuple(_segment(path, *about, names, dim) for about in zip(numbers, counts, dead_files))
    return Manifest(About(said["fingerprint"], dim, names), writes, segments)


def _segment(path: Path, number: int, count: int, dead_file: str | None, names: tuple[str, ...], dim: int) -> Segment:
    segment = open_segment(path, number)
    samples = segment.samples
    for name, column in samples.columns.items():
        if name == CAPTION and name not in names and column.kind == "text":
            continue
        empty = not column.present.any()
        if name not in names or column.kind != "vector" or not (empty or column.shape == (dim,)):
            raise StoreError(f"segment-{number}: {name!r} {column!r} is no modality of {dim} dimensions of this index")
    dead = np.zeros(0, np.int32)
    if dead_file is not None:
        try:
            dead = np.load(path / dead_file, allow_pickle=False)
        except NOT_AN_ARRAY as error:
            raise StoreError(f"{dead_file}: cannot be read ({error})") from None
        inside = dead.dtype == np.int32 and dead.ndim == 1 and (len(dead) == 0 or 0 <= dead[0] <= dead[-1] < count)
        if not inside or (dead[1:] <= dead[:-1]).any():
            raise StoreError(f"{dead_file}: is no list of samples of segment-{number}")
    if len(samples) != count:
        raise StoreError(f"segment-{number}: expected {count} samples, found {len(samples)}")
    return replace(segment, dead_file=dead_file, dead=dead)


def open_segment(path: Path, number: int) -> Segment:
    """A segment with nothing dead; StoreError if it is not sound."""
    folder = path / f"segment-{number}"
    samples = open_store(folder)
    vectors = {}
    for name, column in samples.columns.items():
        if column.present.any() and column.kind != "text":
            # "c": torch wants memory that may be written to; what is written there stays in this process.
            vectors[name] = torch.from_numpy(np.load(folder / f"x_{name}.npy", mmap_mode="c", allow_pickle=False))
    return Segment(number, samples, vectors)


# ---- writing ----------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the one writer of a folder of segments, cleared of what a killed write left."""
    if path.is_dir() and (foreign := sorted(one.name for one in path.iterdir() if not OURS.fullmatch(one.name))):
        raise StoreError(f"{path} holds {foreign[:3]}, which is not of an index; choose another folder")
    with locked(path):
        clear(path)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, after waiting a while for its holder; it dies with its process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = lock_of(path / "lock", patience=PATIENCE)
    except OSError as error:
        raise StoreError(f"{not_written(path, error)}; nothing was written") from None
    if lock is None:
        raise StoreError(f"{path}: another process has been writing for {PATIENCE:.0f} s; wait for it")
    try:
        yield
    finally:
        lock.release()


def clear(path: Path) -> None:
    """Remove what no manifest speaks of; only with the lock held."""
    kept = {MANIFEST, "lock"}
    if (path / MANIFEST).is_file():
        for one in read_said(path)["segments"]:
            kept |= {f"segment-{one['number']}", one["dead"]}
    for one in path.iterdir():
        if one.name not in kept and OURS.fullmatch(one.name):
            shutil.rmtree(one, ignore_errors=True) if one.is_dir() and not one.is_symlink() else one.unlink()


def write_segment(path: Path, number: int, chunks: Iterable[Samples]) -> Segment:
    """A new segment, whole and flushed; it counts once a manifest says so."""
    write_store(path / f"segment-{number}", chunks)
    return open_segment(path, number)


def with_dead(path: Path, segment: Segment, more: np.ndarray, write: int) -> Segment:
    """The segment with more of its samples dead."""
    dead = np.union1d(segment.dead, more).astype(np.int32)
    name = f"dead-{segment.number}-{write}.npy"
    try:
        with open(path / name, "wb") as file:
            np.save(file, dead)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{not_written(path / name, error, dead.nbytes)}; nothing was changed") from None
    return replace(segment, dead_file=name, dead=dead)


def commit(path: Path, manifest: Manifest) -> None:
    """The moment at which a write happens."""
    _flush_names(path)
    try:
        write_atomically(path / MANIFEST, json.dumps(manifest.as_dict(), indent=1).encode())
    except CheckpointError as error:
        raise StoreError(str(error)) from None
    _flush_names(path)
    clear(path)


def _flush_names(path: Path) -> None:
    """The names of files are data of their folder: without this a power cut could keep the manifest and lose a file."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_merge(segments: tuple[Segment, ...]) -> int:
    """From which segment on they should become one: 0 = all, len(segments) = none.

    The last ones, while the one before them is less than twice their size: so each is at least twice the next, there
    are at most log2(N) of them, and a sample is rewritten at most log2(N) times. All, when more than half is dead.
    """
    if 2 * sum(one.living for one in segments) < sum(len(one) for one in segments):
        return 0
    first, size = len(segments) - 1, segments[-1].living if segments else 0
    while first > 0 and segments[first - 1].living < 2 * size:
        first -= 1
        size += segments[first].living
    return first if first < len(segments) - 1 else len(segments)


def living_chunks(segments: Iterable[Segment]) -> Iterator[Samples]:
    """What is alive in some segments, in order, chunk by chunk."""
    for segment in segments:
        rows = np.flatnonzero(segment.alive)
        for start in range(0, len(rows), CHUNK):
            yield segment.samples.take(rows[start : start + CHUNK])
