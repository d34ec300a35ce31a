"""Encoders: prepared values -> features. Anything with a `width` and a forward plugs in.

Every class takes the shape of one prepared sample (see inputs) and a width, the number of features it puts
out. None uses batch normalisation: it would let samples of a batch see each other, which makes chunked
gradients (GradCache) and missing rows inexact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from centrobind.distributed import drawn_for_all
from centrobind.errors import ConfigError


class Linear(nn.Module):
    """One matrix. Any numeric shape, flattened."""

    def __init__(self, shape: tuple[int, ...], width: int = 128):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(_size(shape), width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Dropout(nn.Dropout):
    """torch's, with the same choice for a sample whichever rank it is on."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        ones = x.new_ones(x.shape[1:])
        return x * drawn_for_all(len(x), lambda n: F.dropout(ones.expand(n, *ones.shape), self.p))


class MLP(nn.Module):
    """Linear layers with GELU and layer normalisation between them. Any numeric shape, flattened."""

    def __init__(self, shape: tuple[int, ...], width: int = 256, depth: int = 2, dropout: float = 0.0):
        super().__init__()
        self.width = width
        layers: list[nn.Module] = [nn.Flatten()]
        for size in [_size(shape)] + [width] * (depth - 1):
            layers += [nn.Linear(size, width), nn.LayerNorm(width), nn.GELU(), Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(MLP):
    """One hidden layer over the features of the closed form, of any kind of modality: what a linear path leaves over.

    `dropout` is of the hidden units, `noise` the share of the features left out.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 256, dropout: float = 0.5, noise: float = 0.2):
        super().__init__(shape, width, depth=1, dropout=dropout)
        self.noise = Dropout(noise)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.noise(x))


class CNN(nn.Module):
    """3x3 convolutions, each halving the picture, then the mean and the maximum over what is left.

    For (channels, height, width).
    """

    def __init__(self, shape: tuple[int, ...], width: int = 256, channels: int = 32, depth: int = 3):
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        size = shape[0]
        for level in range(depth):
            wider = channels * 2**level
            layers += [nn.Conv2d(size, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.GELU()]
            size = wider
        self.layers = nn.Sequential(*layers)
        # Position is kept by flattening a 4x4 summary: a dot above and a dot below are different letters.
        self.summary = nn.AdaptiveAvgPool2d(4)
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(16 * size, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.summary(self.layers(x)))


class SequenceCNN(nn.Module):
    """1-D convolutions over time, each halving it, then the mean and the maximum. For (time, channels)."""

    def __init__(self, shape: tuple[int, ...], width: int = 256, channels: int = 64, depth: int = 3):
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        size = shape[1]
        for level in range(depth):
            wider = channels * 2**level
            layers += [nn.Conv1d(size, wider, 5, stride=2, padding=2), nn.GroupNorm(8, wider), nn.GELU()]
            size = wider
        self.layers = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Linear(2 * size, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        over_time = self.layers(x.transpose(1, 2))
        return self.mix(torch.cat([over_time.mean(2), over_time.amax(2)], dim=1))


def _normal(rows: int, width: int, *, std: float = 1.0, empty_first: bool = False) -> Tensor:
    """(rows, width) draws of N(0, std^2), the first row zero where asked for; on the meta device only the shape.

    There, torch would draw through its compiler, which takes seconds to import.
    """
    weight = torch.empty(rows, width)
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
        weight[: int(empty_first)] = 0
    return weight


class BagOfWords(nn.Module):
    """The mean of the words' vectors, then one hidden layer. For word numbers (words,), 0 = nothing there."""

    def __init__(self, shape: tuple[int, ...], width: int = 256):
        super().__init__()
        self.width = width
        self.words = nn.EmbeddingBag(
            shape[0], width, mode="mean", padding_idx=0, _weight=_normal(shape[0], width, empty_first=True)
        )
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.words(x))


class TextTransformer(nn.Module):
    """A small transformer over the words, then their mean. For word numbers (words,), 0 = nothing there."""

    def __init__(self, shape: tuple[int, ...], width: int = 128, depth: int = 2, heads: int = 4, longest: int = 64):
        super().__init__()
        if width % heads:
            raise ConfigError(f"transformer: width must be a multiple of heads, got {width} and {heads}")
        self.width = width
        self.words = nn.Embedding(shape[0], width, padding_idx=0, _weight=_normal(shape[0], width, empty_first=True))
        self.places = nn.Parameter(_normal(longest, width, std=0.02))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        there = x > 0
        # An empty text attends to its first, empty place: a row with nothing to attend to would be NaN.
        there = torch.cat([there[:, :1] | ~there.any(1, keepdim=True), there[:, 1:]], dim=1)
        seen = self.layers(self.words(x) + self.places[: x.shape[1]], src_key_padding_mask=~there)
        return torch.where(there[..., None], seen, 0).sum(1) / there.sum(1, keepdim=True)


ENCODERS: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "residual": Residual,
    "cnn": CNN,
    "sequence": SequenceCNN,
    "bag": BagOfWords,
    "transformer": TextTransformer,
}
KIND_ENCODERS = {  # what a kind of modality can use; the first is its default
    "vector": ("mlp", "linear"),
    "sequence": ("sequence", "mlp", "linear"),
    "image": ("cnn", "mlp", "linear"),
    "text": ("bag", "transformer"),
}


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
