"""A store: a folder of packed, memory-mapped .npy files and a meta.json, read at array speed.

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
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from centrobind.data.samples import KINDS, NAME, Codes, Column, Samples, Strings
from centrobind.errors import StoreError

FORMAT, VERSION = "centrobind-store", 1
CATEGORIES = ("label", "split", "group")


def write_store(path: str | Path, chunks: Iterable[Samples] | Samples, *, replace: bool = False) -> Path:
    """Write samples, whole or chunk by chunk, to a new store and return its path.

    Raises StoreError if the folder exists (unless `replace`), or if chunks do not agree.
    """
    path = Path(path)
    if path.exists() and not (replace and (path / "meta.json").is_file()):
        raise StoreError(f"{path} exists already; choose another folder, or say replace (--force) to overwrite a store")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(path) as folder:
        with StoreWriter(folder) as writer:
            for chunk in [chunks] if isinstance(chunks, Samples) else chunks:
                writer.append(chunk)
            writer.finish()
        if path.exists():
            old = path.with_name(path.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            folder.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            folder.rename(path)
    return path


@contextmanager
def _folder_beside(path: Path):
    """A fresh working folder, removed if it was not renamed away; left over only by a hard kill."""
    folder = path.with_name(path.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)


class StoreWriter:
    """Appends chunks of samples to the files of a store, one pass, constant memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, _NpyFile] = {}
        self.kinds: dict[str, str] = {}
        self.written: dict[str, int] = {}  # modality -> values so far
        self.text_end: dict[str, int] = {}  # text modality -> bytes so far
        self.categories: dict[str, dict[str, int]] = {}
        self.count = 0
        self.ids_end = 0
        self.digests = array("Q")  # 8 bytes an id: a Python set of 40 million strings would need gigabytes

    def append(self, chunk: Samples) -> None:
        for name, column in chunk.columns.items():
            if name not in self.kinds:
                self._start(name, column.kind)
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
            self._file(f"x_{name}").append(np.asarray(values))

    def _append_ids(self, ids: Strings) -> None:
        texts = ids[:]
        packed = Strings.of(texts)
        self.digests.frombytes(b"".join(_digest(text) for text in texts))
        if self.count == 0:
            self._file("ids_offsets").append(np.zeros(1, np.int64))
        self._file("ids").append(packed.blob)
        self._file("ids_offsets").append(packed.stops + self.ids_end)
        self.ids_end += len(packed.blob)

    def _check_ids(self) -> None:
        digests = np.frombuffer(self.digests, np.uint64)
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
            "modalities": {name: {"kind": kind, "values": self.written[name]} for name, kind in self.kinds.items()},
            "categories": {what: list(names) for what, names in self.categories.items()},
            "files": files,
        }
        with open(self.folder / "meta.json", "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1, ensure_ascii=True)
            file.flush()
            os.fsync(file.fileno())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class _NpyFile:
    """A .npy file that grows by appending; numpy leaves room in the header for the final length."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "wb")  # noqa: SIM115 (closed by the StoreWriter)
        self.rows = 0
        self.dtype: np.dtype | None = None
        self.shape: tuple[int, ...] = ()

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        if self.dtype is None:
            self.dtype, self.shape = values.dtype, values.shape[1:]
            self._header()
        if (values.dtype, values.shape[1:]) != (self.dtype, self.shape):
            raise StoreError(
                f"{self.path.stem}: expected {self.dtype} values of shape {self.shape} as in the first chunk, "
                f"got {values.dtype} of shape {values.shape[1:]} after {self.rows} values"
            )
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


def open_store(path: str | Path, *, verify: bool = False) -> Samples:
    """Open a store; values stay on disk, memory-mapped. `verify` also reads all of it against its checksums.

    Raises StoreError for a folder that is no store, is damaged, or comes from a newer centrobind.
    """
    path = Path(path)
    meta = _read_meta(path)
    count = meta["samples"]
    for name, expected in meta["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != expected["bytes"]:
            raise StoreError(
                f"{path / name}: expected {expected['bytes']} bytes, found {'no file' if found is None else found}; "
                "the store is incomplete, import it again"
            )
        if verify and checksum(path / name) != expected["sha256"]:
            raise StoreError(f"{path / name}: checksum differs; the file was damaged or edited, import it again")

    columns = {}
    for name, about in meta["modalities"].items():
        rows = _array(path, f"rows_{name}", np.int32, (count,))
        values = (
            _strings(path, f"x_{name}", f"offsets_{name}") if about["kind"] == "text" else _array(path, f"x_{name}")
        )
        if len(values) != about["values"] or (count and rows.max() >= len(values)) or (count and rows.min() < -1):
            raise StoreError(f"{path}: rows_{name}.npy points outside x_{name}.npy; import the data again")
        columns[name] = Column(values, rows, about["kind"])
    ids = _strings(path, "ids", "ids_offsets")
    if len(ids) != count:
        raise StoreError(f"{path}: expected {count} ids, found {len(ids)}; import the data again")
    categories = {
        what: Codes(_array(path, what, np.int32, (count,)), tuple(names)) for what, names in meta["categories"].items()
    }
    for what, codes in categories.items():
        if count and (codes.codes.min() < -1 or codes.codes.max() >= len(codes.names)):
            raise StoreError(f"{path}: {what}.npy holds codes without a name in meta.json; import the data again")
    return Samples(columns, ids, **categories)


def _read_meta(path: Path) -> dict:
    """meta.json, with everything that the rest relies on checked."""
    file = path / "meta.json"
    if not file.is_file():
        what = "no such folder" if not path.exists() else "no meta.json in it"
        raise StoreError(f"{path} is not a store ({what}); make one with `centrobind import SOURCE {path}`")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise StoreError(f"{file}: expected format {FORMAT!r}; this folder was not made by centrobind")
        version = meta["version"]
        if version != VERSION:
            raise StoreError(
                f"{file}: store version {version}, this centrobind reads {VERSION}; upgrade it, or import again"
            )
        good = (
            type(meta["samples"]) is int
            and meta["samples"] > 0
            and all(
                NAME.fullmatch(name) and about["kind"] in KINDS and type(about["values"]) is int
                for name, about in meta["modalities"].items()
            )
            and all(
                what in CATEGORIES and all(isinstance(name, str) for name in names)
                for what, names in meta["categories"].items()
            )
            and all(
                "/" not in name and "\\" not in name and name.endswith(".npy") and type(about["bytes"]) is int
                for name, about in meta["files"].items()
            )
        )
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{file}: cannot be read as a store's description ({error}); import the data again") from None
    if not good:
        raise StoreError(f"{file}: a value in it is not what a store holds; import the data again")
    return meta


def _array(path: Path, name: str, dtype: type | None = None, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A .npy file, memory-mapped, of numbers, never unpickled."""
    file = path / f"{name}.npy"
    try:
        empty = file.stat().st_size <= 128 and np.load(file, allow_pickle=False).size == 0
        array = np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)  # an empty file cannot be mapped
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError) as error:
        raise StoreError(f"{file}: cannot be read as an array ({error}); import the data again") from None
    if array.dtype.kind not in "biuf" or (dtype and array.dtype != dtype) or (shape and array.shape != shape):
        raise StoreError(
            f"{file}: expected {np.dtype(dtype) if dtype else 'numbers'} of shape {shape or '(rows, ...)'}, "
            f"got {array.dtype} of shape {array.shape}; import the data again"
        )
    return array


def _strings(path: Path, blob: str, offsets: str) -> Strings:
    letters, ends = _array(path, blob, np.uint8), _array(path, offsets, np.int64)
    whole = letters.ndim == ends.ndim == 1 and len(ends) > 0 and ends[0] == 0 and ends[-1] == len(letters)
    if not whole or (ends[1:] < ends[:-1]).any():
        raise StoreError(f"{path / offsets}.npy does not fit {blob}.npy; import the data again")
    return Strings(letters, ends[:-1], ends[1:])


def read_in_chunks(samples: Samples, size: int = 4096, each: Callable[[int], None] | None = None) -> Iterable[Samples]:
    """The same samples in pieces, for writing or embedding without holding all of them."""
    for start in range(0, len(samples), size):
        yield samples.take(slice(start, start + size))
        if each is not None:
            each(min(start + size, len(samples)))
