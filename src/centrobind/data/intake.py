"""Samples from what other libraries hold data in: rows of a data set, and the tables of MuData."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from centrobind.data.arrays import rows_of
from centrobind.data.categories import Codes
from centrobind.data.importing import dataset_chunks
from centrobind.data.samples import Column, Nan, Samples
from centrobind.data.strings import Strings
from centrobind.errors import DataError


def as_samples(
    data: Any, *, present: Mapping[str, Any] | None = None, kinds: Mapping[str, str] | None = None, nan: Nan = "error"
) -> Samples:
    """Samples as they are, a dict with an array per modality, or rows: a list or data set of dicts, read to its end.

    DataError for everything else, with the right call for it; see `Samples.of` and `dataset_chunks`.
    """
    if not _is_rows(data):
        return Samples.of(data, present=present, kinds=kinds, nan=nan)
    if present is not None:
        raise DataError("present= goes with arrays; rows have None where a modality is missing")
    return joined(dataset_chunks(data, kinds=kinds, nan_as_missing=nan == "missing"))


def joined(chunks: Iterable[Samples]) -> Samples:
    """Chunks of samples as one, in memory; a modality or category that a chunk lacks is missing there."""
    parts = list(chunks)
    if not parts:
        raise DataError("expected at least one sample, got none")
    names = dict.fromkeys(chain.from_iterable(part.columns for part in parts))
    columns = {name: _joined_column(name, parts) for name in names}
    ids = list(chain.from_iterable(part.ids[:] for part in parts))
    codes = {what: _joined_codes(what, parts) for what in ("label", "split", "group")}
    if len(set(ids)) != len(ids):
        raise DataError("ids must be distinct, got some more than once")
    return Samples(columns, Strings.of(ids), **codes)


def from_mudata(
    mudata: Any, *, label: str | None = None, split: str | None = None, group: str | None = None
) -> Samples:
    """Samples of a MuData object: a vector per modality (its X), a sample per observation, missing where it has none.

    `label`, `split` and `group` name columns of its `obs`. Known by what it can do (mod, obs_names, obs), so that
    neither mudata nor anndata has to be installed. DataError for anything else, or for a column that is not there.
    """
    if not hasattr(mudata, "mod") or not hasattr(mudata, "obs_names"):
        raise DataError(f"expected a MuData object, with mod and obs_names, got {type(mudata).__name__}")
    ids = [str(name) for name in mudata.obs_names]
    place = {name: row for row, name in enumerate(ids)}
    arrays, present = {}, {}
    for name, table in mudata.mod.items():
        values, _ = rows_of(f"modality {name!r}", table.X)
        owners = [place.get(str(each), -1) for each in table.obs_names]
        if not isinstance(values, np.ndarray) or len(values) != len(owners) or -1 in owners:
            raise DataError(f"modality {name!r}: its observations are not those of the whole; run mudata.update()")
        present[name] = np.zeros(len(ids), bool)
        present[name][owners] = True
        arrays[name] = np.zeros((len(ids), *values.shape[1:]), values.dtype)
        arrays[name][owners] = values
    about = {}
    for what, column in (("label", label), ("split", split), ("group", group)):
        if column is not None:
            if column not in mudata.obs:
                raise DataError(f"{what}={column!r}: no such column in obs, expected one of {list(mudata.obs)[:20]}")
            about[what] = mudata.obs[column]
    return Samples.of(arrays, present=present, ids=ids, **about)


def _is_rows(data: Any) -> bool:
    """A list or a map-style data set of dicts."""
    if isinstance(data, Mapping | str | bytes | np.ndarray) or hasattr(data, "columns") or hasattr(data, "iloc"):
        return False
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or len(data) == 0:
        return False
    try:
        return isinstance(data[0], Mapping)
    except (LookupError, TypeError):
        return False


def _joined_column(name: str, parts: list[Samples]) -> Column:
    own = [part.columns[name] for part in parts if name in part.columns and part.columns[name].present.any()]
    first = own[0] if own else next(part.columns[name] for part in parts if name in part.columns)
    if any((column.kind, column.shape) != (first.kind, first.shape) for column in own):
        raise DataError(f"modality {name!r}: expected {first!r} in every part, got {own!r}")
    packed = [column.take(np.arange(len(column.rows))) for column in own] or [first.take(np.arange(len(first.rows)))]
    values = Strings.of(chain.from_iterable(packed)) if first.kind == "text" else np.concatenate(packed)
    absent = {number: np.zeros(len(part), bool) for number, part in enumerate(parts)}
    here = np.concatenate(
        [part.columns[name].present if name in part.columns else absent[number] for number, part in enumerate(parts)]
    )
    return Column(values, np.where(here, np.cumsum(here) - 1, -1).astype(np.int32), first.kind, first.reading)


def _joined_codes(what: str, parts: list[Samples]) -> Codes | None:
    given: list[Codes | None] = [getattr(part, what) for part in parts]
    if all(codes is None for codes in given):
        return None
    return Codes.of(
        list(chain.from_iterable([""] * len(p) if codes is None else codes.texts() for p, codes in zip(parts, given)))
    )
