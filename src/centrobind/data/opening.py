"""Opening a store: everything in meta.json and the headers is checked before it is used, and nothing is unpickled.

Values stay on disk, memory-mapped: they are read when a batch asks for them, and all processes that read a store
share one copy of it, the system's page cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from centrobind.data.categories import Codes
from centrobind.data.samples import KINDS, NAME, NOT_AN_ARRAY, Column, Samples
from centrobind.data.store import CATEGORIES, FORMAT, VERSION, checksum
from centrobind.data.strings import Strings
from centrobind.errors import StoreError
from centrobind.files import named

DTYPES = (
    np.dtype("uint8"),
    np.dtype("float16"),
    np.dtype("float32"),
    np.dtype("float64"),
)


def open_store(path: str | Path, *, verify: bool = False) -> Samples:
    """Open a store; values stay on disk, memory-mapped. `verify` also reads all of it against its checksums.

    Raises StoreError for a folder that is no store, is damaged, or comes from a newer centrobind.
    """
    path = named(path, StoreError)
    meta = _read_meta(path)
    count = meta["samples"]
    for name, expected in meta["files"].items():
        _refuse_link(path / name)
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
            _strings(path, f"x_{name}", f"offsets_{name}")
            if about["kind"] == "text"
            else _values(path, f"x_{name}", about["kind"])
        )
        if len(values) != about["values"] or (count and rows.max() >= len(values)) or (count and rows.min() < -1):
            raise StoreError(f"{path}: rows_{name}.npy points outside x_{name}.npy; import the data again")
        columns[name] = Column(values, rows, about["kind"], about.get("reading", ""))
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
        old = path.parent / f"{path.name}.old"  # the path may be "." or "/", which have no name
        if (old / "meta.json").is_file() and not path.exists():
            what = f"an import that was to replace it was killed; what was there before is {old}"
        raise StoreError(f"{path} is not a store ({what}); make one with `centrobind import SOURCE {path}`")
    _refuse_link(file)
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
            and len(meta["modalities"]) > 0
            and all(
                NAME.fullmatch(name)
                and about["kind"] in KINDS
                and type(about["values"]) is int
                and type(about.get("reading", "")) is str  # stores of the first centrobinds have none
                for name, about in meta["modalities"].items()
            )
            and all(
                what in CATEGORIES and all(isinstance(name, str) for name in names)
                for what, names in meta["categories"].items()
            )
            and meta["files"].keys() == _files_of(meta)
            and all(type(about["bytes"]) is int and type(about["sha256"]) is str for about in meta["files"].values())
        )
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{file}: cannot be read as a store's description ({error}); import the data again") from None
    if not good:
        raise StoreError(f"{file}: a value in it is not what a store holds; import the data again")
    return meta


def _refuse_link(file: Path) -> None:
    if file.is_symlink():
        raise StoreError(f"{file} is a link; the files of a store lie in its folder, copy it there")


def _files_of(meta: Mapping) -> set[str]:
    """The files that a store with these modalities and categories has: none less, none more, none elsewhere."""
    names = ["ids", "ids_offsets", *meta["categories"]]
    for name, about in meta["modalities"].items():
        names += [f"rows_{name}", f"x_{name}"] + [f"offsets_{name}"] * (about["kind"] == "text")
    return {f"{name}.npy" for name in names}


def _values(path: Path, name: str, kind: str) -> np.ndarray:
    """The numbers of a modality, in a type and a shape that its kind can have."""
    array = _array(path, name)
    fits = array.ndim in (3, 4) if kind == "image" else array.ndim >= 2
    if array.dtype not in DTYPES or 0 in array.shape[1:] or not (fits or array.shape == (0, 1)):
        raise StoreError(
            f"{path / name}.npy: {array.dtype} of shape {array.shape} is no {kind} modality; import the data again"
        )
    return array


def _array(path: Path, name: str, dtype: type | None = None, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A .npy file, memory-mapped, of numbers, never unpickled."""
    file = path / f"{name}.npy"
    try:
        empty = file.stat().st_size <= 128 and np.load(file, allow_pickle=False).size == 0
        array = np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)  # an empty file cannot be mapped
    except NOT_AN_ARRAY as error:
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
