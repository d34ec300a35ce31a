"""What is in the data, and what looks wrong with it, before a night is spent on training."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from centrobind.data.categories import Codes
from centrobind.data.samples import Column, Samples
from centrobind.data.spread import feature_moments
from centrobind.data.strings import WORDS_READ, Strings

MOST_ROWS = 20_000  # values that are looked at per modality, evenly spread
MOST_NUMBERS = 2**24  # in them: of large samples fewer are looked at
FEW = 30  # a category with fewer samples than this says little


@dataclass(frozen=True)
class Inspection:
    """Counts, and findings in words; `as_dict` for programs."""

    samples: int
    modalities: dict[str, dict[str, Any]]
    together: dict[str, int]  # "image + name" -> samples that have both
    splits: dict[str, int]
    labels: dict[str, int]
    findings: list[str]

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def inspect_samples(samples: Samples) -> Inspection:
    """Count everything and look for what commonly goes wrong."""
    about = {name: _describe(column) for name, column in samples.columns.items()}
    present = samples.present
    names = samples.modalities
    together = {
        f"{names[a]} + {names[b]}": int((present[a] & present[b]).sum())
        for a in range(len(names))
        for b in range(a + 1, len(names))
    }
    findings = [*_gaps(samples, together), *_values(samples), *_splits(samples), *_labels(samples.label)]
    return Inspection(len(samples), about, together, _count(samples.split), _count(samples.label), findings)


def _describe(column: Column) -> dict[str, Any]:
    dtype = "utf-8" if isinstance(column.values, Strings) else str(column.values.dtype)
    present = int(column.present.sum())
    return {
        "kind": column.kind,
        "shape": list(column.shape),
        "dtype": dtype,
        "present": present,
        "missing": round(1 - present / len(column.rows), 4),
    }


def _gaps(samples: Samples, together: dict[str, int]) -> list[str]:
    said = []
    if len(samples.columns) < 2:
        said.append("there is only one modality; binding needs at least two")
    for name, column in samples.columns.items():
        if not column.present.any():
            said.append(f"{name} is missing everywhere; leave it out with --modalities")
    for pair, count in together.items():
        if count == 0:
            said.append(f"no sample has {pair}; they can only be bound through a third modality")
    if alone := int((samples.present.sum(0) < 2).sum()):
        said.append(f"{alone} samples have fewer than two modalities; they serve as negatives only")
    return said


def _values(samples: Samples) -> list[str]:
    said = []
    for name, column in samples.columns.items():
        owners = np.flatnonzero(column.present)
        most = min(len(owners), MOST_ROWS, max(1, MOST_NUMBERS // max(1, math.prod(column.shape))))
        owners = owners[np.linspace(0, len(owners) - 1, most).astype(np.int64)]
        if len(owners) == 0:
            continue
        values = column.take(owners)
        said += _repeats(name, values, samples.split, owners)
        if isinstance(values, list):
            if blank := sum(not text.strip() for text in values):
                said.append(f"{name}: {blank} texts are blank; leave the cell empty to mark them missing")
            if long := sum(len(text.split()) > WORDS_READ for text in values):
                said.append(
                    f"{name}: {long} of {len(values)} texts have more than {WORDS_READ} words; encoders alone read the "
                    f"first {WORDS_READ} unless the option `longest` says otherwise"
                )
        elif values.dtype.kind == "f":
            said += _numbers(name, values.reshape(len(values), -1))
    return said


def _repeats(name: str, values: np.ndarray | list[str], split: Codes | None, owners: np.ndarray) -> list[str]:
    said = []
    keys = [_key(value) for value in values]
    repeats = len(keys) - len(set(keys))
    if repeats > 0.01 * len(keys):
        said.append(
            f"{name}: {repeats} of {len(keys)} values repeat another one exactly; equal samples count as negatives"
        )
    if split is not None:
        part, first, last = split[owners].texts(), split.called("train"), split.called("test")
        train = {key for key, where in zip(keys, part) if where == first}
        if leaked := sum(key in train for key, where in zip(keys, part) if where == last):
            said.append(
                f"{name}: {leaked} test values are in train as well; a group column keeps such samples together"
            )
    return said


def _numbers(name: str, values: np.ndarray) -> list[str]:
    said = []
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        said.append(
            f"{name}: {int(bad.sum())} of {len(values)} samples hold NaN or inf; import would have refused them"
        )
        values = values[~bad]
    if len(values) == 0:
        return said
    mean, spread = feature_moments(values)
    if constant := int((spread == 0).sum()):
        said.append(f"{name}: {constant} of {values.shape[1]} features are constant")
    moving = spread > 0
    steps = spread[moving] / (np.finfo(values.dtype).eps * np.abs(values[:, moving]).max(0).astype(np.float64))
    if coarse := int((steps < 100).sum()):
        said.append(
            f"{name}: {coarse} features move by less than 100 steps of {values.dtype}, the rest was rounded away "
            "before; subtract a constant in float64 first"
        )
    extreme = np.abs(values[:, moving] - mean[moving]) / spread[moving]
    if extreme.size and (far := int((extreme.max(1) > 30).sum())):
        said.append(f"{name}: {far} samples hold a number more than 30 standard deviations from the mean")
    return said


def _splits(samples: Samples) -> list[str]:
    said = []
    if samples.split is None:
        return ["no splits are given; training will set 10 % aside, and there is nothing to test on"]
    counts = _count(samples.split)
    for name in ("train", "test"):
        if not samples.has(name):
            said.append(f"split {name} is empty; the splits are {list(samples.split.names)}")
    known_splits = {samples.split.called(name) for name in ("train", "valid", "test")}
    if unknown := [name for name in counts if name not in known_splits]:
        said.append(f"splits {unknown} are used by no command unless they are named with --split")
    if samples.group is not None:
        known = (samples.group.codes >= 0) & (samples.split.codes >= 0)
        pairs = np.unique(np.stack([samples.group.codes[known], samples.split.codes[known]]), axis=1)
        straddling = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
        if straddling:
            said.append(f"{straddling} groups have samples in more than one split; test results will be too good")
    return said


def _labels(label: Codes | None) -> list[str]:
    if label is None:
        return []
    said = []
    counts = _count(label)
    unlabelled = int((label.codes < 0).sum())
    if unlabelled:
        said.append(f"{unlabelled} samples have no label; probes leave them out")
    if len(counts) > 1:
        most, least = max(counts.values()), min(counts.values())
        if most > 0.8 * sum(counts.values()):
            said.append(f"one label makes up {most / sum(counts.values()):.0%}; accuracy says little")
        if least < FEW:
            few = sum(count < FEW for count in counts.values())
            said.append(f"{few} of {len(counts)} labels have fewer than {FEW} samples, the rarest {least}")
    return said


def _count(codes: Codes | None) -> dict[str, int]:
    """Samples by category, most first."""
    if codes is None:
        return {}
    numbers = Counter(codes.codes[codes.codes >= 0].tolist())
    return {codes.names[code]: count for code, count in numbers.most_common()}


def _key(value: Any) -> bytes:
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
    return hashlib.blake2b(raw, digest_size=12).digest()
