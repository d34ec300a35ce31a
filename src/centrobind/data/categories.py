"""Labels, splits, groups and ids: one name per sample from whatever people write them as."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from centrobind.data.arrays import is_frame, is_missing, listed
from centrobind.data.strings import Strings
from centrobind.errors import DataError

# How a split is written where people do not write train, valid and test.
ALIASES = {"train": ("training",), "valid": ("val", "validation", "dev"), "test": ("testing",)}


@dataclass(frozen=True)
class Codes:
    """A category per sample, such as its label or its split; -1 where none is given."""

    codes: np.ndarray  # (N,) int32
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Any, where: str = "categories") -> Codes:
        """From numbers or texts, one per sample, in a list, an array, a tensor or a series.

        None, NaN, NaT, NA, a masked value and "" mean not given. A number is named as a whole number where it is one
        (1.0 is "1": pandas makes floats of a column of whole numbers with a gap). Names are sorted, numbers as numbers.
        DataError for one-hot rows, lists of labels, and a number and a text of one name.
        """
        if type(values) is np.ndarray and values.ndim == 1 and values.dtype.kind in "iu":  # as below, at array speed;
            # not a masked array, which is one of its subclasses
            known, codes = np.unique(values, return_inverse=True)
            return cls(codes.astype(np.int32), tuple(map(str, known.tolist())))
        names, sizes = _names(where, values)
        order = sorted(sizes, key=lambda name: (sizes[name] is None, sizes[name] or 0, name))
        code = {name: index for index, name in enumerate(order)}
        return cls(np.array([-1 if name is None else code[name] for name in names], np.int32), tuple(order))

    def __getitem__(self, rows: Any) -> Codes:
        return Codes(self.codes[rows], self.names)

    def __len__(self) -> int:
        return len(self.codes)

    def where(self, name: str) -> np.ndarray:
        """Indices of the samples in one category; DataError if there is no such category."""
        if name not in self.names:
            raise DataError(f"expected one of {list(self.names)}, got {name!r}")
        return np.flatnonzero(self.codes == self.names.index(name))

    def called(self, split: str) -> str | None:
        """The category that stands for a split and has samples: "validation" for "valid", "Train" for "train".

        None if there is none; DataError if there are several, nobody knows how they differ.
        """
        wanted = {split.lower(), *ALIASES.get(split, ())}
        used = [self.names[code] for code in np.unique(self.codes[self.codes >= 0])]
        alike = [split] if split in used else [name for name in used if name.lower() in wanted]
        if len(alike) > 1:
            raise DataError(
                f"expected one split for {split!r}, got {alike}; name the one to use {split!r}, or join them"
            )
        return alike[0] if alike else None

    def texts(self) -> list[str]:
        """The name of each sample's category, "" where none is given."""
        names = [*self.names, ""]
        return [names[code] for code in self.codes.tolist()]


def unique_ids(values: Any, count: int) -> Strings:
    """One distinct text per sample; DataError if the count is off, or an id is missing or comes twice."""
    texts, _ = _names("ids", values)
    if len(texts) != count:
        raise DataError(f"ids: expected {count}, one per sample, got {len(texts)}")
    if missing := [row for row, text in enumerate(texts) if text is None]:
        raise DataError(
            f"ids: expected one for every sample, got none for {len(missing)}, first rows {missing[:5]}; give them "
            "one, or leave ids out to have all numbered"
        )
    ids = [text for text in texts if text is not None]
    if len(set(ids)) != count:
        seen: set[str] = set()
        twice = sorted({text for text in ids if text in seen or seen.add(text)})  # type: ignore[func-returns-value]
        raise DataError(f"ids must be distinct, got {len(twice)} more than once, first {twice[:5]}")
    return Strings.of(ids)


def _names(where: str, values: Any) -> tuple[list[str | None], dict[str, float | None]]:
    """The name of every cell, None where none is given; and of each name its number, None if it is a text."""
    known: dict[tuple[type, Any], str] = {}
    sizes: dict[str, float | None] = {}
    names: list[str | None] = []
    for cell in _cells(where, values):
        if is_missing(cell) or (isinstance(cell, str) and cell == ""):
            names.append(None)
            continue
        try:
            name = known.get((type(cell), cell))
        except TypeError:
            raise DataError(_one_each(where, f"a {type(cell).__name__} in the place of one")) from None
        if name is None:
            name, size = _named(where, cell)
            if sizes.setdefault(name, size) != size:
                raise DataError(
                    f"{where}: {name!r} is there as a number and as a text; are they one category or two? Make them "
                    "all texts, or all numbers"
                )
            known[type(cell), cell] = name
        names.append(name)
    return names, sizes


def _named(where: str, cell: Any) -> tuple[str, float | None]:
    """How a category is called, and its number where it is one."""
    if isinstance(cell, tuple | frozenset):
        raise DataError(_one_each(where, f"a {type(cell).__name__} in the place of one"))
    if isinstance(cell, bytes):
        try:
            return cell.decode(), None
        except UnicodeDecodeError:
            raise DataError(f"{where}: expected texts, got bytes that are not UTF-8: {cell[:40]!r}") from None
    if isinstance(cell, numbers.Real) and not isinstance(cell, bool):
        size = float(cell)
        return str(cell if isinstance(cell, int) or not size.is_integer() else int(size)), size
    return str(cell), None


def _cells(where: str, values: Any) -> Iterable[Any]:
    """One plain cell per sample."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype.is_floating_point else values).numpy()
    shape = getattr(values, "shape", (0,))
    if is_frame(values) or hasattr(values, "tocsr") or len(shape) != 1:
        raise DataError(_one_each(where, f"shape {tuple(shape)}"))
    if isinstance(values, np.ndarray):
        # tolist: None where an array is masked, but nanoseconds for times
        values = list(values) if values.dtype.kind == "M" else values.tolist()
    return [_plain(value) for value in listed(where, values)]


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as one of Python's; a time as its text, because numpy's become nanoseconds."""
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    return value.item() if isinstance(value, np.generic | torch.Tensor) and value.shape == () else value


def _one_each(where: str, got: str) -> str:
    return (
        f"{where}: expected one category per sample, shape (N,), got {got}; of one-hot rows take values.argmax(1), of "
        "several labels join them to one text"
    )
