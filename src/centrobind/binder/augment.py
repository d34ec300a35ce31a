"""Augmented views: the same sample, seen a little differently. One function per kind of modality.

Each takes prepared values (see inputs), a strength (0 = unchanged, 1 = usual) and a generator, and returns
values of the same shape. Draws come from the generator alone, so that a resumed run sees the same views, and are
made for the whole batch, so that a sample gets the same view whichever rank it is on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from centrobind.distributed import drawn_for_all, placed
from centrobind.seeds import mix_seed
from centrobind.types import Batch


def vector(x: Tensor, strength: float, draw: Generator) -> Tensor:
    """Noise on every feature, and a tenth of the features set to their mean. (n, features)"""
    noisy = x + 0.2 * strength * _normal(x.shape, x, draw)
    return torch.where(_chance(x.shape, 0.1 * strength, x, draw), 0, noisy)


def sequence(x: Tensor, strength: float, draw: Generator) -> Tensor:
    """Jitter at every step, another scale and offset per channel, a stretch of time left out. (n, time, channels)"""
    n, time, channels = x.shape
    scale = 1 + 0.1 * strength * _normal((n, 1, channels), x, draw)
    offset = 0.1 * strength * _normal((n, 1, channels), x, draw)
    jitter = 0.05 * strength * _normal(x.shape, x, draw)
    gone = _stretch(n, time, 0.15 * strength, x, draw)
    return torch.where(gone[..., None], 0, x * scale + offset + jitter)


def image(x: Tensor, strength: float, draw: Generator) -> Tensor:
    """A small shift, turn and zoom, then one rectangle erased. (n, channels, height, width)"""
    n, _, height, width = x.shape
    if n == 0:
        return x  # affine_grid refuses an empty batch
    angle, zoom, dx, dy = 2 * _uniform((4, n), x, draw, axis=1) - 1
    angle, zoom = angle * strength * math.radians(10), 1 + zoom * strength * 0.1
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    shift = 0.15 * strength
    turn = torch.stack([cos, -sin, shift * dx, sin, cos, shift * dy], dim=1).view(n, 2, 3)
    grid = F.affine_grid(turn.to(x.dtype), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    tall = _stretch(n, height, 0.3 * strength, x, draw)
    wide = _stretch(n, width, 0.3 * strength, x, draw)
    return torch.where((tall[:, :, None] & wide[:, None, :])[:, None], 0, moved)


def text(x: Tensor, strength: float, draw: Generator) -> Tensor:
    """A sixth of the words left out, but never all of them. (n, words) of word numbers, 0 = nothing there"""
    gone = _chance(x.shape, strength / 6, x, draw)
    left = torch.where(gone, 0, x)
    return torch.where((left > 0).any(1, keepdim=True), left, x)


def _normal(shape: tuple[int, ...], like: Tensor, draw: Generator) -> Tensor:
    return drawn_for_all(shape[0], lambda n: torch.randn((n, *shape[1:]), generator=draw, device=like.device))


def _uniform(shape: tuple[int, ...], like: Tensor, draw: Generator, axis: int = 0) -> Tensor:
    """Between 0 and 1; the samples lie along `axis`."""

    def all_rows(n: int) -> Tensor:
        return torch.rand((*shape[:axis], n, *shape[axis + 1 :]), generator=draw, device=like.device)

    return drawn_for_all(shape[axis], all_rows, axis)


def _chance(shape: torch.Size, probability: float, like: Tensor, draw: Generator) -> Tensor:
    return _uniform(shape, like, draw) < probability


def _stretch(n: int, length: int, share: float, like: Tensor, draw: Generator) -> Tensor:
    """(n, length) bool: in each row one stretch that covers between 0 and twice `share` of it."""
    size, place = _uniform((2, n, 1), like, draw, axis=1)
    size = 2 * share * size
    at = (torch.arange(length, device=like.device) + 0.5) / length
    start = place * (1 - size)
    return (at >= start) & (at < start + size)


VIEWS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "vector": vector,
    "sequence": sequence,
    "image": image,
    "text": text,
}


def augment(batch: Batch, kinds: Mapping[str, str], *, seed: tuple[int, ...], strength: float = 1.0) -> Batch:
    """An augmented view of a prepared batch; the same seed gives the same view."""
    views = {}
    for number, (name, values) in enumerate(batch.inputs.items()):
        draw = Generator(device=values.device).manual_seed(mix_seed(*seed, number))
        with placed(batch.place and batch.place[name]):
            views[name] = VIEWS[kinds[name]](values, strength, draw)
    return replace(batch, inputs=views)
