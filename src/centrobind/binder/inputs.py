"""Stored values -> tensors an encoder can eat: standardised numbers, pixels, word numbers.

What is learned here (means, a vocabulary) is learned from the training split only and saved with the binder.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.data import Column, Strings
from centrobind.errors import DataError

MOST_ROWS = 10_000  # enough to know a mean to 1 %; a store may hold 40 million
LEAST_STD = 1e-6  # a constant feature carries nothing: leave it at zero rather than blow its noise up


class Numbers(nn.Module):
    """Vectors and sequences: every feature brought to mean 0 and standard deviation 1.

    A sequence (time, channels...) keeps its time axis; the channels are flattened and each is standardised.
    """

    def __init__(self, kind: str, shape: tuple[int, ...]):
        super().__init__()
        self.kind, self.raw_shape = kind, tuple(shape)
        channels = int(np.prod(shape[1:])) if kind == "sequence" else int(np.prod(shape))
        self.shape = (shape[0], channels) if kind == "sequence" else (channels,)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def learn(self, column: Column) -> None:
        seen = self._arrange(_some_rows(column)).double()
        over = tuple(range(seen.ndim - 1))
        self.mean.copy_(seen.mean(over))
        std = seen.std(over, correction=0)
        self.std.copy_(torch.where(std > LEAST_STD * (1 + self.mean.abs()), std, 1))

    def forward(self, values: np.ndarray) -> Tensor:
        return (self._arrange(values).to(self.mean.device) - self.mean) / self.std

    def _arrange(self, values: np.ndarray) -> Tensor:
        return _tensor(values, self.raw_shape).float().reshape(len(values), *self.shape)


class Pixels(nn.Module):
    """Images (H, W), (H, W, C) or (C, H, W): channels first, each brought to mean 0 and deviation 1.

    The channel axis is the last one if it has 1, 3 or 4 entries, else the first.
    """

    def __init__(self, kind: str, shape: tuple[int, ...]):
        super().__init__()
        if len(shape) not in (2, 3):
            raise DataError(f"an image needs (H, W), (H, W, C) or (C, H, W), got shape {tuple(shape)}")
        self.kind, self.raw_shape = kind, tuple(shape)
        self.channels_last = len(shape) == 3 and shape[-1] in (1, 3, 4)
        sides = (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2]) if self.channels_last else tuple(shape)
        self.shape = sides
        self.register_buffer("mean", torch.zeros(sides[0], 1, 1))
        self.register_buffer("std", torch.ones(sides[0], 1, 1))

    def learn(self, column: Column) -> None:
        seen = self._arrange(_some_rows(column)).double()
        self.mean.copy_(seen.mean((0, 2, 3))[:, None, None])
        std = seen.std((0, 2, 3), correction=0)[:, None, None]
        self.std.copy_(torch.where(std > LEAST_STD * (1 + self.mean.abs()), std, 1))

    def forward(self, values: np.ndarray) -> Tensor:
        return (self._arrange(values).to(self.mean.device) - self.mean) / self.std

    def _arrange(self, values: np.ndarray) -> Tensor:
        pixels = _tensor(values, self.raw_shape).float()
        return pixels.permute(0, 3, 1, 2) if self.channels_last else pixels.reshape(len(values), *self.shape)


class Words(nn.Module):
    """Text: lower-case words and punctuation marks as numbers, 0 = nothing there, 1 = never seen in training."""

    def __init__(self, kind: str = "text", shape: tuple[int, ...] = (), *, most: int = 50_000, longest: int = 64):
        super().__init__()
        self.kind, self.raw_shape = kind, ()
        self.most, self.longest = most, longest
        self.vocabulary: dict[str, int] = {}

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
                counts.update(split_words(text))
        # Ties are ordered by the word itself, so that the numbering does not hang on the order of the data.
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self.most]
        self.set_words([word for word, _ in common])

    def forward(self, texts: list[str]) -> Tensor:
        numbers = [[self.vocabulary.get(word, 1) for word in split_words(text)[: self.longest]] for text in texts]
        longest = max(map(len, numbers), default=0) or 1
        padded = [row + [0] * (longest - len(row)) for row in numbers]
        return torch.tensor(padded, dtype=torch.long).reshape(len(texts), longest)

    def words(self) -> list[str]:
        return list(self.vocabulary)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that training never saw; the encoder takes all of them for the same one."""
        return [word for word in dict.fromkeys(split_words(text)) if word not in self.vocabulary]

    def set_words(self, words: list[str]) -> None:
        self.vocabulary = {word: number for number, word in enumerate(words, start=2)}


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


INPUTS: dict[str, type[nn.Module]] = {"vector": Numbers, "sequence": Numbers, "image": Pixels, "text": Words}


def _tensor(values: Any, shape: tuple[int, ...]) -> Tensor:
    values = np.asarray(values)
    if len(values) == 0:  # nobody has this modality: what was handed in has no shape to compare
        values = np.zeros((0, *shape), np.float32)
    if values.shape[1:] != shape:
        raise DataError(f"expected samples of shape {shape}, as in training, got {values.shape[1:]}")
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _some_rows(column: Column) -> np.ndarray:
    """Up to MOST_ROWS present values, evenly spread over the samples."""
    rows = column.rows[column.present]
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(np.int64)]
    return np.asarray(column.values[picked])
