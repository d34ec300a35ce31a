"""Anything a person has -> chunks of Samples, streamed: npz, CSV, JSONL, Parquet, any map-style dataset.

A manifest has one row per sample and one column per modality, besides `id`, `label`, `split` and `group`,
all optional. A cell is text, a list of numbers, or the path of a file beside or below the manifest (cells.py); an empty
cell means missing. Everything wrong with a manifest is reported at once, by row and column.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from centrobind.data.cells import ABOUT, BadCell, CellReader
from centrobind.data.media import LIMITS, Limits
from centrobind.data.samples import NAME, NOT_AN_ARRAY, Samples
from centrobind.errors import DataError

CHUNK = 1024  # rows
CHUNK_BYTES = 2**26  # fewer rows, where they are large
MOST_PROBLEMS = 20


def read_chunks(
    source: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan_as_missing: bool = False,
    readings: Mapping[str, str] | None = None,
    limits: Limits = LIMITS,
    skipped: list[BadCell] | None = None,
) -> Iterator[Samples]:
    """Samples from an .npz, .csv, .jsonl or .parquet file, chunk by chunk.

    `modalities` picks columns (default: all that are not id, label, split or group), `kinds` overrides what
    a modality looks like, `nan_as_missing` takes an all-NaN row for a gap. `readings` says how the files that a table
    names become samples, {"photo": "image:64x64x3"}, `limits` how much is decoded of one. Given a list `skipped`, bad
    cells are put there and become gaps, bad rows are left out; else they all are in one DataError.
    """
    source = Path(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file; expected an .npz, .csv, .jsonl or .parquet file")
    readers = {".npz": None, ".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if source.suffix not in readers:
        raise DataError(f"{source}: expected the ending {', '.join(readers)}, got {source.suffix or 'none'!r}")
    if source.suffix == ".npz":
        if readings:
            raise DataError(f"{source}: holds arrays; only the files that a table names are read as {readings}")
        return _npz_chunks(source, modalities, kinds, nan_as_missing)
    return record_chunks(
        readers[source.suffix](source),
        folder=source.parent,
        where=str(source),
        modalities=modalities,
        kinds=kinds,
        nan_as_missing=nan_as_missing,
        readings=readings,
        limits=limits,
        skipped=skipped,
    )


def dataset_chunks(dataset: Any, **options: Any) -> Iterator[Samples]:
    """Samples from any map-style dataset: `len(dataset)` and `dataset[i]` -> dict with None where missing.

    Pictures of pillow's, {"array": ..., "sampling_rate": ...} and {"bytes": ..., "path": ...} are understood, as a
    Hugging Face dataset has them, and its label's numbers get their names. Options and errors as for `read_chunks`.
    """
    label = getattr(dataset, "features", {}).get("label")
    names = getattr(label, "names", None)

    def row(number: int) -> Mapping[str, Any] | str:
        try:
            found = dataset[number]
        except (OSError, SyntaxError) as error:  # a broken picture, where the data set decodes it itself
            return " ".join(str(error).split())[:200]
        known = names is not None and isinstance(found.get("label"), int) and 0 <= found["label"] < len(names)
        return {**found, "label": names[found["label"]]} if known else found

    return record_chunks(map(row, range(len(dataset))), **options)


def record_chunks(
    records: Iterable[Mapping[str, Any] | str],
    *,
    folder: Path | None = None,
    where: str = "dataset",
    modalities: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan_as_missing: bool = False,
    readings: Mapping[str, str] | None = None,
    limits: Limits = LIMITS,
    skipped: list[BadCell] | None = None,
) -> Iterator[Samples]:
    """Samples from dicts, one per sample; a str instead of a dict is a row that could not be read, and why.

    With `folder`, a cell may be the path of a file in it. Raises DataError naming every bad cell, after the whole
    input was seen, so that a person mends a manifest once and not twenty times; see `read_chunks` for `skipped`.
    """
    reader = CellReader(folder, nan_as_missing=nan_as_missing, readings=readings, limits=limits)
    names = None if modalities is None else list(modalities)
    rows: list[dict[str, Any]] = []
    count = done = held = 0
    for count, record in enumerate(records, start=1):
        if isinstance(record, str):
            reader.bad.append(BadCell(count, None, record))
            continue
        if modalities is None:
            names = _with_new(names or [], record, where)
        elif missing := [name for name in modalities if name not in record] if done == 0 else []:
            raise DataError(f"{where}: no column {missing}, expected some of {list(record)}")
        values = {name: reader.read(count, name, record.get(name)) for name in names}
        about = reader.about(count, record)
        done += 1
        if reader.bad and skipped is None:
            rows = []  # nothing will be imported: only look for what else is wrong
            continue
        rows.append({"id": count - 1} | values | about)
        held += sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
        if (len(rows) >= CHUNK or held >= CHUNK_BYTES) and reader.firsts:
            _check_said(reader, names, where)
            yield _chunk(rows, names, kinds, reader)
            rows, held = [], 0
    if reader.bad and skipped is None:
        raise DataError(f"{where}: {in_words(reader.bad)}; nothing was imported\n  {first_of(reader.bad)}")
    if skipped is not None:
        skipped += reader.bad
    if done == 0:
        raise DataError(f"{where}: expected a row per sample, got none" + (" that can be read" if count else ""))
    if not names:
        raise DataError(f"{where}: expected a column per modality besides {list(ABOUT)}, got none")
    if rows:
        _check_said(reader, names, where)
        yield _chunk(rows, names, kinds, reader)


def _with_new(names: list[str], record: Mapping[str, Any], where: str) -> list[str]:
    """The columns known, and those that a row brings."""
    new = [key for key in record if key not in ABOUT and key not in names]
    refuse_other_case(new, where)
    if bad := [key for key in new if not NAME.fullmatch(key)]:
        raise DataError(
            f"{where}: columns {bad} cannot be modality names; use letters, digits, _ and -, at most 64, or pick "
            "columns with --modalities"
        )
    return [*names, *new]


def refuse_other_case(names: Iterable[str], where: str) -> None:
    """DataError for a column `Label`: is it the label, or a modality? Trained on, it would give the answer away."""
    if other := [name for name in names if name.lower() in ABOUT and name not in ABOUT]:
        raise DataError(
            f"{where}: column {other[0]!r} is written otherwise than {other[0].lower()!r}, which describes a sample; "
            "rename it to that if it does, or pick the modalities with --modalities"
        )


def _check_said(reader: CellReader, names: Sequence[str], where: str) -> None:
    if unknown := [name for name in reader.said if name not in names]:
        raise DataError(f"{where}: no column {unknown} to be read as said, expected some of {list(names)}")


def in_words(bad: Sequence[BadCell]) -> str:
    """How many cells and rows cannot be read."""
    rows = sum(cell.column is None for cell in bad)
    parts = [f"{count} {what}" for count, what in ((len(bad) - rows, "cells"), (rows, "whole rows")) if count]
    return f"{' and '.join(parts)} cannot be read"


def first_of(bad: Sequence[BadCell]) -> str:
    """The first of them, a line each."""
    more = [f"... and {len(bad) - MOST_PROBLEMS} more"] if len(bad) > MOST_PROBLEMS else []
    return "\n  ".join([*map(str, bad[:MOST_PROBLEMS]), *more])


def list_skipped(bad: Sequence[BadCell], path: Path) -> None:
    """Write them to a CSV file with the columns row, column and reason."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("row", "column", "reason"), *((b.row, b.column or "", b.reason) for b in bad)])


