"""Queries as training saw them: pictures in the same layout and range, numbers in the same unit, or a word about it.

What is clearly the same in another form (0..1 for 0..255, channels first for last) is brought to training's; what
cannot be is refused; what may be is warned of. A binder of an earlier version knows its shapes only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from centrobind.data import Column, Strings
from centrobind.errors import CentrobindWarning, DataError

LOOKED_AT = 256  # values of a query, evenly spread
FAR = 10  # times the range that training saw: another unit, not another sample
FEW = 10  # samples: how much fewer differ says nothing


class Inputs(Protocol):
    """What is asked of a tower's inputs; `seen` and `std` where training remembered them."""

    kind: str
    raw_shape: tuple[int, ...]


Adapt = Callable[[Any], Any]


def adapted(name: str, inputs: Inputs, column: Column) -> Adapt:
    """What brings a query's values to the form that `inputs` learned from.

    DataError for text in the place of numbers, numbers in the place of text, and values that cannot be in training's
    unit; CentrobindWarning for values that hardly can.
    """
    if isinstance(column.values, Strings) != (inputs.kind == "text"):
        raise DataError(f"modality {name!r}: expected {inputs.kind} as in training, got {column.kind}")
    rows = column.rows[column.present]
    if isinstance(column.values, Strings):
        return as_it_is
    if len(rows) == 0:  # nobody has it, so what was handed in has no shape
        return lambda values: np.zeros((0, *inputs.raw_shape), np.float32)
    moved = _layout(inputs.raw_shape, column.shape) if inputs.kind == "image" else as_it_is
    seen = getattr(inputs, "seen", None)
    if not seen:
        return moved
    values = np.asarray(column.values[rows[np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(int)]])
    if not np.isfinite(values).all():  # the embeddings say of which sample
        return moved
    factor = _factor(name, inputs.kind, seen, values)
    if factor != 1:
        return lambda given: moved(given) * np.float32(factor)
    if inputs.kind != "image":
        _warn_of_unit(name, seen, values, getattr(inputs, "std", None))
    return moved


def as_it_is(values: Any) -> Any:
    """Nothing to do."""
    return values


def _layout(trained: tuple[int, ...], got: tuple[int, ...]) -> Adapt:
    """Channels to the other end, or a single channel added or dropped, where that gives training's shape."""
    if got == trained:
        return as_it_is
    if len(got) == len(trained) == 3:
        if (*got[1:], got[0]) == trained and got[0] in (1, 3, 4):
            return lambda values: np.moveaxis(values, 1, -1)
        if (got[-1], *got[:-1]) == trained and got[-1] in (1, 3, 4):
            return lambda values: np.moveaxis(values, -1, 1)
    if tuple(side for side in got if side > 1) == tuple(side for side in trained if side > 1):
        return lambda values: values.reshape(len(values), *trained)
    return as_it_is  # another size: refused where values become tensors


def _factor(name: str, kind: str, seen: Mapping[str, Any], values: np.ndarray) -> float:
    """What a query's numbers are multiplied by to be in training's range; DataError where none is known."""
    low, high = float(values.min()), float(values.max())
    said = f"modality {name!r}: expected numbers as in training, {seen['low']:g} to {seen['high']:g}, got"
    small = values.dtype.kind == "f" and low >= -1 and high <= 1
    if kind != "image":
        if seen["whole"] and max(-seen["low"], seen["high"]) > 100 and small and not (values == np.round(values)).all():
            raise DataError(f"{said} fractions between {low:g} and {high:g}; bring them to the scale of training")
        return 1
    scale = 255 if seen["high"] <= 255 else 65535
    if seen["whole"] and seen["low"] >= 0 and seen["high"] > 1:
        if small and low >= 0:
            return scale
        if low < 0 or high > scale:
            raise DataError(f"{said} {low:g} to {high:g}; pictures are 0 to {scale} here, or fractions of that")
    elif seen["low"] >= 0 and seen["high"] <= 1 and not seen["whole"]:
        if values.dtype == np.uint8:
            return 1 / 255
        if low < -0.5 or high > 1.5:
            raise DataError(f"{said} {low:g} to {high:g}; divide the pictures as before training, /255 for 8 bits")
    elif _far(seen, low, high):
        raise DataError(f"{said} {low:g} to {high:g}; prepare pictures as before training")
    return 1


def _far(seen: Mapping[str, Any], low: float, high: float) -> bool:
    span = seen["high"] - seen["low"]
    return bool(low < seen["low"] - FAR * span or high > seen["high"] + FAR * span)


def _warn_of_unit(name: str, seen: Mapping[str, Any], values: np.ndarray, std: Any) -> None:
    """Far outside of what training saw, or hardly moving beside it: millivolts for volts, or the other way round."""
    low, high = float(values.min()), float(values.max())
    shrunk = False
    if std is not None and len(values) >= FEW:
        trained = std.double().cpu().numpy()
        moves = values.reshape(-1, len(trained)).astype(np.float64).std(0)
        shrunk = bool(np.median(moves / trained) < 1 / (FAR * FAR)) and bool((moves > 0).any())
    if _far(seen, low, high) or shrunk:
        warnings.warn(
            f"modality {name!r}: training saw numbers from {seen['low']:g} to {seen['high']:g}, these go from {low:g} "
            f"to {high:g}{' and differ a hundred times less' if shrunk else ''}; are they in the same unit?",
            CentrobindWarning,
            stacklevel=5,
        )
