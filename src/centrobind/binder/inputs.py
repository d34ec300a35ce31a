"""Stored values -> tensors an encoder takes: standardised numbers, pixels, word numbers.

What is learned here (means, a vocabulary) is learned from the training split only and saved with the binder.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.data import WORDS_READ, Column, Strings, channels_last, feature_moments
from centrobind.devices import moved
from centrobind.errors import CentrobindWarning, DataError

MOST_ROWS = 10_000  # enough to know a mean to 1 %; a store may hold 40 million
SMALLEST = 1e-36  # below, float32 loses digits: no unit that anyone measures in


class Standardised(nn.Module):
    """Numbers brought to mean 0 and standard deviation 1 per channel; a constant channel stays at 0.

    `seen` is what training saw besides: the range, whether all were whole numbers, and what float32 rounds away of
    the means. It is part of a binder's description; binders of earlier versions have none of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, shape: tuple[int, ...], prepared: tuple[int, ...], *, channels_first: bool):
        super().__init__()
        self.kind, self.raw_shape, self.shape = kind, tuple(shape), prepared
        self.channels = prepared[0 if channels_first else -1]
        self.channel_axis = 1 if channels_first else -1  # of a batch
        self.seen: dict[str, Any] = {}
        size = (self.channels, *[1] * (len(prepared) - 1)) if channels_first else (self.channels,)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def learn(self, column: Column) -> None:
        """Means, deviations and range of up to MOST_ROWS values, evenly spread; DataError for too small a unit."""
        values = np.asarray(column.values[_some_rows(column)])
        arranged = self._arrange(values).movedim(self.channel_axis, -1).reshape(-1, self.channels)
        mean, std = feature_moments(arranged.numpy())
        if (tiny := (std > 0) & (std < SMALLEST)).any():
            raise DataError(
                f"{int(tiny.sum())} features move by less than {SMALLEST}; bring them to a larger unit first"
            )
        shape = self.mean.shape
        self.mean.copy_(torch.from_numpy(mean).reshape(shape))
        self.std.copy_(torch.from_numpy(np.where(std > 0, std, 1)).reshape(shape))
        rest = mean - self.mean.double().flatten().numpy()
        self.seen = {
            "low": float(values.min()),
            "high": float(values.max()),
            "whole": bool((values == np.round(values)).all()),
            "rest": rest.tolist() if (np.abs(rest) > 1e-3 * std)[std > 0].any() else [],
        }

    def recall(self, seen: Mapping[str, Any]) -> None:
        """What training saw, out of a binder's description; ValueError or TypeError if it cannot be that."""
        low, high, rest = float(seen["low"]), float(seen["high"]), [float(value) for value in seen["rest"]]
        if not np.isfinite([low, high, *rest]).all() or low > high or len(rest) not in (0, self.channels):
            raise ValueError("what training saw is out of range")
        self.seen = {"low": low, "high": high, "whole": bool(seen["whole"]), "rest": rest}

    def forward(self, values: np.ndarray) -> Tensor:
        x = self._arrange(values)
        if x.dtype == torch.float64:  # subtract before the cast: float32 has no room for seconds since 1970
            rest = torch.tensor(self.seen.get("rest") or [0.0] * self.channels, dtype=torch.float64)
            mean = self.mean.double().cpu() + rest.reshape(self.mean.shape)
            return ((x - mean) / self.std.double().cpu()).float().to(self.mean.device)
        return (moved(x, self.mean.device).float() - self.mean) / self.std

    def _arrange(self, values: np.ndarray) -> Tensor:
        """(n, *prepared), in the type that the values have."""
        raise NotImplementedError


class Numbers(Standardised):
    """Vectors and sequences: every feature brought to mean 0 and standard deviation 1.

    A sequence (time, channels...) keeps its time axis; the channels are flattened and each is standardised.
    """

    def __init__(self, kind: str, shape: tuple[int, ...]):
        channels = int(np.prod(shape[1:])) if kind == "sequence" else int(np.prod(shape))
        prepared = (shape[0], channels) if kind == "sequence" else (channels,)
        super().__init__(kind, shape, prepared, channels_first=False)

    def _arrange(self, values: np.ndarray) -> Tensor:
        return _tensor(values, self.raw_shape).reshape(len(values), *self.shape)


class Pixels(Standardised):
    """Images (H, W), (H, W, C) or (C, H, W): channels first, each brought to mean 0 and deviation 1.

    Which axis is the channels': see `centrobind.data.channels_last`, unless it is said.
    """

    def __init__(self, kind: str, shape: tuple[int, ...], *, last: bool | None = None):
        if len(shape) not in (2, 3):
            raise DataError(f"an image needs (H, W), (H, W, C) or (C, H, W), got shape {tuple(shape)}")
        self.channels_last = len(shape) == 3 and (channels_last(shape) if last is None else last)
        sides = (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2]) if self.channels_last else tuple(shape)
        super().__init__(kind, shape, sides, channels_first=True)

    def _arrange(self, values: np.ndarray) -> Tensor:
        pixels = _tensor(values, self.raw_shape)
        return pixels.permute(0, 3, 1, 2) if self.channels_last else pixels.reshape(len(values), *self.shape)


