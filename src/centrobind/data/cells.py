"""One cell of a table -> one value: text, numbers, or what is in the file that it names.

How a column is read follows from its first cell, or is said: "image:64x64x3", "sound:400x64", "wave:64000",
"series:128", "text". Whatever is wrong with a cell is remembered by row and column, so that all of it can be fixed
at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centrobind.data.arrays import dense
from centrobind.data.decoding import ENDINGS, Reading, reading_for
from centrobind.data.media import LIMITS, Limits, fit_picture
from centrobind.data.paths import path_inside, printable
from centrobind.data.samples import NOT_AN_ARRAY
from centrobind.data.sound import fit_wave
from centrobind.errors import DataError, ExtraError

ABOUT = ("id", "label", "split", "group")  # columns that describe a sample rather than show it


@dataclass(frozen=True)
class BadCell:
    """A cell that cannot be read, and why; `column` is None where the whole row cannot."""

    row: int  # from 1, without the heading
    column: str | None
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}" + (f", column {self.column!r}" if self.column else "") + f": {self.reason}"


class CellReader:
    """Reads cells and remembers what was wrong; each column keeps the way, type and shape of its first value."""

    def __init__(
        self,
        folder: Path | None,
        *,
        nan_as_missing: bool = False,
        readings: Mapping[str, str] | None = None,
        limits: Limits = LIMITS,
    ):
        self.folder = folder
        self.nan_as_missing = nan_as_missing
        self.limits = limits
        self.said = {name: Reading.of(text) for name, text in (readings or {}).items()}
        self.readings: dict[str, Reading] = {}  # of the columns whose cells name files
        self.firsts: dict[str, np.ndarray | str] = {}  # the first value of each column
        self.kinds: dict[str, str] = {}  # of each column, as its first chunk was read
        self.bad: list[BadCell] = []

    def read(self, row: int, name: str, cell: Any) -> np.ndarray | str | None:
        """The value of a cell; None where it is empty, or bad."""
        if cell is None or (isinstance(cell, str) and cell == ""):
            return None
        try:
            value = cell.numbers() if hasattr(cell, "numbers") else self._value(name, cell)
            if value is None:
                return None
            self._check(name, value)
        except ExtraError:  # one package is missing, not a thousand cells wrong
            raise
        except NOT_AN_ARRAY as error:
            self.bad.append(BadCell(row, name, printable(str(error), 400)))
            return None
        if isinstance(value, np.ndarray) and self.nan_as_missing and np.isnan(value).all():
            return None
        self.firsts.setdefault(name, value)
        return value

    def about(self, row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a row says of its sample: id, label, split and group, each a text or a number; bad ones are left out."""
        kept = {}
        for key in ABOUT:
            cell = record.get(key)
            if cell is None:
                continue
            try:
                if not isinstance(cell, str | int | float | np.generic):
                    raise DataError(f"expected a text or a number, got {type(cell).__name__}")
                if cell == "" or cell != cell:  # NaN is how a table of numbers leaves a cell empty
                    continue
                kept[key] = whole_text(cell) if isinstance(cell, str) else cell
            except DataError as error:
                self.bad.append(BadCell(row, key, str(error)))
        return kept

    def _check(self, name: str, value: np.ndarray | str) -> None:
        if isinstance(value, str):
            if len(value) > self.limits.characters:
                raise DataError(
                    f"{len(value):,} characters, more than the {self.limits.characters:,} that are read of a text; "
                    "--limit characters=... allows more"
                )
            whole_text(value)
        else:
            finite = np.isfinite(value)
            if not finite.all() and not (self.nan_as_missing and np.isnan(value).all()):
                raise DataError(f"NaN or inf in {int((~finite).sum())} of {value.size} numbers")
        got, expected = (_looks(known) for known in (value, self.firsts.get(name, value)))
        if got != expected:
            files = name in self.readings and self.readings[name].how in ("series", "array")
            hint = f"; --read {name}=series:64 brings series to one length" if files else ""
            raise DataError(f"expected {expected} as in the first row that has one, got {got}{hint}")

    def _value(self, name: str, cell: Any) -> np.ndarray | str:
        reading = self.said.get(name) or self.readings.get(name)
        if isinstance(cell, str):
            if isinstance(self.firsts.get(name), str) and name not in self.readings:
                return cell
            if reading is not None and reading == self.said.get(name) and reading.how == "text":
                return cell  # said to be text, whatever it ends in
            if cell.lstrip().startswith("["):
                return numbers(json.loads(cell))
            ending = Path(cell).suffix.lower()
            if self.folder is not None and (ending in ENDINGS or (reading and reading.how != "text")):
                return self._file(name, cell, reading, ending)
            if is_number(cell):
                raise DataError(
                    f"a single number ({cell}) is no modality; write [{cell}], or leave it out with --modalities"
                )
            return cell
        if isinstance(cell, Mapping) and "array" not in cell and ("bytes" in cell or "path" in cell):
            return self._packed(name, cell, reading)
        return self._object(name, cell, reading)

    def _file(self, name: str, cell: str, reading: Reading | None, ending: str) -> np.ndarray | str:
        """What is in a file of the manifest's folder; the first of a column says how the others are read."""
        if reading is None:
            try:
                reading = reading_for(ending)
            except DataError as error:
                raise DataError(f"{printable(cell)}: {error}") from None
        self.readings.setdefault(name, reading)
        try:
            return reading.decode(path_inside(self.folder, cell), self.limits)
        except ExtraError:
            raise
        except DataError as error:
            raise DataError(f"{printable(cell)}: {error}") from None

    def _packed(self, name: str, cell: Mapping, reading: Reading | None) -> np.ndarray | str:
        """A file inside a Parquet table or a Hugging Face dataset: {"bytes": ..., "path": its name}.

        What is in `bytes` is decoded and never opened: a text there would be a path of the manifest's choice.
        """
        path, content = cell.get("path"), cell.get("bytes")
        if path is not None and not isinstance(path, str):
            raise DataError(f"path: expected the name of a file, got {type(path).__name__}")
        ending = Path(path or "").suffix.lower()
        if content is None:
            if path is None:
                raise DataError("expected bytes or a path, got neither")
            if self.folder is None:
                raise DataError(
                    f"{printable(path)}: only a path, and no folder is given; say folder=..., files below it are read"
                )
            return self._file(name, path, reading, ending)
        if not isinstance(content, bytes | bytearray | memoryview):
            raise DataError(
                f"bytes: expected the content of a file, got {type(content).__name__}; the name of a file belongs in "
                "path, or in the cell itself; JSON cannot hold bytes"
            )
        if reading is None:
            reading = reading_for(ending if ending in ENDINGS else ".png")  # packed pictures often have no name
        self.readings.setdefault(name, reading)
        return reading.decode(content, self.limits)

    def _object(self, name: str, cell: Any, reading: Reading | None) -> np.ndarray:
        """Numbers, or a picture or a sound that somebody decoded already."""
        if hasattr(cell, "getbands"):  # pillow's
            reading = reading or Reading.of("image")
            self.readings.setdefault(name, reading)
            return fit_picture(cell, reading.shape, self.limits)
        if isinstance(cell, Mapping) and {"array", "sampling_rate"} <= set(cell):
            reading = reading or Reading.of("sound")
            self.readings.setdefault(name, reading)
            return fit_wave(np.asarray(cell["array"]), int(cell["sampling_rate"]), reading.shape)
        return numbers(cell)


