"""Tables of text -> rows as dicts: CSV with any usual separator, JSONL, Parquet, in the encoding that they are in.

A byte that does not fit the encoding is refused, never replaced: "caf\ufffd" would be learned as it is.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from centrobind.data.cells import ABOUT
from centrobind.data.decoding import TABBED
from centrobind.data.paths import printable
from centrobind.data.samples import NAME
from centrobind.errors import DataError

SEPARATORS = ",;\t|"
LONGEST_LINE = 2**26  # characters: a sample of more would be read whole before anything could be said of it
LONGEST_CELL = 2**24
BATCH = 1024  # rows of Parquet
MARKS = {  # how a file begins that says what it is encoded in
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, which begins in the same way
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNNAMED = "__index_level_0__"  # how pandas calls the names of rows when it writes them to Parquet


def csv_rows(source: Path, encoding: str | None = None) -> Iterator[dict[str, str] | str]:
    """Rows of a CSV file; a str instead of a dict is a row that could not be read, and why.

    Its separator is the one of comma, semicolon, tab and bar that makes names of the first line; a first column without
    a name, as pandas writes it, holds ids.
    """
    with _opened(source, encoding) as file:
        lines = _lines(source, file)
        first = next(lines, "")
        separator = "\t" if source.suffix.lower() == TABBED else _separator(source, first)
        reader = csv.reader(_again(first, lines), delimiter=separator)
        header = [name.strip() for name in _next(source, reader) or []]
        if header and header[0] == "" and "id" not in header:
            header[0] = "id"
        if twice := _twice(header):
            raise DataError(f"{source}: expected distinct column names in the first line, got {twice} more than once")
        while (row := _next(source, reader)) is not None:
            if not row:
                continue
            if len(row) != len(header):
                yield f"expected {len(header)} cells as in the first line, got {len(row)}"
            else:
                yield dict(zip(header, row))


def _twice(names: Sequence[str]) -> list[str]:
    """The first few names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1][:5]


def _next(source: Path, reader: Any) -> list[str] | None:
    """The next row; the size of a cell is bounded for the whole process, so the bound is put back each time."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(f"{source}: not a CSV file near line {reader.line_num} ({error})") from None
    finally:
        csv.field_size_limit(before)


def _separator(source: Path, line: str) -> str:
    """What parts the first line into names that columns can have; the most parts, where none does."""
    parts = {mark: _next(source, csv.reader([line], delimiter=mark)) or [] for mark in SEPARATORS}
    named = {mark: all(NAME.fullmatch(name.strip()) or not name for name in names) for mark, names in parts.items()}
    return max(SEPARATORS, key=lambda mark: (named[mark] and len(parts[mark]) > 1, len(parts[mark])))


def jsonl_rows(source: Path, encoding: str | None = None) -> Iterator[dict[str, Any] | str]:
    """Rows of a file with a JSON object a line; a str is a row that could not be read, and why."""
    with _opened(source, encoding) as file:
        for line in _lines(source, file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else f"expected an object {{...}}, got {type(row).__name__}"
            except (ValueError, RecursionError) as error:
                yield f"not JSON ({error})"


def parquet_rows(source: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file. Names of rows that pandas wrote are ids where they are texts, and no data where not."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source}: reading Parquet needs pyarrow: pip install 'centrobind[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            if twice := _twice(names):
                raise DataError(f"{source}: expected distinct column names, got {twice} more than once")
            for batch in file.iter_batches(batch_size=BATCH):
                if UNNAMED in names:
                    batch = _without_index(batch, "id" in names)
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source}: not a readable Parquet file ({error})") from None


def _without_index(batch: Any, has_ids: bool) -> Any:
    index = batch.column(UNNAMED)
    kept = batch.drop_columns([UNNAMED])
    return kept if has_ids or "string" not in str(index.type) else kept.append_column("id", index)


def _opened(source: Path, encoding: str | None) -> TextIO:
    with open(source, "rb") as file:
        start = file.read(4)
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    try:
        name = codecs.lookup(encoding or marked or "utf-8").name if marked != "utf-8-sig" else "utf-8-sig"
        "".encode(name)  # codecs has some that are of no text, such as zip
    except LookupError:
        raise DataError(
            f"{source}: unknown encoding {encoding!r}; expected one such as utf-8, cp1252, latin-1"
        ) from None
    return open(source, newline="", encoding=name, errors="surrogateescape" if name.startswith("utf-8") else "strict")


def _lines(source: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file; DataError for one that is not in its encoding, or too long."""
    number = 0
    try:
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise DataError(f"{source}: line {number} is longer than {LONGEST_LINE:,} characters")
            if number == 1 and "\0" in line:
                raise DataError(f"{source}: holds zero bytes; is it in UTF-16? Then say --encoding utf-16-le")
            if not line.isascii():
                _check_bytes(source, number, line)
            yield line
    except UnicodeError as error:
        raise DataError(f"{source}: not in the encoding that it should be in, after line {number} ({error})") from None


def _check_bytes(source: Path, number: int, line: str) -> None:
    """A byte that is not UTF-8 was read as half a surrogate pair, so that its line is known."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        near = printable(line[max(0, error.start - 12) : error.start])
        raise DataError(
            f"{source}: line {number} is not in UTF-8 (byte {byte:#x} after {near!r}); say what it is in: --encoding "
            "cp1252 for files of Excel and Windows, latin-1, or another that Python knows"
        ) from None


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


class Joined:
    """The cells of several columns that are one modality: a number each."""

    def __init__(self, names: Sequence[str], cells: Sequence[Any]):
        self.names, self.cells = names, cells

    def numbers(self) -> np.ndarray | None:
        """(columns,) float64, None where all are empty; DataError names the first cell that is no number."""
        cells = [None if cell == "" else cell for cell in self.cells]
        if all(cell is None for cell in cells):
            return None
        try:
            return np.array(cells, np.float64)
        except (ValueError, TypeError):
            for name, cell in zip(self.names, cells):
                try:
                    float("nan" if cell is None else cell)
                except (ValueError, TypeError):
                    raise DataError(f"column {name!r}: expected a number, got {printable(str(cell))!r}") from None
            raise


def joined(
    rows: Iterator[Mapping[str, Any] | str], columns: Mapping[str, Sequence[str]], where: str
) -> Iterator[Mapping[str, Any] | str]:
    """The rows with several columns as one: {"acc": ["ax", "ay", "az"], "genes": ["ENSG*"]}, patterns in file order.

    DataError for a pattern that no column fits, or a column that is wanted twice.
    """
    picked: dict[str, list[str]] | None = None
    for row in rows:
        if isinstance(row, str):
            yield row
            continue
        if picked is None:
            picked = {name: _fitting(name, patterns, list(row), where) for name, patterns in columns.items()}
            used = [column for names in picked.values() for column in names]
            if twice := _twice(used):
                raise DataError(f"{where}: --columns wants {twice} in more than one modality")
            taken = set(used)
        rest = {key: cell for key, cell in row.items() if key not in taken}
        yield rest | {name: Joined(names, [row.get(key) for key in names]) for name, names in picked.items()}


def _fitting(name: str, patterns: Sequence[str], known: list[str], where: str) -> list[str]:
    names: dict[str, None] = {}
    for pattern in patterns:
        fits = (
            [pattern] if pattern in known else [key for key in known if fnmatchcase(key, pattern) and key not in ABOUT]
        )
        if not fits:
            raise DataError(f"{where}: --columns {name}: no column {pattern!r}, expected some of {known[:20]}")
        names |= dict.fromkeys(fits)
    return list(names)