class Words(nn.Module):
    """Text: lower-case words and punctuation marks as numbers, 0 = nothing there, 1 = never seen in training.

    Of a text the first `longest` words are read. Characters are composed (NFC) first: e and an accent are é.
    """

    def __init__(
        self, kind: str = "text", shape: tuple[int, ...] = (), *, most: int = 50_000, longest: int = WORDS_READ
    ):
        super().__init__()
        self.kind, self.raw_shape = kind, ()
        self.most, self.longest = most, longest
        self.vocabulary: dict[str, int] = {}
        self.seen: dict[str, Any] = {"form": "NFC"}  # binders of earlier versions have none and take texts as they are

    @property
    def shape(self) -> tuple[int, ...]:
        """(number of word numbers,)"""
        return (len(self.vocabulary) + 2,)

    def learn(self, column: Column) -> None:
        assert isinstance(column.values, Strings)
        rows = column.rows[column.present]
        counts: Counter[str] = Counter()
        for start in range(0, min(len(rows), 100 * MOST_ROWS), MOST_ROWS):
            for text in column.values[rows[start : start + MOST_ROWS]]:
                counts.update(self.split(text))
        # Ties are ordered by the word itself, so that the numbering does not depend on the order of the data.
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self.most]
        self.set_words([word for word, _ in common])

    def forward(self, texts: list[str]) -> Tensor:
        numbers = [[self.vocabulary.get(word, 1) for word in self.split(text)[: self.longest]] for text in texts]
        longest = max(map(len, numbers), default=0) or 1
        padded = [row + [0] * (longest - len(row)) for row in numbers]
        return torch.tensor(padded, dtype=torch.long).reshape(len(texts), longest)

    def split(self, text: str) -> list[str]:
        """Words and punctuation marks, in the form that training saw."""
        return split_words(unicodedata.normalize("NFC", text) if self.seen else text)

    def recall(self, seen: Mapping[str, Any]) -> None:
        """The form of texts, out of a binder's description; ValueError if it is another one."""
        if dict(seen) != {"form": "NFC"}:
            raise ValueError(f"texts of form {seen}")
        self.seen = dict(seen)

    def words(self) -> list[str]:
        return list(self.vocabulary)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that training never saw; the encoder takes all of them for the same one."""
        return [word for word in dict.fromkeys(self.split(text)) if word not in self.vocabulary]

    def set_words(self, words: list[str]) -> None:
        self.vocabulary = {word: number for number, word in enumerate(words, start=2)}


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


INPUTS: dict[str, type[Numbers] | type[Pixels] | type[Words]] = {
    "vector": Numbers,
    "sequence": Numbers,
    "image": Pixels,
    "text": Words,
}


def described_inputs(about: Mapping[str, Any]) -> nn.Module:
    """The inputs of a tower out of a binder's description."""
    kind, shape = about["kind"], tuple(about["shape"])
    if kind == "image" and "seen" not in about:  # of an earlier version, which knew 1, 3 and 4 channels at the end
        return Pixels(kind, shape, last=shape[-1] in (1, 3, 4))
    inputs = INPUTS[kind](kind, shape)
    if "words" in about and isinstance(inputs, Words):
        inputs.set_words(about["words"])
    if "seen" in about:
        inputs.recall(about["seen"])
    else:
        inputs.seen = {}
    return inputs


def refuse_nonfinite(name: str, column: Column, ids: Strings) -> None:
    """DataError naming the samples, if one of the values that means are learned from is NaN or infinite.

    A store is not read through when it is opened, and one such value would make every sample NaN.
    """
    if isinstance(column.values, Strings) or column.values.dtype.kind != "f":
        return
    rows = _some_rows(column)
    finite = np.isfinite(column.values[rows]).reshape(len(rows), -1).all(1)
    if not finite.all():
        owners = np.flatnonzero(np.isin(column.rows, rows[~finite]))
        raise DataError(
            f"modality {name!r}: NaN or inf in {int((~finite).sum())} of the {len(rows)} values looked at, first ids "
            f"{ids[owners[:5]]}; the data changed after it was imported: import it again, or mark them as missing"
        )


def warn_of_long_texts(name: str, inputs: nn.Module, column: Column) -> None:
    """CentrobindWarning if more than one text in a hundred is cut."""
    if not isinstance(inputs, Words) or not isinstance(column.values, Strings):
        return
    texts = column.values[_some_rows(column)]
    long = sum(len(text) > inputs.longest and len(inputs.split(text)) > inputs.longest for text in texts)
    if long > 0.01 * len(texts):
        warnings.warn(
            f"modality {name!r}: {long} of {len(texts)} texts are longer than the {inputs.longest} words that are read "
            'of each; put first what matters, or say encoders={"'
            f'{name}": {{"encoder": "transformer", "longest": 256}}}}',
            CentrobindWarning,
            stacklevel=3,
        )


def _tensor(values: Any, shape: tuple[int, ...]) -> Tensor:
    values = np.asarray(values)
    if len(values) == 0:  # nobody has this modality: what was handed in has no shape to compare
        values = np.zeros((0, *shape), np.float32)
    if values.shape[1:] != shape:
        raise DataError(f"expected samples of shape {shape}, as in training, got {values.shape[1:]}")
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _some_rows(column: Column) -> np.ndarray:
    """Up to MOST_ROWS places of present values, evenly spread over the samples."""
    rows = column.rows[column.present]
    picked: np.ndarray = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(np.int64)]
    return picked
