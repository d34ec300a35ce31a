"""Mean and deviation of every feature, and which features are constant: one rule for training and for `inspect`."""

from __future__ import annotations

import numpy as np

NUMBERS_AT_ONCE = 2**22  # in float64: 32 MiB


def feature_moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, features) numbers of any type -> their means and standard deviations in float64; 0 for a constant feature.

    Constant is what moves by no more than its own rounding, or by less than float64 can tell from zero beside the
    largest number of the modality. No fixed floor: tesla (1e-13) and seconds since 1970 (1.7e9, moving by 10) are
    measurements like any other.
    """
    count, width = values.shape
    step = max(1, NUMBERS_AT_ONCE // max(1, width))
    parts = [slice(start, start + step) for start in range(0, count, step)]
    first = values[0].astype(np.float64)  # sums of differences from it keep their digits
    mean = first + sum(((values[part] - first).sum(0) for part in parts), np.zeros(width)) / count
    square = sum((((values[part] - mean) ** 2).sum(0) for part in parts), np.zeros(width)) / count
    largest = np.max([np.abs(values[part].astype(np.float64)).max(0) for part in parts], axis=0)
    rounding = np.finfo(values.dtype).eps * largest if values.dtype.kind == "f" else np.zeros(width)
    std = np.sqrt(square)
    return mean, np.where(std > np.maximum(rounding, np.finfo(np.float64).eps * largest.max(initial=0)), std, 0)


def needs_float64(values: np.ndarray) -> bool:
    """Whether float32 would round away what moves: seconds since 1970 that differ by less than an hour.

    Judged by the deviations, (n, ...) float64: rounding by more than a thousandth of one is noise that can be seen.
    """
    if values.dtype != np.float64 or len(values) == 0:
        return False
    picked = np.linspace(0, len(values) - 1, min(len(values), 1000)).astype(np.int64)
    rows = values[picked].reshape(-1, values.shape[-1])
    _, std = feature_moments(rows)
    return bool((np.finfo(np.float32).eps / 2 * np.abs(rows).max(0) > 1e-3 * std)[std > 0].any())
