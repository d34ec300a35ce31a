"""Blocks of raw features -> a few hundred principal components, in the natural scale of the standardised features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROUNDINGS = 16  # of the largest number of a feature: what moves less is the noise of computing it
EXACT = 1200  # up to here an eigenproblem is solved in full: a third of a second


class Components(nn.Module):
    """(n, raw) -> (n, width): standardised, every block of columns of equal total variance, then rotated and cut."""

    mean: Tensor  # (raw,)
    basis: Tensor  # (raw, width)

    def __init__(self, raw: int, width: int):
        super().__init__()
        self.raw, self.width = raw, width
        self.register_buffer("mean", torch.zeros(raw))
        self.register_buffer("basis", torch.zeros(raw, width))

    @classmethod
    def learned(cls, x: Tensor, blocks: list[int], most: int, seed: int = 0) -> Components:
        """From (n, raw) rows; `blocks` are widths of columns that belong together, each gets an equal share."""
        mean = x.mean(0)
        std = (x - mean).std(0, correction=0)
        usable = std > ROUNDINGS * torch.finfo(x.dtype).eps * x.abs().amax(0)
        share = torch.cat([part.sum().clamp(min=1).rsqrt().expand(len(part)) for part in usable.split(blocks)])
        scale = torch.where(usable, share / std, 0)
        scaled = (x - mean) * scale
        basis = directions(scaled, most, seed=seed)
        made = cls(x.shape[1], basis.shape[1])
        made.mean.copy_(mean)
        made.basis.copy_(scale[:, None] * basis)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.mean.device) - self.mean) @ self.basis


def directions(x: Tensor, most: int, *, seed: int = 0) -> Tensor:
    """(raw, k) the leading principal directions of centred rows (n, raw), k at most `most` and the rank.

    Solved in the smaller of rows and columns; where both are large by subspace iteration on a random start.
    """
    rows, columns = x.shape
    size = min(rows, columns)
    if size > max(EXACT, 2 * most):
        return _randomised(x, most, seed)
    inner = (x.T @ x if columns <= rows else x @ x.T).double()
    values, vectors = torch.linalg.eigh(inner)
    kept = int((values > 1e-6 * values[-1].clamp(min=1e-12)).sum())
    count = max(min(most, kept), 1)
    vectors = vectors.flip(1)[:, :count].to(x.dtype)
    return vectors if columns <= rows else nn.functional.normalize(x.T @ vectors, dim=0)


def _randomised(x: Tensor, most: int, seed: int, steps: int = 4) -> Tensor:
    """Halko, Martinsson and Tropp 2011, with a few power iterations."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(x.shape[1], most + 20, generator=draw, dtype=x.dtype).to(x.device)
    basis = torch.linalg.qr(start)[0]
    for _ in range(steps):
        basis = torch.linalg.qr(x.T @ (x @ basis))[0]
    small = x @ basis
    vectors = torch.linalg.eigh((small.T @ small).double())[1].flip(1)[:, :most]
    leading: Tensor = basis @ vectors.to(x.dtype)
    return leading


class Kernel(nn.Module):
    """(n, features) -> (n, width): principal components of a Gaussian kernel, so that a linear map can bend.

    Nystroem's method (Williams and Seeger 2001): similarities to `landmarks` rows, rotated so that their products are
    the kernel's. The kernel falls to exp(-WIDTH) at the median distance of two landmarks: wide, close to linear plus
    quadratic, which on every data set tried was as good as narrower ones or better.
    """

    WIDTH = 0.25
    LANDMARKS = 1000
    landmarks: Tensor  # (landmarks, features)
    basis: Tensor  # (landmarks, width)
    offset: Tensor  # (width,)
    sharpness: Tensor

    def __init__(self, features: int, landmarks: int, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("landmarks", torch.zeros(landmarks, features))
        self.register_buffer("basis", torch.zeros(landmarks, width))
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("sharpness", torch.ones(()))

    @classmethod
    def learned(cls, x: Tensor, most: int) -> Kernel:
        """From (n, features) rows, up to LANDMARKS of them as landmarks, evenly spread."""
        rows = torch.linspace(0, len(x) - 1, min(len(x), cls.LANDMARKS), device=x.device).long()
        landmarks = x[rows]
        distances = torch.cdist(landmarks, landmarks).square()
        sharpness = cls.WIDTH / distances[distances > 0].median() if (distances > 0).any() else x.new_ones(())
        values, vectors = torch.linalg.eigh(torch.exp(-sharpness * distances).double())
        kept = values > 1e-6 * values[-1]
        whitened = (vectors[:, kept] / values[kept].sqrt()).to(x.dtype)
        similar = torch.exp(-sharpness * torch.cdist(x, landmarks).square()) @ whitened
        rotation = directions(similar - similar.mean(0), most)
        made = cls(x.shape[1], len(landmarks), rotation.shape[1])
        made.landmarks.copy_(landmarks)
        made.basis.copy_(whitened @ rotation)
        made.offset.copy_(similar.mean(0) @ rotation)
        made.sharpness.copy_(sharpness)
        return made

    def forward(self, x: Tensor) -> Tensor:
        similar = torch.exp(-self.sharpness * torch.cdist(x, self.landmarks).square())
        return similar @ self.basis - self.offset
