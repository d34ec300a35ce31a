"""A store: a folder of packed .npy files and a meta.json, written in one pass; opening.py reads it at array speed.

    meta.json                    what is here: format, version, modalities, sizes and checksums
    x_image.npy                  (rows, ...) the values that exist, without gaps
    rows_image.npy               (N,) int32: which value each sample owns, -1 = missing
    x_name.npy, offsets_name.npy a text modality: UTF-8 bytes, and where each string starts
    ids.npy, ids_offsets.npy     one distinct string per sample
    label.npy, split.npy, group.npy   (N,) int32 codes, -1 = not given; their names are in meta.json

File names follow from modality names, never from meta.json, so no store can point outside its folder.
Writing goes to a folder beside the target, meta.json last, then one rename: a store that opens is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy

from centrobind.data.categories import Codes
from centrobind.data.samples import Samples
from centrobind.data.spread import needs_float64
from centrobind.data.strings import Strings
from centrobind.errors import StoreError
from centrobind.files import lock_of, not_written

LOCK = "lock"
FORMAT, VERSION = "centrobind-store", 1
CATEGORIES = ("label", "split", "group")


def write_store(path: str | Path, chunks: Iterable[Samples] | Samples, *, replace: bool = False) -> Path:
    """Write samples, whole or chunk by chunk, to a new store and return its path.

    Raises StoreError if the folder exists (unless `replace`), or if chunks do not agree.
    """
    path = Path(path)
    old = path.with_name(path.name + ".old")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(path) as (folder, lock):
        if (old / "meta.json").is_file() and not path.exists():
            old.rename(path)  # an import was killed between the two renames below
        if path.exists() and not (replace and (path / "meta.json").is_file()):
            raise StoreError(
                f"{path} exists already; choose another folder, or say replace (--force) to overwrite a store"
            )
        with StoreWriter(folder) as writer:
            for chunk in [chunks] if isinstance(chunks, Samples) else chunks:
                writer.append(chunk)
            writer.finish()
        with _writing(path):
            _let_go(folder, lock)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
                folder.rename(path)
                (old / "meta.json").unlink()
                shutil.rmtree(old, ignore_errors=True)
            else:
                folder.rename(path)
    return path


def _let_go(folder: Path, lock: FileLock) -> None:
    """Take the lock's file out of a folder that is to be renamed, with the lock held on."""
    if os.name == "nt":  # which renames no folder with an open file in it
        lock.release()
    (folder / LOCK).unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that is full or read-only is the user's to fix."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{not_written(path, error)}; nothing was imported, what was there before is intact") from None


@contextmanager
def _folder_beside(path: Path) -> Iterator[tuple[Path, FileLock]]:
    """An empty working folder that no other process writes to and its lock, removed if it was not renamed away.

    A hard kill leaves it behind and the next import empties it; the lock on it dies with its process.
    """
    folder = path.with_name(path.name + ".partial")
    with _writing(folder):
        if folder.is_symlink():
            raise StoreError(f"{folder} is a link; remove it, an import writes there")
        folder.mkdir(exist_ok=True)
        try:
            lock = lock_of(folder / LOCK)
        except FileNotFoundError:  # renamed away since
            lock = None
    if lock is None or not (folder / LOCK).exists():  # renamed away before we had the lock
        raise StoreError(f"{folder} belongs to another import into {path} that is running; wait until it is done")
    try:
        ours = folder.stat()
        with _writing(folder):
            for left in folder.iterdir():
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield folder, lock
        finally:
            if folder.exists() and os.path.samestat(ours, folder.stat()):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


