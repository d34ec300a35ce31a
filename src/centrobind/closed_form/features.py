"""What each kind of modality gives the closed form: values as stored -> (n, width) numbers for a linear map.

    vector     as they are, standardised
    sequence   every step, and the size of every frequency, mean and deviation of every channel
    image      the pixels of a small picture, and histograms of the directions of its edges
    text       hashed character n-grams and words, weighted by rarity (TF-IDF)

All end in at most `most` principal components, in the scale of the standardised features, learned on up to MOST_ROWS
samples. A module is saved as its state_dict and its `describe()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from centrobind.closed_form.components import Components, Kernel, directions
from centrobind.closed_form.grams import count_grams, count_words
from centrobind.data import Column
from centrobind.errors import DataError

MOST_ROWS = 10_000  # rows that components are learned on: enough to know a mean to 1 %
MOST_NUMBERS = 2**27  # numbers held while learning, half a gigabyte: fewer rows of wider values
MOST_BUCKETS = 50_000


class Features(nn.Module):
    """A modality's values -> (n, width) features, zero on average over the samples it was learned on."""

    components: Components
    kernel: Kernel | None

    def __init__(self, kind: str, shape: tuple[int, ...]):
        super().__init__()
        self.kernel = None
        self.kind, self.raw_shape = kind, tuple(shape)

    @property
    def width(self) -> int:
        """Number of features."""
        return (self.components if self.kernel is None else self.kernel).width

    def learn(self, column: Column, most: int, seed: int = 0) -> None:
        """From up to MOST_ROWS present values, evenly spread; at most `most` features."""
        blocks = self.blocks(some_values(column, int(np.prod(self.raw_shape))))
        widths = [block.shape[1] for block in blocks]
        self.components = Components.learned(torch.cat(blocks, 1), widths, most, seed=seed)

    def forward(self, values: Any) -> Tensor:
        """Values as stored, (n, ...) -> (n, width) on the module's device."""
        x = self.linear(values)
        return x if self.kernel is None else self.kernel(x)

    def linear(self, values: Any) -> Tensor:
        """The principal components that the kernel, if there is one, starts from."""
        return self.components(torch.cat(self.blocks(values), 1))

    def blocks(self, values: Any) -> list[Tensor]:
        """Raw features (n, ...) in blocks that get an equal share of the variance."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """All but the tensors, as JSON: enough to build the module again."""
        kernel = None if self.kernel is None else list(self.kernel.basis.shape)
        shape, (raw, width) = list(self.raw_shape), self.components.basis.shape
        return {"kind": self.kind, "shape": shape, "raw": raw, "width": width, "kernel": kernel}

    def rebuild(self, description: Mapping[str, Any]) -> None:
        """Room for the tensors that the description speaks of."""
        self.components = Components(description["raw"], description["width"])
        if description["kernel"] is not None:
            self.kernel = Kernel(description["width"], *description["kernel"])

    def _numbers(self, values: Any) -> Tensor:
        array = torch.as_tensor(np.asarray(values)) if not isinstance(values, Tensor) else values
        if tuple(array.shape[1:]) != self.raw_shape:
            raise DataError(f"expected samples of shape {self.raw_shape}, as in training, got {tuple(array.shape[1:])}")
        return array.float()


class VectorFeatures(Features):
    """The numbers themselves."""

    def blocks(self, values: Any) -> list[Tensor]:
        return [self._numbers(values).reshape(len(values), -1)]


class SequenceFeatures(Features):
    """(time, channels...): every step, and per channel the size of every frequency, the mean and the deviation."""

    LONGEST = 128  # steps; longer sequences are averaged down to so many

    def blocks(self, values: Any) -> list[Tensor]:
        x = self._numbers(values)
        x = x.reshape(len(x), self.raw_shape[0], -1).transpose(1, 2)
        if x.shape[2] > self.LONGEST:
            x = F.adaptive_avg_pool1d(x, self.LONGEST)
        sizes = torch.log(torch.fft.rfft(x - x.mean(2, keepdim=True)).abs()[..., 1:] + 1e-3)
        summary = torch.cat([x.mean(2), x.std(2, correction=0)], 1)
        return [block.flatten(1) for block in (x, sizes, summary) if block.numel()]


class ImageFeatures(Features):
    """(H, W), (H, W, C) or (C, H, W): a small picture, and how strong the edges of each direction are in each place."""

    SIDE = 32  # pixels; larger pictures are averaged down
    DIRECTIONS = 8

    def blocks(self, values: Any) -> list[Tensor]:
        x = self._numbers(values)
        if x.ndim == 3:
            x = x[:, None]
        elif x.shape[-1] in (1, 3, 4):
            x = x.permute(0, 3, 1, 2)
        height, width = (min(side, self.SIDE) for side in x.shape[2:])
        small = F.adaptive_avg_pool2d(x, (height, width))
        return [F.adaptive_avg_pool2d(small, (min(height, 16), min(width, 16))).flatten(1), self._edges(small)]

    def _edges(self, x: Tensor) -> Tensor:
        """(n, ...) roots of gradient sizes by channel and direction, over cells of 4 x 4 and of 8 x 8 pixels."""
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        across, down = x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
        size, angle = torch.hypot(across, down), torch.atan2(down, across)
        middles = torch.arange(self.DIRECTIONS, device=x.device) * (2 * torch.pi / self.DIRECTIONS)
        apart = torch.remainder(angle[:, :, None] - middles[:, None, None] + torch.pi, 2 * torch.pi) - torch.pi
        near = (1 - apart.abs() * self.DIRECTIONS / (2 * torch.pi)).clamp(min=0)
        maps = (size[:, :, None] * near).flatten(1, 2)
        cells = [F.avg_pool2d(maps, side, side, ceil_mode=True).flatten(1) for side in (4, 8)]
        return torch.cat(cells, 1).sqrt()


class TextFeatures(Features):
    """Character n-grams and words, hashed, each weighted by how rare it is; unknown ones are left out."""

    def learn(self, column: Column, most: int, seed: int = 0) -> None:
        texts = some_values(column, 1)
        counts = [count(texts) for count in (count_grams, count_words)]
        least = 2 if len(texts) > 20 else 1  # what only one text has says nothing about the others
        for number, table in enumerate(counts):
            holders = np.bincount(table.indices, minlength=table.shape[1])
            common = np.argsort(-holders, kind="stable")[:MOST_BUCKETS]
            buckets = np.sort(common[holders[common] >= least])
            rarity = np.log((1 + len(texts)) / (1 + holders[buckets])) + 1
            self.register_buffer(f"buckets_{number}", torch.from_numpy(buckets.astype(np.int64)))
            self.register_buffer(f"rarity_{number}", torch.from_numpy(rarity.astype(np.float32)))
        table = self._weighted(counts)
        mean = np.asarray(table.mean(0)).ravel()
        basis = _sparse_directions(table, mean, most, seed)
        self.components = Components(table.shape[1], basis.shape[1])
        self.components.basis.copy_(torch.from_numpy(basis))
        self.components.mean.copy_(torch.from_numpy(mean))

    def linear(self, values: Sequence[str]) -> Tensor:
        table = self._weighted([count(list(values)) for count in (count_grams, count_words)])
        basis = self.components.basis
        projected = torch.from_numpy(table @ basis.cpu().numpy()).to(basis.device)
        return projected - self.components.mean @ basis

    def _weighted(self, counts: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
        """(n, raw) TF-IDF, each block's rows of length 1."""
        blocks = []
        for number, table in enumerate(counts):
            buckets, rarity = (getattr(self, f"{name}_{number}").cpu().numpy() for name in ("buckets", "rarity"))
            table = table[:, buckets]
            table.data = 1 + np.log(table.data)
            table = table.multiply(rarity[None]).tocsr()
            length = np.sqrt(np.asarray(table.multiply(table).sum(1)).ravel())
            blocks.append(sparse.diags(1 / np.maximum(length, 1e-12)) @ table)
        return sparse.hstack(blocks).tocsr().astype(np.float32)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"buckets": [len(self.buckets_0), len(self.buckets_1)]}

    def rebuild(self, description: Mapping[str, Any]) -> None:
        super().rebuild(description)
        for number, count in enumerate(description["buckets"]):
            self.register_buffer(f"buckets_{number}", torch.zeros(count, dtype=torch.long))
            self.register_buffer(f"rarity_{number}", torch.zeros(count))


