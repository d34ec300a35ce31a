"""What people hand in as a modality -> numbers (N, ...) or one cell per sample; anything else is refused by name.

Frames, series, sparse matrices, masked arrays and tensors are known by what they can do, so that no library has to be
installed, or imported, for another one's sake. Numbers stay the numbers they are; only their container changes.
"""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np
import torch

from centrobind.errors import DataError

MOST_DENSE = 2**32  # bytes of a sparse matrix with its zeros written out
FILE = re.compile(r"[^\n]*\.(png|jpe?g|webp|gif|bmp|tiff?|wav|flac|ogg|mp3|npy|npz|csv|tsv|txt|mp4)", re.IGNORECASE)
LOOKED_AT = 20  # texts: enough to tell a column of paths
# Pillow's modes that are numbers as they stand; the others are indices, four inks or packed bits.
PLAIN_MODES = ("L", "RGB", "RGBA", "I", "I;16", "F")


def rows_of(where: str, values: Any, *, nan_as_missing: bool = False) -> tuple[np.ndarray | list[Any], np.ndarray]:
    """The values of one modality, and (N,) bool: which samples have one.

    Numbers come back as an array (N, ...), everything else as a list with None in the gaps. DataError names `where`
    for what is no list of values (a text, a set, a dict, a generator) or cannot be read as numbers.
    """
    given = _opened(where, values)
    if isinstance(given, np.ndarray):
        here = np.ones(len(given), bool)
        if isinstance(given, np.ma.MaskedArray):
            here, given = _unmasked(where, given)
        if nan_as_missing and given.dtype.kind == "f":
            here &= ~np.isnan(given).reshape(len(given), -1).all(1) if given.size else here
        return given, here
    cells = [_cell(where, cell) for cell in given]
    if nan_as_missing:
        cells = [None if _all_nan(cell) else cell for cell in cells]
    return cells, np.array([cell is not None for cell in cells], bool)


def listed(where: str, values: Any) -> list[Any]:
    """The elements of any list, array or series, in order.

    DataError for what is none: a text is not a list of letters, and a set or a dict has no order to rely on.
    """
    if isinstance(values, str | bytes | bytearray):
        raise DataError(f"{where}: expected a list, got the single {_kind(values)} {values[:40]!r}; write [...]")
    if isinstance(values, Mapping | Set) or not hasattr(values, "__len__"):
        raise DataError(f"{where}: expected a list or an array with one value per sample, got a {_kind(values)}")
    for convert in ("to_pylist", "to_list"):  # pyarrow; pandas and polars
        if hasattr(values, convert):
            return list(getattr(values, convert)())
    try:
        return list(values)
    except TypeError:
        raise DataError(f"{where}: expected a list, got a {_kind(values)} that has no elements") from None


def is_missing(value: Any) -> bool:
    """Whether a cell says "nothing here": None, NaN, NaT, pandas' NA or a masked number."""
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, str | bytes | list | tuple | Mapping | Set) or getattr(value, "shape", ()) != ():
        return False
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas: NA != NA is NA, and NA is neither true nor false
        return type(value).__name__ == "NAType"


def is_frame(values: Any) -> bool:
    """A table with named columns: of pandas, polars or pyarrow."""
    return hasattr(values, "columns") and (hasattr(values, "to_numpy") or hasattr(values, "column_names"))


def frame_columns(frame: Any) -> list[tuple[str, Any]]:
    """Name and values of every column of a frame."""
    if hasattr(frame, "column_names"):
        return list(zip(frame.column_names, frame.columns))
    if hasattr(frame, "get_columns"):
        return list(zip(frame.columns, frame.get_columns()))
    return [(str(name), values) for name, values in frame.items()]


def check_order(frames: Mapping[str, Any]) -> None:
    """DataError where two of pandas' frames or series name their rows differently: row i must be one thing.

    A default index, 0 to N-1, names nothing, unless the other one holds the same numbers in another order.
    """
    named = [(name, frame.index) for name, frame in frames.items() if hasattr(frame, "iloc")]
    for (first, index), (name, other) in combinations(named, 2):
        if len(index) != len(other) or index.equals(other):
            continue
        default = any(type(each).__name__ == "RangeIndex" for each in (index, other))
        if not default or set(index) == set(other):
            raise DataError(
                f"{first!r} and {name!r}: expected the same samples in the same order, got frames with other indexes; "
                "align them, b = b.loc[a.index], or hand in .to_numpy() if row i is the same thing in both"
            )


def refuse_paths(where: str, texts: Sequence[str]) -> None:
    """DataError if these texts are names of files: training would learn the names and never open a file."""
    picked = [texts[row] for row in np.linspace(0, len(texts) - 1, min(len(texts), LOOKED_AT)).astype(int)]
    if picked and all(FILE.fullmatch(text) or _is_file(text) for text in picked):
        raise _not_opened(where, picked[0])


def _not_opened(where: str, name: str) -> DataError:
    return DataError(
        f"{where}: expected texts or numbers, got names of files such as {name[:80]!r}, which are not opened here. "
        "List them in a CSV file and `centrobind import` it, or decode each one: centrobind.data.decode_image(path, "
        f'(64, 64, 3)); where the names themselves are the data, say kinds={{{where.split()[-1]}: "text"}}'
    )


