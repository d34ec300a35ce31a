"""Anything a person has -> chunks of Samples, streamed: npz, CSV, JSONL, Parquet, any map-style dataset.

A manifest has one row per sample and one column per modality, besides `id`, `label`, `split` and `group`,
all optional. A cell is text, a list of numbers, or the path of a .npy file beside or below the manifest;
an empty cell means missing. Everything wrong with a manifest is reported at once, by row and column.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from centrobind.data.samples import NAME, NOT_AN_ARRAY, Samples
from centrobind.errors import DataError

ABOUT = ("id", "label", "split", "group")  # columns that describe a sample rather than show it
CHUNK = 1024
MOST_PROBLEMS = 20


def read_chunks(
    source: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan_as_missing: bool = False,
) -> Iterator[Samples]:
    """Samples from an .npz, .csv, .jsonl or .parquet file, chunk by chunk.

    `modalities` picks columns (default: all that are not id, label, split or group), `kinds` overrides what
    a modality looks like, `nan_as_missing` takes an all-NaN row for a gap. Raises DataError.
    """
    source = Path(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file; expected an .npz, .csv, .jsonl or .parquet file")
    readers = {".npz": None, ".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if source.suffix not in readers:
        raise DataError(f"{source}: expected the ending {', '.join(readers)}, got {source.suffix or 'none'!r}")
    if source.suffix == ".npz":
        return _npz_chunks(source, modalities, kinds, nan_as_missing)
    rows = readers[source.suffix](source)
    return record_chunks(
        rows, folder=source.parent, where=str(source), modalities=modalities, kinds=kinds, nan_as_missing=nan_as_missing
    )


def dataset_chunks(dataset: Any, **options: Any) -> Iterator[Samples]:
    """Samples from any map-style dataset: `len(dataset)` and `dataset[i]` -> dict with None where missing."""
    return record_chunks((dataset[i] for i in range(len(dataset))), **options)


def record_chunks(
    records: Iterable[Mapping[str, Any] | str],
    *,
    folder: Path | None = None,
    where: str = "dataset",
    modalities: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan_as_missing: bool = False,
) -> Iterator[Samples]:
    """Samples from dicts, one per sample; a str instead of a dict is a row that could not be read, and why.

    With `folder`, a cell may be the path of a .npy file in it. Raises DataError naming every bad cell, after
    the whole input was seen, so that a person mends a manifest once and not twenty times.
    """
    reader = _CellReader(folder, nan_as_missing)
    names = None if modalities is None else list(modalities)
    rows: list[dict[str, Any]] = []
    count = 0
    for count, record in enumerate(records, start=1):
        if isinstance(record, str):
            reader.problem(count, None, record)
            continue
        if modalities is None:
            names = [*(names or []), *(key for key in record if key not in ABOUT and key not in (names or []))]
        elif missing := [name for name in modalities if name not in record] if count == 1 else []:
            raise DataError(f"{where}: no column {missing}, expected some of {list(record)}")
        rows.append({name: reader.read(count, name, record.get(name)) for name in names} | _about(record))
        if len(rows) == CHUNK and not reader.problems:
            yield _chunk(rows, names, kinds, count - len(rows))
            rows = []
        elif reader.problems:
            rows = []
    if reader.problems:
        shown = "\n  ".join(reader.problems[:MOST_PROBLEMS])
        more = len(reader.problems) - MOST_PROBLEMS
        raise DataError(
            f"{where}: {len(reader.problems)} cells cannot be read; nothing was imported\n  {shown}"
            + (f"\n  ... and {more} more" if more > 0 else "")
        )
    if count == 0:
        raise DataError(f"{where}: expected a row per sample, got none")
    if not names:
        raise DataError(f"{where}: expected a column per modality besides {list(ABOUT)}, got none")
    if rows:
        yield _chunk(rows, names, kinds, count - len(rows))


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ABOUT if record.get(key) not in (None, "")}


def _chunk(rows: list[dict], names: list[str], kinds: Mapping[str, str] | None, start: int) -> Samples:
    columns = {name: [row.get(name) for row in rows] for name in names}
    seen = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    about = {
        key: [row.get(key) for row in rows] for key in ("label", "split", "group") if any(key in row for row in rows)
    }
    chosen = {name: kind for name, kind in (kinds or {}).items() if name in seen}
    if not seen:  # nothing but gaps in this chunk: keep the samples, they may have labels
        seen = {names[0]: [None] * len(rows)}
    return Samples.of(seen, kinds=chosen, ids=[row.get("id", start + i) for i, row in enumerate(rows)], **about)


class _CellReader:
    """Reads cells and remembers what was wrong; each column keeps the type and shape of its first value."""

    def __init__(self, folder: Path | None, nan_as_missing: bool):
        self.folder = folder
        self.nan_as_missing = nan_as_missing
        self.shapes: dict[str, tuple[int, ...] | None] = {}  # None = text
        self.problems: list[str] = []

    def problem(self, row: int, name: str | None, reason: str) -> None:
        self.problems.append(f"row {row}" + (f", column {name!r}" if name else "") + f": {reason}")

    def read(self, row: int, name: str, cell: Any) -> np.ndarray | str | None:
        if cell is None or (isinstance(cell, str) and cell == ""):
            return None
        try:
            value = self._value(cell, text=name in self.shapes and self.shapes[name] is None)
        except NOT_AN_ARRAY as error:
            self.problem(row, name, str(error))
            return None
        if isinstance(value, np.ndarray):
            finite = np.isfinite(value)
            if not finite.all():
                if not (self.nan_as_missing and np.isnan(value).all()):
                    self.problem(row, name, f"NaN or inf in {int((~finite).sum())} of {value.size} numbers")
                return None
        shape = None if isinstance(value, str) else value.shape
        first = self.shapes.setdefault(name, shape)
        if shape != first:
            said = {True: "text", False: f"numbers of shape {shape}"}[shape is None]
            expected = {True: "text", False: f"numbers of shape {first}"}[first is None]
            self.problem(row, name, f"expected {expected} as in the first row that has one, got {said}")
            return None
        return value

    def _value(self, cell: Any, text: bool) -> np.ndarray | str:
        if isinstance(cell, str):
            if text:
                return cell
            if cell.lstrip().startswith("["):
                cell = json.loads(cell)
            elif cell.endswith(".npy") and self.folder is not None:
                return _numbers(self._load(cell))
            elif _is_number(cell):
                raise ValueError(
                    f"a single number ({cell}) is no modality; write [{cell}], or leave it out with --modalities"
                )
            else:
                return cell
        return _numbers(cell)

    def _load(self, name: str) -> np.ndarray:
        root = self.folder.resolve()
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f"{name} leaves the folder of the manifest; only files in or below it are read")
        if not file.is_file():
            raise ValueError(f"{name}: no such file")
        return np.load(file, allow_pickle=False)


def _numbers(cell: Any) -> np.ndarray:
    if hasattr(cell, "detach"):  # a torch tensor, without importing torch for it
        cell = cell.detach().cpu().numpy()
    array = np.asarray(cell)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers or text, got {type(cell).__name__}")
    if array.ndim == 0:
        raise ValueError(f"a single number ({cell}) is no modality; write [{cell}], or leave it out")
    if array.size == 0:
        raise ValueError("expected at least one number, got an empty list")
    return array


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_rows(source: Path) -> Iterator[dict[str, str] | str]:
    with open(source, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{source}: expected distinct column names in the first line, got {header}")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    yield f"expected {len(header)} cells as in the first line, got {len(row)}"
                else:
                    yield dict(zip(header, row))
        except csv.Error as error:
            raise DataError(f"{source}: not a CSV file near line {reader.line_num} ({error})") from None


def _jsonl_rows(source: Path) -> Iterator[dict[str, Any] | str]:
    with open(source, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else f"expected an object {{...}}, got {type(row).__name__}"
            except (ValueError, RecursionError) as error:
                yield f"not JSON ({error})"


def _parquet_rows(source: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source}: reading Parquet needs pyarrow: pip install 'centrobind[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=CHUNK):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source}: not a readable Parquet file ({error})") from None


def _npz_chunks(
    source: Path,
    modalities: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    nan_as_missing: bool,
) -> Iterator[Samples]:
    """`x_<modality>` (or plain names), `present_<modality>`, and id, label, split, group; one row a sample."""
    try:
        with zipfile.ZipFile(source) as archive, ExitStack() as opened:
            members = {}
            for name in archive.namelist():
                file = opened.enter_context(archive.open(name))
                members[name.removesuffix(".npy")] = _Member(f"{source}: {name}", file)
            names = [key for key in members if key not in ABOUT and not key.startswith("present_")]
            if any(key.startswith("x_") for key in names):
                names = [key for key in names if key.startswith("x_")]
            found = {key.removeprefix("x_"): members[key] for key in names}
            if unknown := [name for name in modalities or [] if name not in found]:
                raise DataError(f"{source}: no modality {unknown}, expected some of {list(found)}")
            found = {name: found[name] for name in modalities or found}
            if not found:
                raise DataError(f"{source}: expected arrays named x_<modality>, got {list(members)}")
            if bad := [name for name in found if not NAME.fullmatch(name)]:
                raise DataError(f"{source}: {bad} cannot be modality names; use letters, digits, _ and -")
            gaps = {name: members[f"present_{name}"] for name in found if f"present_{name}" in members}
            about = {key: members[key] for key in ABOUT if key in members}
            everything = {**found, **{f"present_{name}": gap for name, gap in gaps.items()}, **about}
            counts = {key: member.count for key, member in everything.items()}
            if len(set(counts.values())) != 1:
                raise DataError(f"{source}: expected the same number of rows in every array, got {counts}")
            for start in range(0, next(iter(counts.values())), CHUNK):
                yield _npz_chunk(source, start, found, gaps, about, kinds, nan_as_missing)
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, NotImplementedError, zipfile.zlib.error) as error:
        raise DataError(f"{source}: not a readable .npz file ({error}); is it truncated?") from None


def _npz_chunk(source, start, found, gaps, about, kinds, nan_as_missing) -> Samples:
    values = {name: member.read(CHUNK) for name, member in found.items()}
    present = {name: member.read(CHUNK).astype(bool) for name, member in gaps.items()}
    rest = {key: member.read(CHUNK) for key, member in about.items()}
    for name, array in values.items():
        if array.dtype.kind == "f":
            broken = ~np.isfinite(array).reshape(len(array), -1).all(1)
            if nan_as_missing:
                gap = np.isnan(array).reshape(len(array), -1).all(1)
                present[name] = present.get(name, True) & ~gap
            bad = np.flatnonzero(broken & present.get(name, np.ones(len(array), bool))) + start
            if len(bad):
                raise DataError(
                    f"{source}: modality {name!r} has NaN or inf in at least {len(bad)} samples, first rows "
                    f"{bad[:5].tolist()}; clean them, add an array present_{name} that is False there, or "
                    "use --nan-as-missing for rows that are NaN throughout"
                )
    texts = {name: list(map(str, array)) for name, array in values.items() if array.dtype.kind == "U"}
    for name, strings in texts.items():
        present[name] = present.get(name, True) & np.array([text != "" for text in strings], bool)
    ids = rest.pop("id", range(start, start + len(next(iter(values.values())))))
    return Samples.of(values | texts, present=present, kinds=kinds, ids=ids, **rest)


class _Member:
    """One array of an .npz, read a few rows at a time and never unpickled."""

    def __init__(self, name: str, file: IO[bytes]):
        self.name, self.file = name, file
        try:
            version = npy.read_magic(self.file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, self.dtype = read_header(self.file)
        except NOT_AN_ARRAY as error:
            raise DataError(f"{self.name}: not an array ({error})") from None
        if self.dtype.kind not in "biufU" or len(shape) == 0:
            raise DataError(
                f"{self.name}: expected numbers or text with one row per sample, got {self.dtype} of shape {shape}"
            )
        self.count, self.shape, self.next, self.whole = shape[0], shape[1:], 0, None
        if fortran:  # rows do not lie one after the other, so there is nothing to stream
            self.whole = self._take(int(np.prod(shape))).reshape(shape, order="F")

    def read(self, rows: int) -> np.ndarray:
        """The next rows, fewer at the end."""
        rows = min(rows, self.count - self.next)
        self.next += rows
        if self.whole is not None:
            return np.ascontiguousarray(self.whole[self.next - rows : self.next])
        return self._take(rows * int(np.prod(self.shape, dtype=np.int64))).reshape(rows, *self.shape)

    def _take(self, numbers: int) -> np.ndarray:
        data = self.file.read(numbers * self.dtype.itemsize)
        if len(data) != numbers * self.dtype.itemsize:
            raise DataError(f"{self.name}: ends before row {self.next} of {self.count}; the file is truncated")
        return np.frombuffer(data, self.dtype)
