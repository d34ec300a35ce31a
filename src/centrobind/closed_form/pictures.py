"""Pictures for the closed form: small pixels, the directions of edges, and which small patterns are where."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from centrobind.closed_form.features import Features

SIDE = 32  # pixels; larger pictures are averaged down
PIXELS = 16  # side of the picture whose pixels are used as they are
MOST_CHANNELS = 8  # more are averaged in groups
DIRECTIONS = 8
PATCH = 6  # pixels
PATTERNS = 200
DRAWN = 8000  # patches that patterns are learned from
SIMILAR = 0.25  # cosine from which a patch counts as having a pattern
PLACES = 4  # a side: patterns are counted in 4 x 4 places


class ImageFeatures(Features):
    """(H, W), (H, W, C) or (C, H, W): small pixels, edges by direction and place, patterns by place.

    Edges as in histograms of oriented gradients (Dalal and Triggs 2005); patterns are centres of whitened patches
    (Coates, Lee and Ng 2011), soft-thresholded cosines to them averaged by place. All three look at a picture of at
    most SIDE x SIDE pixels.
    """

    contrast: Tensor
    whitening: Tensor  # (area, area)
    patterns: Tensor  # (PATTERNS, area)

    def __init__(self, kind: str, shape: tuple[int, ...]):
        super().__init__(kind, shape)
        last = len(shape) == 3 and shape[-1] in (1, 3, 4)
        channels, height, width = (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2]) if last else shape
        self.channels_last, self.channels = last, min(channels, MOST_CHANNELS)
        self.size = (min(height, SIDE), min(width, SIDE))
        self.patch = min(PATCH, *self.size)
        area = self.channels * self.patch**2
        self.register_buffer("contrast", torch.ones(()))
        self.register_buffer("whitening", torch.zeros(area, area))
        self.register_buffer("patterns", torch.zeros(PATTERNS, area))

    def prepare(self, x: Tensor, draw: torch.Generator) -> None:
        """Patterns: spherical k-means of whitened patches from random places."""
        small = self._small(x)
        height, width = self.size
        count = min(DRAWN, 16 * len(small))
        picture = torch.randint(len(small), (count, 1, 1, 1), generator=draw)
        top = torch.randint(height - self.patch + 1, (count, 1, 1, 1), generator=draw)
        left = torch.randint(width - self.patch + 1, (count, 1, 1, 1), generator=draw)
        along = torch.arange(self.patch)
        channel = torch.arange(self.channels)[:, None, None]
        patches = small[picture, channel, top + along[:, None], left + along].flatten(1)
        self.contrast.copy_(0.3 * small.std() + 1e-6)
        patches = self._levelled(patches)
        values, vectors = torch.linalg.eigh(patches.T @ patches / count)
        lift = (values.clamp(min=0) + 0.05 * values.clamp(min=0).mean() + 1e-6).rsqrt()
        self.whitening.copy_((vectors * lift) @ vectors.T)
        white = F.normalize(patches @ self.whitening, dim=1)
        centres = white[:PATTERNS].repeat(-(-PATTERNS // len(white)), 1)[:PATTERNS]
        for _ in range(8):
            sums = torch.zeros_like(centres).index_add(0, (white @ centres.T).argmax(1), white)
            centres = torch.where(sums.norm(dim=1, keepdim=True) > 1e-6, F.normalize(sums, dim=1), centres)
        self.patterns.copy_(centres)

    def blocks(self, x: Tensor) -> list[Tensor]:
        small = self._small(x)
        height, width = (min(side, PIXELS) for side in self.size)
        pixels = F.adaptive_avg_pool2d(small, (height, width))
        return [pixels.flatten(1), _edges(small), self._patterns(small)]

    def _small(self, x: Tensor) -> Tensor:
        """(n, channels, height, width)"""
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2) if self.channels_last else x
        if x.shape[1] > self.channels:
            x = F.adaptive_avg_pool3d(x, (self.channels, *x.shape[2:]))
        return F.adaptive_avg_pool2d(x, self.size)

    def _levelled(self, patches: Tensor) -> Tensor:
        """(..., area) patches of mean 0 and, except where there is hardly anything, of equal contrast."""
        patches = patches - patches.mean(-1, keepdim=True)
        return patches / (patches.square().mean(-1, keepdim=True).sqrt() + self.contrast)

    def _patterns(self, small: Tensor) -> Tensor:
        """(n, 2 * PATTERNS * places) roots of how much of each pattern, and of its negative, is where."""
        margin = self.patch // 3
        padded = F.pad(small, (margin,) * 4, mode="replicate" if margin < min(self.size) else "constant")
        height, width = (side - self.patch + 1 for side in padded.shape[2:])
        white = self._levelled(F.unfold(padded, self.patch).transpose(1, 2)) @ self.whitening
        white = white / white.norm(dim=2, keepdim=True).clamp(min=1)
        similar = (white @ self.patterns.T).transpose(1, 2).reshape(len(small), -1, height, width)
        both = torch.cat([(similar - SIMILAR).clamp(min=0), (-similar - SIMILAR).clamp(min=0)], 1)
        return F.adaptive_avg_pool2d(both, (min(PLACES, height), min(PLACES, width))).flatten(1).sqrt()


def _edges(x: Tensor) -> Tensor:
    """(n, ...) roots of gradient sizes by channel and direction, over cells of 4 x 4 and of 8 x 8 pixels."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    size, angle = torch.hypot(across, down), torch.atan2(down, across)
    middles = torch.arange(DIRECTIONS, device=x.device) * (2 * torch.pi / DIRECTIONS)
    apart = torch.remainder(angle[:, :, None] - middles[:, None, None] + torch.pi, 2 * torch.pi) - torch.pi
    near = (1 - apart.abs() * DIRECTIONS / (2 * torch.pi)).clamp(min=0)
    maps = (size[:, :, None] * near).flatten(1, 2)
    return torch.cat([F.avg_pool2d(maps, side, side, ceil_mode=True).flatten(1) for side in (4, 8)], 1).sqrt()