def _opened(where: str, values: Any) -> np.ndarray | list[Any]:
    """Numbers as an array, everything else as a list of cells."""
    if is_frame(values):
        return _frame(where, values)
    if isinstance(values, torch.Tensor) or hasattr(values, "tocsr"):
        array: Any = dense(where, values)
    elif isinstance(values, np.ndarray):
        array = values
    elif hasattr(values, "__array__") and len(getattr(values, "shape", ())) > 1:  # jax, xarray, numpy-like
        array = _converted(where, values)
    else:
        return listed(where, values)
    if array.ndim == 0:
        raise DataError(f"{where}: expected one value per sample, got the single value {array!r}")
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 as jax gives it to numpy
        array = _converted(where, array, np.float32)
    if array.dtype.kind in "biuf":
        return array if isinstance(array, np.ma.MaskedArray) else np.asarray(array)
    if array.dtype.kind in "OU" and array.ndim == 1:
        return list(array.tolist())
    if array.dtype.kind == "O" and all(isinstance(value, numbers.Real) for value in array.flat):
        return np.asarray(array, np.float64)
    raise DataError(
        f"{where}: expected numbers or texts, one row per sample, got {array.dtype} of shape {array.shape}; "
        "split complex numbers into two, turn times into numbers (seconds since the first), decode bytes"
    )


def _frame(where: str, frame: Any) -> np.ndarray:
    """(N, columns) numbers, NaN in the gaps; DataError names the columns that are none."""
    whole = np.asarray(frame.to_numpy()) if hasattr(frame, "to_numpy") else np.empty(0, object)
    if whole.dtype.kind in "biuf":
        return whole
    columns, bad = [], []
    for name, values in frame_columns(frame):
        cells = [np.nan if is_missing(cell) else cell for cell in listed(where, values)]
        if all(isinstance(cell, numbers.Real) for cell in cells):
            columns.append(np.array(cells, np.float64))
        else:
            bad.append(name)
    if bad or not columns:
        raise DataError(
            f"{where}: expected a frame of numbers, got columns that are none: {bad[:5]}; drop them, encode them as "
            'numbers, or make a column of texts a modality of its own: {"note": frame["note"]}'
        )
    return np.stack(columns, 1)


def dense(where: str, values: Any) -> np.ndarray:
    """A tensor or a sparse matrix as a plain array."""
    count = int(np.prod(values.shape, dtype=np.int64))
    sparse = not isinstance(values, torch.Tensor) or values.layout != torch.strided
    size = count * getattr(values.dtype, "itemsize", 8)
    if sparse and size > MOST_DENSE:
        raise DataError(
            f"{where}: {tuple(values.shape)} would take {size / 2**30:.0f} GiB with its zeros written out; reduce it "
            "first (sklearn.decomposition.TruncatedSVD), or write a store in pieces with write_store"
        )
    try:
        if not isinstance(values, torch.Tensor):
            return np.asarray(values.toarray())
        tensor = values.detach().cpu()
        tensor = tensor.to_dense() if sparse else tensor
        narrow = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
        return np.asarray((tensor.float() if narrow else tensor).numpy())  # numpy has no bfloat16
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{where}: {values.dtype} cannot be read as numbers ({_short(error)})") from None


def _converted(where: str, values: Any, dtype: Any = None) -> np.ndarray:
    try:
        return np.asarray(values, dtype)
    except Exception as error:  # whatever a foreign __array__ raises
        raise DataError(f"{where}: a {_kind(values)} cannot be read as an array ({_short(error)})") from None


def _cell(where: str, cell: Any) -> Any:
    """One sample's value as text or an array, None where it is missing."""
    if isinstance(cell, str):
        return str(cell)
    if is_missing(cell):
        return None
    if isinstance(cell, os.PathLike):
        raise _not_opened(where, str(os.fspath(cell)))
    if isinstance(cell, torch.Tensor) or hasattr(cell, "tocsr"):
        return dense(where, cell)
    if hasattr(cell, "getbands") and cell.mode not in PLAIN_MODES:
        raise DataError(f'{where}: a picture in mode {cell.mode!r} is no plain numbers; .convert("RGB") them all')
    if isinstance(cell, np.ma.MaskedArray):
        here, plain = _unmasked(where, cell[None])
        return plain[0] if here[0] else None
    if isinstance(cell, bytes | bytearray | Mapping | Set) or is_frame(cell):
        raise DataError(
            f"{where}: expected a text or numbers for each sample, got a {_kind(cell)}; rows of a data set are read by "
            "centrobind.data.dataset_chunks, files in memory by centrobind.data.decode_image"
        )
    return _converted(where, cell)


def _unmasked(where: str, values: np.ma.MaskedArray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are not masked, and the numbers; a row that is masked in part has no value to learn from."""
    mask = np.ma.getmaskarray(values).reshape(len(values), -1)
    if (partly := np.flatnonzero(mask.any(1) & ~mask.all(1))).size:
        raise DataError(
            f"{where}: {len(partly)} samples are masked in part, first rows {partly[:5].tolist()}; mask such rows "
            "whole, or fill them: values.filled(...)"
        )
    return np.logical_not(mask.all(1)), np.asarray(values.filled(0))


def _all_nan(cell: Any) -> bool:
    return isinstance(cell, np.ndarray) and cell.dtype.kind == "f" and cell.size > 0 and bool(np.isnan(cell).all())


def _is_file(text: str) -> bool:
    try:
        return len(text) < 4096 and os.path.isfile(text)
    except ValueError:  # a NUL in it
        return False


def _kind(values: Any) -> str:
    return {"str": "text"}.get(type(values).__name__, type(values).__name__)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
