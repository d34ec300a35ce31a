"""An .npz of arrays, one row per sample -> chunks of Samples, read a piece at a time and never unpickled.

`x_<modality>` (or plain names), `present_<modality>`, and id, label, split, group. Everything that a header promises is
checked, against the limits and against the size of its member, before memory is taken for it.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from centrobind.data.categories import Codes, unique_ids
from centrobind.data.cells import ABOUT, refuse_other_case
from centrobind.data.media import LIMITS, Limits, npy_header
from centrobind.data.samples import NAME, Column, Samples, column
from centrobind.data.strings import Strings
from centrobind.errors import DataError

ROWS = 2**16  # in a chunk
CHUNK_BYTES = 2**26  # fewer rows, where they are large
MOST_MEMBERS = 4096
WHOLE = 2**30  # bytes of an array in Fortran order: it has to be held whole, its rows do not lie one after the other
# What zipfile and its decompressors raise for a file that is damaged, encrypted or compressed in some other way.
NOT_A_ZIP = (zipfile.BadZipFile, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.zlib.error)


def npz_chunks(
    source: Path,
    *,
    modalities: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    nan_as_missing: bool = False,
    limits: Limits = LIMITS,
) -> Iterator[Samples]:
    """Samples from an .npz; DataError names the array that is wrong, and why."""
    try:
        with zipfile.ZipFile(source) as archive, ExitStack() as opened:
            table = _table(source, _members(source, archive, opened, limits), modalities)
            if unknown := [name for name in kinds or {} if name not in table.values]:
                raise DataError(f"kinds= names {unknown}, expected some of {list(table.values)}")
            for start in range(0, table.count, table.rows):
                chunk = table.chunk(start, kinds or {}, nan_as_missing)
                first = {name: column.kind for name, column in chunk.columns.items() if column.present.any()}
                kinds = first | dict(kinds or {})  # the other chunks are read as this one
                yield chunk
    except DataError:
        raise
    except (*NOT_A_ZIP, *_lzma_error()) as error:
        raise DataError(f"{source}: not a readable .npz file ({error}); is it truncated or encrypted?") from None


def _lzma_error() -> tuple[type[Exception], ...]:
    try:
        from lzma import LZMAError
    except ImportError:  # a Python built without it
        return ()
    return (LZMAError,)


def _members(source: Path, archive: zipfile.ZipFile, opened: ExitStack, limits: Limits) -> dict[str, Member]:
    """The arrays in an archive by name, each opened and its header read."""
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS:
        raise DataError(f"{source}: {len(infos):,} arrays, more than the {MOST_MEMBERS:,} that are read")
    members: dict[str, Member] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise DataError(f"{source}: {info.filename} is there twice; which one is meant?")
        file = opened.enter_context(archive.open(info))
        members[name] = Member(f"{source}: {info.filename}", file, info.file_size, limits)
    return members


@dataclass
class _Table:
    """The members of an archive by what they are for, all with the same number of rows."""

    source: Path
    values: dict[str, Member]
    gaps: dict[str, Member]
    about: dict[str, Member]

    @property
    def count(self) -> int:
        return next(iter(self.values.values())).count

    @property
    def rows(self) -> int:
        """In a chunk."""
        return max(1, min(ROWS, CHUNK_BYTES // max(1, sum(member.row_bytes for member in self.values.values()))))

    def chunk(self, start: int, kinds: Mapping[str, str], nan_as_missing: bool) -> Samples:
        """The next rows, which begin at `start`."""
        present = {name: member.read_flags(self.rows) for name, member in self.gaps.items()}
        columns = {}
        for name, member in self.values.items():
            here = present.get(name)
            columns[name] = _column(name, member.read(self.rows), here, kinds.get(name), start, nan_as_missing, self)
        about = {key: member.read(self.rows) for key, member in self.about.items()}
        count = len(next(iter(columns.values())).rows)
        ids = unique_ids(about.pop("id"), count) if "id" in about else Strings.numbered(start, count)
        return Samples(columns, ids, **{key: Codes.of(values, key) for key, values in about.items()})


def _table(source: Path, members: dict[str, Member], modalities: Sequence[str] | None) -> _Table:
    """The arrays that are wanted, checked for their names and their number of rows."""
    names = [key for key in members if key not in ABOUT and not key.startswith("present_")]
    if any(key.startswith("x_") for key in names):
        names = [key for key in names if key.startswith("x_")]
    if modalities is None:
        refuse_other_case([key.removeprefix("x_") for key in names], str(source))
    known = {key.removeprefix("x_"): members[key] for key in names}
    if unknown := [name for name in modalities or [] if name not in known]:
        raise DataError(f"{source}: no modality {unknown}, expected some of {list(known)}")
    values = {name: known[name] for name in modalities or known}
    if not values:
        raise DataError(f"{source}: expected arrays named x_<modality>, got {list(members)}")
    if bad := [name for name in values if not NAME.fullmatch(name)]:
        raise DataError(f"{source}: {bad} cannot be modality names; use letters, digits, _ and -")
    gaps = {name: members[f"present_{name}"] for name in values if f"present_{name}" in members}
    about = {key: members[key] for key in ABOUT if key in members}
    everything = {**values, **{f"present_{name}": gap for name, gap in gaps.items()}, **about}
    counts = {key: member.count for key, member in everything.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"{source}: expected the same number of rows in every array, got {counts}")
    return _Table(source, values, gaps, about)


def _column(
    name: str, values: np.ndarray, here: np.ndarray | None, kind: str | None, start: int, nan: bool, table: _Table
) -> Column:
    """One modality of a chunk; NaN and inf are refused with their rows in the file."""
    if values.dtype.kind == "U":
        texts = values.tolist()
        written = np.array([text != "" for text in texts], bool)
        return column(name, texts, written if here is None else written & here, kind or "text")
    if values.dtype.kind == "f":
        flat = values.reshape(len(values), -1)
        broken = ~np.isfinite(flat).all(1)
        if broken.any():
            gap = np.isnan(flat).all(1) if nan else np.zeros(len(values), bool)
            here = ~gap if here is None else here & ~gap
            if len(bad := np.flatnonzero(broken & here) + start):
                raise DataError(
                    f"{table.source}: modality {name!r} has NaN or inf in at least {len(bad)} samples, first rows "
                    f"{bad[:5].tolist()}; clean them, add an array present_{name} that is False there, or "
                    "use --nan-as-missing for rows that are NaN throughout"
                )
    return column(name, values, here, kind)


class Member:
    """One array of an .npz, read a few rows at a time and never unpickled."""

    def __init__(self, name: str, file: IO[bytes], size: int, limits: Limits):
        self.name, self.file = name, file
        try:
            shape, fortran, self.dtype = npy_header(file)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        if self.dtype.kind not in "biufU" or len(shape) == 0:
            raise DataError(
                f"{name}: expected numbers or text with one row per sample, got {self.dtype} of shape {shape}"
            )
        self.count, self.shape, self.next = shape[0], shape[1:], 0
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
        self._check(size - file.tell(), limits)
        self.whole: np.ndarray | None = None
        if fortran and len(shape) > 1:
            if self.count * self.row_bytes > WHOLE:
                raise DataError(
                    f"{name}: {self.count * self.row_bytes / 2**30:.1f} GiB in Fortran order, which has to be read "
                    f"whole, and at most {WHOLE / 2**30:.0f} GiB is; save it with numpy.ascontiguousarray(array)"
                )
            self.whole = self._take(math.prod(shape)).reshape(shape, order="F")

    def _check(self, size: int, limits: Limits) -> None:
        """Whether as many bytes follow as the header promises, and whether a row of them is a sample that is read."""
        numbers, characters = math.prod(self.shape), self.dtype.itemsize // 4
        if self.dtype.kind != "U" and numbers > limits.numbers:
            raise DataError(
                f"{self.name}: {numbers:,} numbers a sample, more than the {limits.numbers:,} that are read; if they "
                "are meant, say --limit numbers=..."
            )
        if self.dtype.kind == "U" and (self.shape or characters > limits.characters):
            raise DataError(
                f"{self.name}: expected one text a sample of at most {limits.characters:,} characters, got shape "
                f"{(self.count, *self.shape)} of {characters:,}; --limit characters=... allows more"
            )
        if size != self.count * self.row_bytes:
            raise DataError(
                f"{self.name}: {size:,} bytes where its header promises {self.count * self.row_bytes:,}; "
                "the file is truncated or damaged"
            )

    def read(self, rows: int) -> np.ndarray:
        """The next rows, fewer at the end."""
        rows = min(rows, self.count - self.next)
        self.next += rows
        if self.whole is not None:
            return np.ascontiguousarray(self.whole[self.next - rows : self.next])
        return self._take(rows * math.prod(self.shape)).reshape(rows, *self.shape)

    def read_flags(self, rows: int) -> np.ndarray:
        """The next rows as bool; DataError for what is neither true nor false."""
        values = self.read(rows)
        if values.ndim != 1 or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
            raise DataError(f"{self.name}: expected one True or False (1 or 0) a sample, got {values.dtype}"
                            f" of shape {(self.count, *self.shape)}")  # fmt: skip
        return values.astype(bool)

    def _take(self, numbers: int) -> np.ndarray:
        if self.dtype.itemsize == 0:  # texts that are all empty
            return np.zeros(numbers, "<U1")
        data = self.file.read(numbers * self.dtype.itemsize)
        if len(data) != numbers * self.dtype.itemsize:
            raise DataError(f"{self.name}: ends before row {self.next} of {self.count}; the file is truncated")
        array = np.frombuffer(data, self.dtype)
        if self.dtype.kind == "U":
            points = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(self.dtype.byteorder))
            if ((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any():
                raise DataError(f"{self.name}: holds numbers that are no characters; the file is damaged")
        return array
