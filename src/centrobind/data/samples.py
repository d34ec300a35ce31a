"""Samples: N things seen in M modalities, any of which may be missing from any of them.

One class for arrays in memory and for a memory-mapped store, because both are the same picture: per
modality the values that exist, packed without gaps, and a row index that says which sample owns
which value (-1 = missing). Missing data is born here and nowhere else.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from centrobind.errors import DataError, StoreError
from centrobind.types import Batch

KINDS = ("vector", "sequence", "image", "text")
# All that numpy raises for an .npy file that is none; TokenError comes from its reading of Python 2's headers.
NOT_AN_ARRAY = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError, RecursionError),
    tokenize.TokenError,
)
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def will_need(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
    """Tell the system which rows of a memory-mapped array are read next, so that it fetches them all at once.

    Page faults come one after the other: 256 cold rows of 4 kB took 42 ms without this and 5 ms with it. Only a
    hint, and nothing at all for an array in memory. Not mmap.madvise, which keeps the interpreter to itself meanwhile.
    """
    if not isinstance(values, np.memmap) or not hasattr(os, "posix_fadvise") or len(starts) == 0:
        return
    width = values.strides[0]
    first = (values.offset + np.asarray(starts, np.int64) * width) // mmap.PAGESIZE
    last = -(-(values.offset + np.asarray(stops, np.int64) * width) // mmap.PAGESIZE)
    order = np.argsort(first, kind="stable")
    first, last = first[order], np.maximum.accumulate(last[order])
    begins = np.concatenate([[True], first[1:] > last[:-1]])  # neighbours are asked for in one call
    ends = np.concatenate([begins[1:], [True]])
    with contextlib.suppress(OSError), open(values.filename, "rb", buffering=0) as file:
        for a, b in zip(first[begins].tolist(), last[ends].tolist()):
            if b > a:
                os.posix_fadvise(file.fileno(), a * mmap.PAGESIZE, (b - a) * mmap.PAGESIZE, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class Strings:
    """Many strings as one UTF-8 blob and where each lies in it: memory-mapped and picked like numbers."""

    blob: np.ndarray  # (bytes,) uint8
    starts: np.ndarray  # (N,) int64
    stops: np.ndarray  # (N,) int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        stops = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        blob = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(blob, stops - [len(text) for text in encoded], stops)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: Any) -> Strings:
        """Some of them, sharing the blob."""
        return Strings(self.blob, self.starts[rows], self.stops[rows])

    def __getitem__(self, rows: Any) -> list[str]:
        picked = self.take(rows)
        will_need(self.blob, picked.starts, picked.stops)
        try:
            return [
                self.blob[a:b].tobytes().decode("utf-8", "surrogatepass") for a, b in zip(picked.starts, picked.stops)
            ]
        except UnicodeDecodeError as error:
            raise StoreError(
                f"a text is not UTF-8 ({error.reason}): its file was damaged; `centrobind inspect STORE --verify` "
                "says which, import the data again"
            ) from None


@dataclass(frozen=True)
class Codes:
    """A category per sample, such as its label or its split; -1 where none is given."""

    codes: np.ndarray  # (N,) int32
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[Any] | np.ndarray) -> Codes:
        """From numbers or strings; None and "" mean not given. Names are sorted, numbers as numbers."""
        plain = [value.item() if isinstance(value, np.generic) else value for value in values]
        given = {value for value in plain if value is not None and value != ""}
        order = sorted(given, key=lambda v: (isinstance(v, str), v if not isinstance(v, str) else 0, str(v)))
        code = {value: index for index, value in enumerate(order)}
        return cls(np.array([code.get(value, -1) for value in plain], np.int32), tuple(map(str, order)))

    def __getitem__(self, rows: Any) -> Codes:
        return Codes(self.codes[rows], self.names)

    def __len__(self) -> int:
        return len(self.codes)

    def where(self, name: str) -> np.ndarray:
        """Indices of the samples in one category; DataError if there is no such category."""
        if name not in self.names:
            raise DataError(f"expected one of {list(self.names)}, got {name!r}")
        return np.flatnonzero(self.codes == self.names.index(name))


@dataclass(frozen=True)
class Column:
    """One modality: the values that exist, packed, and which of them each sample owns."""

    values: np.ndarray | Strings  # (rows, ...)
    rows: np.ndarray  # (N,) int32, -1 = missing
    kind: str  # one of KINDS
    reading: str = ""  # how the files it came from were decoded, "image:64x64x3": a query has to be decoded alike

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"[{self.kind}{' ' if shape else ''}{shape}, {int(self.present.sum())} present]"

    @property
    def present(self) -> np.ndarray:
        return self.rows >= 0

    @property
    def values_bytes(self) -> int:
        """The size of all values, in memory or on the disk."""
        return self.values.blob.nbytes if isinstance(self.values, Strings) else self.values.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample; () for text."""
        return () if isinstance(self.values, Strings) else self.values.shape[1:]

    def take(self, samples: np.ndarray) -> np.ndarray | list[str]:
        """The values of those of these samples that have one, in order."""
        rows = self.rows[samples]
        rows = rows[rows >= 0]
        if isinstance(self.values, Strings):
            return self.values[rows]
        will_need(self.values, rows, rows + 1)
        # Not values[rows]: that keeps the interpreter to itself while it waits for the disk, and training stands still.
        return np.take(np.asarray(self.values), rows, axis=0)


