"""Samples: N things seen in M modalities, any of which may be missing from any of them.

One class for arrays in memory and for a memory-mapped store, because both are the same picture: per
modality the values that exist, packed without gaps, and a row index that says which sample owns
which value (-1 = missing). Missing data is born here and nowhere else.
"""

from __future__ import annotations

import re
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from centrobind.data.arrays import check_order, is_frame, refuse_paths, rows_of
from centrobind.data.categories import Codes, unique_ids
from centrobind.data.spread import needs_float64
from centrobind.data.strings import Strings, will_need
from centrobind.errors import CentrobindWarning, DataError
from centrobind.types import Batch

KINDS = ("vector", "sequence", "image", "text")
Nan = Literal["error", "missing"]  # what a sample is whose numbers are all NaN
# All that numpy raises for an .npy file that is none; TokenError comes from its reading of Python 2's headers.
NOT_AN_ARRAY = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError, RecursionError),
    tokenize.TokenError,
)
SIDE = 8  # pixels: nobody brings smaller pictures
LARGEST = 1e38  # of a number: a third of what float32 can hold, so that differences fit
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


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
        nan: Nan = "error",
        exact: bool = False,
    ) -> Samples:
        """From one array (N, ...), frame, tensor or list per modality; None or a bool `present[m]` marks gaps.

        `nan="missing"` takes a sample whose numbers are all NaN for a gap; one with some NaN is refused either way.
        float64 becomes float32 unless that would round away what moves; `exact` keeps it.
        Raises DataError on unequal counts, NaN or inf in a present row, unknown names or kinds, duplicate ids, labels
        of another length, names of files, and anything that is not one value per sample.
        """
        beside = {"present": present, "kinds": kinds, "label": label, "ids": ids, "split": split, "group": group}
        if isinstance(arrays, Samples):
            if said := [f"{name}=" for name, value in beside.items() if value is not None]:
                raise DataError(
                    f"{', '.join(said)} beside Samples: these have their own already; give them where the Samples are "
                    "made, from arrays, or change a copy: dataclasses.replace(samples, label=Codes.of([...]))"
                )
            return arrays
        arrays = _mapping(arrays)
        for what, names in (("present", present), ("kinds", kinds)):
            if not isinstance(names, Mapping | None):
                raise DataError(f"{what}= expects a dict by modality, got {type(names).__name__}")
            if unknown := set(names or ()) - set(arrays):
                raise DataError(
                    f"{what}= names {sorted(unknown)}, but the modalities are {sorted(arrays)}; "
                    "correct the name or add the array"
                )
        if nan not in ("error", "missing"):
            raise DataError(f'nan= expects "error" or "missing", got {nan!r}')
        columns = {
            name: column(name, values, (present or {}).get(name), (kinds or {}).get(name), nan, exact)
            for name, values in arrays.items()
        }
        counts = {name: len(each.rows) for name, each in columns.items()}
        count = next(iter(counts.values()))
        if any(other != count for other in counts.values()):
            raise DataError(
                f"expected the same number of samples in every modality, got {counts}; row i must be the same "
                "thing everywhere: put None (or present= False) where a modality is missing"
            )
        check_order(arrays)
        codes = {what: _codes(what, beside[what], count) for what in ("label", "split", "group")}
        return cls(columns, unique_ids(range(count) if ids is None else ids, count), **codes)

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
        """The samples of one split, also where it is written val, dev, validation or Train; DataError if empty."""
        if self.split is None:
            raise DataError(
                f"expected a split named {split!r}, got data without splits; see centrobind.data.assign_splits"
            )
        name = self.split.called(split)
        if name is None:
            known = list(self.split.names)
            raise DataError(
                f"split {split!r} is empty: none of the {len(self)} samples is in it; the splits are {known}"
            )
        return self.take(self.split.where(name))

    def has(self, split: str) -> bool:
        """Whether any sample is in a split, by its name or another one for it (val, dev, validation; Train)."""
        return self.split is not None and self.split.called(split) is not None

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