KINDS: dict[str, type[Features]] = {
    "vector": VectorFeatures,
    "sequence": SequenceFeatures,
    "image": ImageFeatures,
    "text": TextFeatures,
}


def learned_features(column: Column, *, most: int = 512, seed: int = 0) -> Features:
    """The features of one modality, learned from its present values."""
    features = KINDS[column.kind](column.kind, column.shape)
    features.learn(column, most, seed)
    if column.kind != "text":  # n-grams are many and rare as they are: bending them lost on every set
        features.kernel = Kernel.learned(features.linear(some_values(column, int(np.prod(column.shape)))), most)
    return features


def rebuilt_features(description: Mapping[str, Any]) -> Features:
    """A module of the described shape, its tensors still to be loaded with load_state_dict."""
    features = KINDS[description["kind"]](description["kind"], tuple(description["shape"]))
    features.rebuild(description)
    return features


def some_values(column: Column, numbers: int) -> Any:
    """Up to MOST_ROWS present values, evenly spread over the samples, fewer where each has very many numbers."""
    rows = column.rows[column.present]
    most = max(min(MOST_ROWS, MOST_NUMBERS // max(numbers, 1)), 2)
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
    return column.values[picked]


def _sparse_directions(table: sparse.csr_matrix, mean: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(raw, k) leading principal directions of a sparse table whose mean is taken off without filling it."""
    rows, columns = table.shape
    if min(rows, columns) <= max(1200, 2 * most):
        dense = torch.from_numpy((table.toarray() if columns <= rows else np.asarray(table.todense())) - mean)
        return directions(dense.float(), most, seed=seed).numpy()
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((columns, most + 20), np.float32))[0]
    for _ in range(4):
        low = table @ basis - mean @ basis
        basis = np.linalg.qr(table.T @ low - np.outer(mean, low.sum(0)))[0]
    low = table @ basis - mean @ basis
    vectors = np.linalg.eigh((low.T @ low).astype(np.float64))[1][:, ::-1][:, :most]
    return (basis @ vectors).astype(np.float32)