@dataclass(frozen=True)
class Samples:
    """N samples with an id each, M modalities, and optionally a label, a split and a group."""

    columns: dict[str, Column]
    ids: Strings
    label: Codes | None = None
    split: Codes | None = None
    group: Codes | None = None

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, Any] | Samples,
        *,
        present: Mapping[str, Any] | None = None,
        kinds: Mapping[str, str] | None = None,
        label: Sequence[Any] | None = None,
        ids: Sequence[Any] | None = None,
        split: Sequence[Any] | None = None,
        group: Sequence[Any] | None = None,
    ) -> Samples:
        """From one array (N, ...) or list per modality, None or a bool `present[m]` marking gaps.

        Raises DataError on unequal counts, NaN or inf in a present row, unknown names or kinds,
        duplicate ids, or labels of another length.
        """
        if isinstance(arrays, Samples):
            return arrays
        if not arrays:
            raise DataError("expected a dict with an array per modality, got an empty one")
        for what, names in (("present", present), ("kinds", kinds)):
            if unknown := set(names or ()) - set(arrays):
                raise DataError(
                    f"{what}= names {sorted(unknown)}, but the modalities are {sorted(arrays)}; "
                    "mend the name or add the array"
                )
        counts = {name: len(values) for name, values in arrays.items()}
        count = next(iter(counts.values()))
        if any(other != count for other in counts.values()):
            raise DataError(
                f"expected the same number of samples in every modality, got {counts}; row i must be the same "
                "thing everywhere: put None (or present= False) where a modality is missing"
            )
        columns = {
            name: column(name, values, (present or {}).get(name), (kinds or {}).get(name))
            for name, values in arrays.items()
        }
        made = {
            what: None if values is None else _codes(what, values, count)
            for what, values in (("label", label), ("split", split), ("group", group))
        }
        return cls(columns, unique_ids(range(count) if ids is None else ids, count), **made)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        seen = ", ".join(f"{name} {column!r}" for name, column in self.columns.items())
        return f"Samples({len(self)}: {seen})"

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def present(self) -> np.ndarray:
        """(M, N) bool."""
        return np.stack([column.present for column in self.columns.values()])

    def take(self, samples: Any) -> Samples:
        """Some of the samples, sharing the values with these."""
        samples = np.arange(len(self))[samples]
        return Samples(
            {name: replace(column, rows=column.rows[samples]) for name, column in self.columns.items()},
            self.ids.take(samples),
            *(None if codes is None else codes[samples] for codes in (self.label, self.split, self.group)),
        )

    def only(self, modalities: Sequence[str]) -> Samples:
        """These modalities, in this order; DataError for an unknown one."""
        if unknown := [name for name in modalities if name not in self.columns]:
            raise DataError(f"unknown modalities {unknown}, expected some of {list(self.columns)}")
        return replace(self, columns={name: self.columns[name] for name in modalities})

    def part(self, split: str) -> Samples:
        """The samples of one split; DataError if it is unknown or empty."""
        if self.split is None:
            raise DataError(
                f"expected a split named {split!r}, got data without splits; see centrobind.data.assign_splits"
            )
        picked = self.split.where(split)
        if len(picked) == 0:
            raise DataError(f"split {split!r} is empty: none of the {len(self)} samples is in it")
        return self.take(picked)

    def batch(self, samples: np.ndarray, part: slice = slice(None)) -> Batch:
        """These samples, values as stored; or a `part` of them, that knows its place in the whole."""
        samples = np.asarray(samples)
        present = np.stack([column.rows[samples] >= 0 for column in self.columns.values()])
        inputs = {name: column.take(samples[part]) for name, column in self.columns.items()}
        batch = Batch(inputs, torch.from_numpy(present[:, part]), samples[part])
        if len(batch) == len(samples):
            return batch
        before, of = present[:, : part.start].sum(1).tolist(), present.sum(1).tolist()
        return replace(batch, whole=samples, place=dict(zip(self.columns, zip(before, of))))