def column(
    name: str,
    values: Any,
    present: Any = None,
    kind: str | None = None,
    nan: Nan = "error",
    exact: bool = False,
) -> Column:
    """One modality from an array or a list with gaps; DataError says what is wrong with it."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(f"modality name {name!r}: expected a letter, then letters, digits, _ or -, at most 64")
    if kind is not None and kind not in KINDS:
        raise DataError(f"modality {name!r}: unknown kind {kind!r}, expected one of {list(KINDS)}")
    given, here = rows_of(f"modality {name!r}", values, nan_as_missing=nan == "missing")
    if present is not None:
        present = np.asarray(present)
        if present.dtype != bool or present.shape != here.shape:
            raise DataError(
                f"present[{name!r}]: expected bool of shape {here.shape}, got {present.dtype} of shape {present.shape}"
            )
        here = here & present
    rows = np.where(here, np.cumsum(here) - 1, -1).astype(np.int32)
    packed = pack(name, given, here, kind)
    if isinstance(packed, np.ndarray):
        check_finite(name, packed, np.flatnonzero(here))
        packed = compact(packed, exact)
    guessed = kind_of(packed) if kind is None else "text" if isinstance(packed, Strings) else "numbers"
    if (guessed == "text") != ((kind or guessed) == "text"):
        raise DataError(f"modality {name!r}: kind {kind!r} does not fit values that look like {guessed}")
    if kind is None:
        _say_how_it_was_read(name, packed, guessed)
    return Column(packed, rows, kind or guessed)


def pack(name: str, given: np.ndarray | list[Any], here: np.ndarray, kind: str | None = None) -> np.ndarray | Strings:
    """The values at `here` without gaps: numbers of one shape, or strings."""
    if isinstance(given, np.ndarray):
        if given.ndim < 2:
            raise DataError(
                f"modality {name!r}: expected (samples, features...), got shape {given.shape}; "
                "for one number per sample use array[:, None]"
            )
        if 0 in given.shape[1:]:
            raise DataError(f"modality {name!r}: expected at least one number per sample, got shape {given.shape}")
        return given if here.all() else given[here]
    picked = [value for value, there in zip(given, here) if there]
    if not picked and kind not in (None, "text"):
        return np.zeros((0, 1), np.float32)  # nobody has it, so it has no shape
    if all(isinstance(value, str) for value in picked):
        if kind != "text":
            refuse_paths(f"modality {name!r}", picked)
        return Strings.of(picked)
    if any(isinstance(value, str) for value in picked):
        raise DataError(f"modality {name!r}: expected all text or all numbers, got a mixture")
    shapes, types = {array.shape for array in picked}, {str(array.dtype) for array in picked}
    if shapes == {()}:
        raise DataError(
            f"modality {name!r}: expected numbers (features...) or a text for each sample, got single values such as "
            f"{picked[0].item()!r}; write [[1.5], [2.0]] for one number per sample"
        )
    if len(shapes) != 1 or any(array.dtype.kind not in "biuf" for array in picked):
        raise DataError(
            f"modality {name!r}: expected numbers of one shape for every sample, got shapes {sorted(shapes)[:5]} "
            f"and types {sorted(types)[:5]}; pad or resample them to one shape first"
        )
    return pack(name, np.stack(picked), np.ones(len(picked), bool), kind)


def compact(values: np.ndarray, exact: bool = False) -> np.ndarray:
    """uint8 and floats of up to 32 bits as they are, everything else as float32, or float64 where that would blur it.

    Training subtracts the mean before it computes in float32, which has no room for it where it is large. `exact` keeps
    float64 in any case: of a few samples nobody can say what blurs them.
    """
    if values.dtype in (np.uint8, np.float16, np.float32):
        return values
    size = values.dtype.itemsize
    if size <= 2 or values.dtype == np.dtype(">f4"):
        return values.astype(np.float16 if values.dtype.kind == "f" and size == 2 else np.float32)
    wide = values.astype(np.float64, copy=False)
    if values.dtype.kind in "iu" and (np.abs(wide) >= 2**53).any() and (wide.astype(values.dtype) != values).any():
        raise DataError(
            f"{values.dtype} numbers beyond 2^53 would lose their last digits; subtract the first, or make them texts"
        )
    return wide if exact or needs_float64(wide) else wide.astype(np.float32)


def kind_of(values: np.ndarray | Strings) -> str:
    """What kind of modality these values look like; say `kinds=` where the guess is wrong."""
    if isinstance(values, Strings):
        return "text"
    if values.ndim == 2:
        return "vector"
    if values.ndim not in (3, 4) or values.dtype == np.uint8:
        return "image" if values.ndim in (3, 4) else "sequence"
    # Floats are read as (time, channels...), because sensors and features far outnumber float pictures in the data
    # people bring, but for what no sensor gives: three steps of many by many numbers, or colours between 0 and 1.
    shape = values.shape[1:]
    if len(shape) == 3 and 1 not in shape[1:]:
        if shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4) and min(shape[1:]) >= SIDE:
            return "image"
        if shape[2] in (1, 3, 4) and min(shape[:2]) >= SIDE and _may_be_pixels(values):
            return "image"
    return "sequence"


def _may_be_pixels(values: np.ndarray) -> bool:
    """Whether all numbers, of some samples, lie between 0 and 1, or are whole ones up to 65535."""
    some = values[np.linspace(0, len(values) - 1, min(len(values), 64)).astype(np.int64)] if len(values) else values
    if some.size == 0 or some.min() < 0:
        return False
    whole = bool((some == np.round(some)).all())
    return bool(1 < some.max() <= 65535) if whole else bool(some.max() <= 1)


def _say_how_it_was_read(name: str, values: np.ndarray | Strings, kind: str) -> None:
    """CentrobindWarning where numbers could as well be of another kind."""
    if isinstance(values, Strings) or values.dtype == np.uint8 or values.ndim not in (3, 4):
        return
    shape = " x ".join(map(str, values.shape[1:]))
    pixels = kind == "image" and values.shape[-1] in (1, 3, 4)
    steps = kind == "sequence" and values.ndim == 3 and min(values.shape[1:]) >= SIDE and _may_be_pixels(values)
    if pixels or steps:
        other = "sequence" if pixels else "image"
        read = "pictures" if pixels else f"a sequence of {values.shape[1]} steps"
        warnings.warn(
            f'modality {name!r}: {shape} numbers are read as {read}; else say kinds={{{name!r}: "{other}"}}',
            CentrobindWarning,
            stacklevel=4,
        )


def channels_last(shape: Sequence[int]) -> bool:
    """Whether a picture (a, b, c) is (H, W, C), not (C, H, W): 1, 3 or 4 at the end, at the front, or the smaller."""
    first, last = shape[0], shape[-1]
    return last in (1, 3, 4) or (first not in (1, 3, 4) and last < first)


def check_finite(name: str, values: np.ndarray, samples: np.ndarray) -> None:
    """DataError naming the modality, how many and which samples, if any value is NaN, inf or beyond LARGEST."""
    if values.dtype.kind != "f" or len(values) == 0:
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if finite.all() and values.dtype.itemsize >= 4 and np.abs(values).max(initial=0) > LARGEST:
        raise DataError(f"modality {name!r}: numbers beyond what float32 can hold, {LARGEST}; use a larger unit")
    if not finite.all():
        bad = samples[~finite]
        raise DataError(
            f"modality {name!r}: NaN or inf in {len(bad)} of {len(values)} samples, first rows {bad[:5].tolist()}; "
            f"clean them, or mark them missing with present= (in an npz: an array present_{name}); "
            'nan="missing" does it for samples that are NaN throughout'
        )


def _mapping(arrays: Any) -> Mapping[str, Any]:
    """A dict with something in it; DataError names the right call for everything else."""
    if isinstance(arrays, Mapping):
        if arrays:
            return arrays
        raise DataError("expected a dict with an array per modality, got an empty one")
    if is_frame(arrays):
        how = 'a frame of numbers is one modality, {"genes": frame}; columns are modalities as {"note": frame["note"]}'
    elif hasattr(arrays, "shape"):
        how = 'name the array: {"image": array}'
    elif hasattr(arrays, "mod") or hasattr(arrays, "obs_names"):
        how = 'cb.from_mudata(mudata) makes Samples of it; AnnData is one modality, {"rna": adata.to_df()}'
    else:
        how = (
            "rows of a data set, dicts with a value per modality, are read by centrobind.data.dataset_chunks: "
            'cb.fit(cb.open_store(cb.write_store("store", dataset_chunks(rows))))'
        )
    raise DataError(f"expected a dict with an array per modality, or Samples, got {type(arrays).__name__}; {how}")


def _codes(what: str, values: Any, count: int) -> Codes | None:
    if values is None:
        return None
    codes = values if isinstance(values, Codes) else Codes.of(values, what)
    if len(codes) != count:
        raise DataError(f"{what}: expected {count} values, one per sample, got {len(codes)}")
    return codes