def _chunk(rows: list[dict], names: list[str], kinds: Mapping[str, str] | None, reader: CellReader) -> Samples:
    columns = {name: [row.get(name) for row in rows] for name in names}
    seen = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    about = {
        key: [row.get(key) for row in rows] for key in ("label", "split", "group") if any(key in row for row in rows)
    }
    present = {}
    if not seen:  # nothing but gaps in this chunk: keep the samples, they may have labels
        name, value = next(iter(reader.firsts.items()), (names[0], ""))
        seen, present = {name: np.stack([value] * len(rows))}, {name: np.zeros(len(rows), bool)}
        if isinstance(value, str):
            seen, present = {name: [None] * len(rows)}, {}
    texts = {**reader.said, **reader.readings}  # what was decoded from a file, or said to be text, names no file
    said = {name: "text" for name, reading in texts.items() if reading.how == "text"}
    chosen = {name: kind for name, kind in {**said, **(kinds or {})}.items() if name in seen}
    samples = Samples.of(seen, present=present, kinds=chosen, ids=[row["id"] for row in rows], **about)
    for name in seen.keys() & reader.readings.keys():
        samples.columns[name] = replace(samples.columns[name], reading=str(reader.readings[name]))
    return samples


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
            if modalities is None:
                refuse_other_case([key.removeprefix("x_") for key in names], str(source))
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