def column(name: str, values: Any, present: Any = None, kind: str | None = None) -> Column:
    """One modality from an array or a list with gaps; DataError says what is wrong with it."""
    if not NAME.fullmatch(name):
        raise DataError(f"modality name {name!r}: expected a letter, then letters, digits, _ or -, at most 64")
    if kind is not None and kind not in KINDS:
        raise DataError(f"modality {name!r}: unknown kind {kind!r}, expected one of {list(KINDS)}")
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.dtype != object and values.ndim > 0:
        here = np.ones(len(values), bool)
    else:
        here = np.array([value is not None for value in values], bool)
    if present is not None:
        present = np.asarray(present)
        if present.dtype != bool or present.shape != here.shape:
            raise DataError(
                f"present[{name!r}]: expected bool of shape {here.shape}, got {present.dtype} of shape {present.shape}"
            )
        here &= present
    rows = np.where(here, np.cumsum(here) - 1, -1).astype(np.int32)
    packed = pack(name, values, here)
    if isinstance(packed, np.ndarray):
        check_finite(name, packed, np.flatnonzero(here))
    guessed = kind_of(packed)
    if (guessed == "text") != ((kind or guessed) == "text"):
        raise DataError(f"modality {name!r}: kind {kind!r} does not fit values that look like {guessed}")
    return Column(packed, rows, kind or guessed)


def pack(name: str, values: Any, here: np.ndarray) -> np.ndarray | Strings:
    """The values at `here` without gaps: numbers of one shape, or strings."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        if values.ndim < 2:
            raise DataError(
                f"modality {name!r}: expected (samples, features...), got shape {values.shape}; "
                "for one number per sample use array[:, None]"
            )
        return compact(values if here.all() else values[here])
    picked = [value for value, there in zip(values, here) if there]
    if all(isinstance(value, str) for value in picked):
        return Strings.of(map(str, picked))
    if any(isinstance(value, str) for value in picked):
        raise DataError(f"modality {name!r}: expected all text or all numbers, got a mixture")
    arrays = [np.asarray(value) for value in picked]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or arrays[0].dtype.kind not in "biuf" or arrays[0].ndim == 0:
        raise DataError(
            f"modality {name!r}: expected numbers of one shape for every sample, got shapes {sorted(shapes)[:5]} "
            f"and type {arrays[0].dtype}; pad or resample them to one shape first"
        )
    return compact(np.stack(arrays))


def compact(values: np.ndarray) -> np.ndarray:
    """uint8, float16 and float32 as they are, anything else as float32: what the encoders compute in."""
    return values if values.dtype in (np.uint8, np.float16, np.float32) else values.astype(np.float32)


def kind_of(values: np.ndarray | Strings) -> str:
    """What kind of modality these values look like; say `kinds=` where the guess is wrong."""
    if isinstance(values, Strings):
        return "text"
    if values.ndim == 2:
        return "vector"
    # Float grids are read as (time, channels...), because sensors and features far outnumber float
    # pictures in the data people bring; pictures come as uint8.
    return "image" if values.dtype == np.uint8 and values.ndim in (3, 4) else "sequence"


def check_finite(name: str, values: np.ndarray, samples: np.ndarray) -> None:
    """DataError naming the modality, how many and which samples, if any value is NaN or inf."""
    if values.dtype.kind != "f" or len(values) == 0:
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        bad = samples[~finite]
        raise DataError(
            f"modality {name!r}: NaN or inf in {len(bad)} of {len(values)} samples, first rows {bad[:5].tolist()}; "
            "clean them, or mark them missing with present= (in an npz: an array present_" + name + ")"
        )


def unique_ids(ids: Iterable[Any], count: int) -> Strings:
    """One distinct string per sample; DataError if the count is off or an id comes twice."""
    texts = [str(value) for value in ids]
    if len(texts) != count:
        raise DataError(f"ids: expected {count}, one per sample, got {len(texts)}")
    if len(set(texts)) != count:
        seen: set[str] = set()
        twice = sorted({text for text in texts if text in seen or seen.add(text)})
        raise DataError(f"ids must be distinct, got {len(twice)} more than once, first {twice[:5]}")
    return Strings.of(texts)


def _codes(what: str, values: Any, count: int) -> Codes:
    made = values if isinstance(values, Codes) else Codes.of(values)
    if len(made) != count:
        raise DataError(f"{what}: expected {count} values, one per sample, got {len(made)}")
    return made