def refuse_other_case(names: Iterable[str], where: str) -> None:
    """DataError for a column `Label`: is it the label, or a modality? Trained on, it would give the answer away."""
    if other := [name for name in names if name.lower() in ABOUT and name not in ABOUT]:
        raise DataError(
            f"{where}: column {other[0]!r} is written otherwise than {other[0].lower()!r}, which describes a sample; "
            "rename it to that if it does, or pick the modalities with --modalities"
        )


def numbers(cell: Any) -> np.ndarray:
    """A list, an array or a tensor as an array; DataError if it is no such thing."""
    if hasattr(cell, "detach") or hasattr(cell, "tocsr"):  # a tensor, which may be of a type that numpy does not know
        cell = dense("the cell", cell)
    array = np.asarray(cell)
    if array.dtype.kind not in "biuf":
        raise DataError(f"expected numbers or text, got {type(cell).__name__}")
    if array.ndim == 0:
        raise DataError(f"a single number ({cell}) is no modality; write [{cell}], or leave it out")
    if array.size == 0:
        raise DataError("expected at least one number, got an empty list")
    return array


def whole_text(text: str) -> str:
    """The same text; DataError for half of a surrogate pair, which JSON can write, and UTF-8 and a screen cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"not a text: half a character ({text[error.start]!a}) at place {error.start + 1}") from None
    return text


def _looks(value: np.ndarray | str) -> str:
    return "text" if isinstance(value, str) else f"numbers of shape {value.shape}"


def is_number(cell: Any) -> bool:
    """Whether a cell is a single number, as text or as it is."""
    if not isinstance(cell, str):
        return isinstance(cell, int | float | np.number)
    try:
        float(cell)
    except ValueError:
        return False
    return True