class StoreWriter:
    """Appends chunks of samples to the files of a store, one pass, constant memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, _NpyFile] = {}
        self.kinds: dict[str, str] = {}
        self.readings: dict[str, str] = {}
        self.written: dict[str, int] = {}  # modality -> values so far
        self.text_end: dict[str, int] = {}  # text modality -> bytes so far
        self.categories: dict[str, dict[str, int]] = {}
        self.count = 0
        self.ids_end = 0
        self.digests = array("q")  # 8 bytes an id: a Python set of 40 million strings would need gigabytes

    def append(self, chunk: Samples) -> None:
        for name, column in chunk.columns.items():
            if name not in self.kinds:
                self._start(name, column.kind)
            self.readings.setdefault(name, column.reading)
        for name, kind in self.kinds.items():
            self._append_column(name, kind, chunk)
        self._append_ids(chunk.ids)
        for what in CATEGORIES:
            self._append_codes(what, getattr(chunk, what), len(chunk))
        self.count += len(chunk)

    def _start(self, name: str, kind: str) -> None:
        self.kinds[name] = kind
        self.written[name] = 0
        self._file(f"rows_{name}").append(np.full(self.count, -1, np.int32))
        if kind == "text":
            self.text_end[name] = 0
            self._file(f"offsets_{name}").append(np.zeros(1, np.int64))

    def _append_column(self, name: str, kind: str, chunk: Samples) -> None:
        column = chunk.columns.get(name)
        if column is None:
            self._file(f"rows_{name}").append(np.full(len(chunk), -1, np.int32))
            return
        values = column.take(np.arange(len(chunk)))
        rows = np.where(column.present, self.written[name] + np.cumsum(column.present) - 1, -1)
        self._file(f"rows_{name}").append(rows.astype(np.int32))
        self.written[name] += int(column.present.sum())
        if len(values) == 0:
            return
        if column.kind != kind:
            raise StoreError(f"modality {name!r} changes from {kind} to {column.kind} at sample {self.count}")
        if kind == "text":
            strings = Strings.of(values)
            self._file(f"x_{name}").append(strings.blob)
            self._file(f"offsets_{name}").append(strings.stops + self.text_end[name])
            self.text_end[name] += len(strings.blob)
        else:
            self._file(f"x_{name}").append(self._narrowed(name, np.asarray(values)))

    def _narrowed(self, name: str, values: np.ndarray) -> np.ndarray:
        """A chunk's numbers in the type of the first one's: float32 or float64, as each chunk was found to need."""
        known = self.files[f"x_{name}"].dtype if f"x_{name}" in self.files else None
        if known == np.float64 and values.dtype == np.float32:
            return values.astype(np.float64)
        if known == np.float32 and values.dtype == np.float64 and needs_float64(values):
            raise StoreError(
                f"modality {name!r}: from sample {self.count} on, its numbers differ by less than float32 can hold, as "
                "which the first were stored; subtract a constant from all of them, or bring them in another order"
            )
        return values.astype(np.float32) if known == np.float32 and values.dtype == np.float64 else values

    def _append_ids(self, ids: Strings) -> None:
        texts = ids[:]
        packed = Strings.of(texts)
        self.digests.extend(map(hash, texts))  # keyed by Python, so that no file can make two ids collide
        if self.count == 0:
            self._file("ids_offsets").append(np.zeros(1, np.int64))
        self._file("ids").append(packed.blob)
        self._file("ids_offsets").append(packed.stops + self.ids_end)
        self.ids_end += len(packed.blob)

    def _check_ids(self) -> None:
        digests = np.frombuffer(self.digests, np.int64)
        in_order = np.argsort(digests, kind="stable")
        twice = in_order[1:][digests[in_order][1:] == digests[in_order][:-1]]
        if len(twice):
            rows = np.sort(twice)[:5].tolist()
            raise StoreError(
                f"ids must be distinct: {len(twice)} repeat an earlier one, first at rows {rows}; "
                "give each sample its own id, or leave the ids out to have them numbered"
            )

    def _append_codes(self, what: str, codes: Codes | None, count: int) -> None:
        if codes is None and what not in self.categories:
            return
        if what not in self.categories:
            self.categories[what] = {}
            self._file(what).append(np.full(self.count, -1, np.int32))
        if codes is None:
            self._file(what).append(np.full(count, -1, np.int32))
            return
        known = self.categories[what]
        recode = np.array([known.setdefault(name, len(known)) for name in codes.names] + [-1], np.int32)
        self._file(what).append(recode[codes.codes])

    def _file(self, name: str) -> _NpyFile:
        if name not in self.files:
            self.files[name] = _NpyFile(self.folder / f"{name}.npy")
        return self.files[name]

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            with suppress(OSError):  # on a full disk closing fails as well, and what matters was said already
                file.file.close()

    def finish(self) -> None:
        """Complete the files, then write meta.json, which is what makes the folder a store."""
        if self.count == 0:
            raise StoreError("there is nothing to store: no sample was given")
        self._check_ids()
        for name, kind in self.kinds.items():
            if self.written[name] == 0:  # a modality that nobody has still needs a file to open
                self._file(f"x_{name}").append(
                    np.zeros(0, np.uint8) if kind == "text" else np.zeros((0, 1), np.float32)
                )
        files = {f"{name}.npy": file.finish() for name, file in self.files.items()}
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "samples": self.count,
            "modalities": {
                name: {"kind": kind, "values": self.written[name], "reading": self.readings[name]}
                for name, kind in self.kinds.items()
            },
            "categories": {what: list(names) for what, names in self.categories.items()},
            "files": files,
        }
        with _writing(self.folder / "meta.json"), open(self.folder / "meta.json", "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1, ensure_ascii=True)
            file.flush()
            os.fsync(file.fileno())


class _NpyFile:
    """A .npy file that grows by appending; numpy leaves room in the header for the final length."""

    def __init__(self, path: Path):
        self.path = path
        with _writing(path):
            self.file = open(path, "wb")  # noqa: SIM115 (closed by the StoreWriter)
        self.rows = 0
        self.dtype: np.dtype | None = None
        self.shape: tuple[int, ...] = ()

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        if self.dtype is None:
            self.dtype, self.shape = values.dtype, values.shape[1:]
            with _writing(self.path):
                self._header()
        if (values.dtype, values.shape[1:]) != (self.dtype, self.shape):
            raise StoreError(
                f"{self.path.stem}: expected {self.dtype} values of shape {self.shape} as in the first chunk, "
                f"got {values.dtype} of shape {values.shape[1:]} after {self.rows} values"
            )
        with _writing(self.path):
            self.file.write(values.data if values.size else b"")
        self.rows += len(values)

    def _header(self) -> None:
        description = {
            "descr": npy.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.shape),
        }
        npy.write_array_header_1_0(self.file, description)

    def finish(self) -> dict[str, int | str]:
        with _writing(self.path):
            end = self.file.tell()
            self.file.seek(0)
            self._header()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        return {"bytes": end, "sha256": checksum(self.path)}


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_in_chunks(samples: Samples, size: int = 4096, each: Callable[[int], None] | None = None) -> Iterable[Samples]:
    """The same samples in pieces, for writing or embedding without holding all of them."""
    for start in range(0, len(samples), size):
        yield samples.take(slice(start, start + size))
        if each is not None:
            each(min(start + size, len(samples)))
