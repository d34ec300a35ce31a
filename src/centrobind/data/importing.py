"""Anything a person has -> chunks of Samples, streamed: npz, CSV, JSONL, Parquet, any map-style dataset.

A manifest has one row per sample and one column per modality, besides `id`, `label`, `split` and `group`,
all optional. A cell is text, a list of numbers, or the path of a file beside or below the manifest (cells.py); an empty
cell means missing. Everything wrong with a manifest is reported at once, by row and column.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from centrobind.data.cells import ABOUT, BadCell, CellReader, is_number, refuse_other_case
from centrobind.data.decoding import TABBED
from centrobind.data.media import LIMITS, Limits
from centrobind.data.npz import npz_chunks
from centrobind.data.samples import NAME, Samples
from centrobind.data.tables import csv_rows, joined, jsonl_rows, parquet_rows
from centrobind.errors import DataError
from centrobind.files import named

CHUNK = 1024  # rows
CHUNK_BYTES = 2**26  # fewer rows, where they are large
MOST_PROBLEMS = 20
TABLES: dict[str, Any] = {
    ".npz": npz_chunks,
    ".csv": csv_rows,
    TABBED: csv_rows,
    ".jsonl": jsonl_rows,
    ".parquet": parquet_rows,
}


def read_chunks(
    source: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan_as_missing: bool = False,
    readings: Mapping[str, str] | None = None,
    limits: Limits = LIMITS,
    skipped: list[BadCell] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    encoding: str | None = None,
) -> Iterator[Samples]:
    """Samples from an .npz, .csv, .tsv, .jsonl or .parquet file, chunk by chunk.

    `modalities` picks columns (default: all that are not id, label, split or group), `kinds` overrides what
    a modality looks like, `nan_as_missing` takes an all-NaN row for a gap. `readings` says how the files that a table
    names become samples, {"photo": "image:64x64x3"}, `limits` how much is decoded of one. Given a list `skipped`, bad
    cells are put there and become gaps, bad rows are left out; else they all are in one DataError. `columns` makes one
    modality of several columns with a number each, {"acc": ["ax", "ay", "az"], "genes": ["ENSG*"]}. `encoding` is that
    of a CSV or JSONL file which is not UTF-8 and does not say so itself, such as cp1252.
    """
    source = named(source, DataError)
    if not source.is_file():
        raise DataError(f"{source}: no such file; expected an .npz, .csv, .tsv, .jsonl or .parquet file")
    ending = source.suffix.lower()
    if ending not in TABLES:
        raise DataError(f"{source}: expected the ending {', '.join(TABLES)}, got {source.suffix or 'none'!r}")
    if ending in (".npz", ".parquet") and encoding:
        raise DataError(f"{source}: --encoding {encoding} is for CSV and JSONL; this file has none")
    if ending == ".npz":
        if columns:
            raise DataError(f"{source}: holds arrays; --columns joins columns of a table")
        if readings:
            raise DataError(f"{source}: holds arrays; only the files that a table names are read as {readings}")
        return npz_chunks(source, modalities=modalities, kinds=kinds, nan_as_missing=nan_as_missing, limits=limits)
    rows = parquet_rows(source) if ending == ".parquet" else TABLES[ending](source, encoding)
    return record_chunks(
        joined(rows, columns, str(source)) if columns else rows,
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
    input was seen, so that a person fixes a manifest once and not twenty times; see `read_chunks` for `skipped`.
    """
    reader = CellReader(folder, nan_as_missing=nan_as_missing, readings=readings, limits=limits)
    names = None if modalities is None else list(modalities)
    rows: list[dict[str, Any]] = []
    seen: dict[str, None] | None = None  # the columns that are known
    count = done = held = 0
    for count, record in enumerate(records, start=1):
        if isinstance(record, str):
            reader.bad.append(BadCell(count, None, record))
            continue
        if modalities is None:
            if seen is None or record.keys() - seen.keys():
                names = _with_new(names or [], record, where)
                seen = dict.fromkeys([*names, *ABOUT])
        elif missing := [name for name in modalities if name not in record] if done == 0 else []:
            raise DataError(f"{where}: no column {missing}, expected some of {list(record)}")
        if done == 0:
            _refuse_lone_numbers(record, names, where)
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


def _refuse_lone_numbers(record: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """DataError where a table has many columns of one number each, as one of genes has: they are one modality."""
    lone = [name for name in names if is_number(record.get(name))]
    if len(lone) > MOST_PROBLEMS:
        raise DataError(
            f"{where}: {len(lone):,} columns hold a single number each ({lone[0]}, {lone[1]}, ...), which is no "
            f"modality; make one of them: --columns NAME={lone[0]},{lone[1]},... or a pattern, --columns 'NAME=*', "
            "or pick others with --modalities"
        )


def _with_new(names: list[str], record: Mapping[str, Any], where: str) -> list[str]:
    """The columns known, and those that a row brings."""
    known = {*names, *ABOUT}
    new = [key for key in record if key not in known]
    refuse_other_case(new, where)
    if bad := [key for key in new if not NAME.fullmatch(key)]:
        raise DataError(
            f"{where}: columns {bad[:10]} cannot be modality names; use letters, digits, _ and -, at most 64, or pick "
            "columns with --modalities"
        )
    return [*names, *new]


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
    chosen = {name: kind for name, kind in {**said, **reader.kinds, **(kinds or {})}.items() if name in seen}
    samples = Samples.of(seen, present=present, kinds=chosen, ids=[row["id"] for row in rows], **about)
    reader.kinds |= {name: column.kind for name, column in samples.columns.items() if name not in present}
    for name in seen.keys() & reader.readings.keys():
        samples.columns[name] = replace(samples.columns[name], reading=str(reader.readings[name]))
    return samples
