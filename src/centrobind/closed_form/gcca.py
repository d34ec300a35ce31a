"""MAXVAR generalised canonical correlation (Kettenring 1971), weighted, with ridge and with anything missing.

The shared variable G of all samples maximises sum_m w_m |P_m G|^2 under G^T G = I, where P_m is the ridge projection
onto the features of modality m: the leading eigenvectors of sum_m w_m P_m. It is a centroid of all modalities that
none of them fixes; with one weight at 1 and the others near 0 it becomes that modality's principal components, and
the maps become ridge regression onto them: a fixed anchor.

A sample in which a modality is missing has a row of zeros there: it counts where it is present and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from centrobind.closed_form.moments import Moments

SMALLEST = 1e-10  # of the largest eigenvalue: directions below are rounding, and a map must not blow them up


@dataclass(frozen=True)
class Part:
    """One modality's principal directions; those without variance, as of constant features, are left out."""

    directions: Tensor  # (features, kept) orthonormal columns
    variances: Tensor  # (kept,) descending
    mean: Tensor  # (features,)
    rows: Tensor  # (N, kept) samples along the directions over sqrt(number present), zeros where missing


@dataclass(frozen=True)
class Principal:
    """Data in each modality's principal directions, in which every ridge is a division.

    Of the covariances of all directions, blocks divided by sqrt(n_a n_b), either the whole (K, K) matrix is kept or,
    where there are fewer samples than directions, the (N, K) `rows` whose products they are.
    """

    directions: list[Tensor]
    variances: list[Tensor]
    means: list[Tensor]
    covariances: Tensor | None  # (K, K)
    rows: Tensor | None = None  # (N, K)


@dataclass(frozen=True)
class Solution:
    """One linear map per modality into the shared space, and how far the modalities agree in each dimension."""

    maps: list[Tensor]  # (features, dim)
    spectrum: Tensor  # (dim,) share of the weights that agrees, descending, in [0, 1]
    means: list[Tensor]  # (features,)

    def project(self, features: Sequence[Tensor], dim: int | None = None, power: float = 0.0) -> list[Tensor]:
        """(n, dim) places of each modality's samples, dimensions scaled by spectrum ** power, not yet unit vectors."""
        scale = self.spectrum[:dim] ** power
        return [(x - mean) @ (w[:, :dim] * scale) for x, mean, w in zip(features, self.means, self.maps)]


def principal(moments: Moments) -> Principal:
    """From sums over any number of samples."""
    centred, counts = moments.centred(), moments.counts.diagonal().clamp(min=1)
    pairs = [axes(centred[block, block] / count) for block, count in zip(moments.blocks, counts)]
    directions, variances = [u for u, _ in pairs], [v for _, v in pairs]
    means = [mean[block] for mean, block in zip(moments.means, moments.blocks)]
    rotation = torch.block_diag(*(u / count.sqrt() for u, count in zip(directions, counts)))
    return Principal(directions, variances, means, rotation.T @ centred @ rotation)


def principal_part(features: Tensor, present: Tensor) -> Part:
    """One modality from (N, features) rows held in memory, of which those that are `present` (N,) count."""
    here = features[present]
    mean = here.mean(0) if len(here) else features.new_zeros(features.shape[1])
    centred = (here - mean) / max(len(here), 1) ** 0.5
    if len(here) >= features.shape[1]:
        directions, variances = axes(centred.T @ centred)
    else:
        left, variances = axes(centred @ centred.T)
        directions = centred.T @ left / variances.sqrt()
    rows = features.new_zeros(len(features), len(variances))
    rows[present] = centred @ directions
    return Part(directions, variances, mean, rows)


def joined(parts: Sequence[Part]) -> Principal:
    """All modalities' parts of the same samples."""
    rows = torch.cat([part.rows for part in parts], 1)
    few = rows.shape[0] < rows.shape[1]
    directions, variances, means = zip(*((part.directions, part.variances, part.mean) for part in parts))
    return Principal([*directions], [*variances], [*means], None if few else rows.T @ rows, rows if few else None)


def axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of a covariance, descending, without those that are zero but for rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > SMALLEST * values[-1:].clamp(min=SMALLEST)
    return vectors[:, kept].flip(1), values[kept].flip(0)


def solve(at: Principal, *, ridge: Sequence[float], weights: Sequence[float], dim: int) -> Solution:
    """The shared space: ridge[m] in units of modality m's mean variance, weights[m] > 0, at most `dim` dimensions."""
    sizes = [len(values) for values in at.variances]
    shrink = torch.cat([(v + r * v.mean()).rsqrt() for v, r in zip(at.variances, ridge)])
    roots = torch.cat([shrink.new_full((size,), w**0.5) for size, w in zip(sizes, weights)])
    if at.rows is not None:
        weighted = at.rows * (shrink * roots)
        values, shared = leading(weighted @ weighted.T, dim)
        loads = at.rows.T @ shared
    else:
        assert at.covariances is not None
        values, vectors = leading((shrink * roots)[:, None] * at.covariances * (shrink * roots), dim)
        # covariances @ ... = rows^T G: what the shared variable has in common with every direction
        loads = at.covariances @ ((shrink * roots)[:, None] * vectors) / values.sqrt()
    loads = shrink[:, None].square() * loads
    maps = [u @ load for u, load in zip(at.directions, loads.split(sizes))]
    return Solution(maps, (values / sum(weights)).clamp(max=1), at.means)


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric matrix that are not zero, descending, and their vectors."""
    size = len(matrix)
    if size == 0:  # constant features only
        return matrix.new_zeros(0), matrix
    if matrix.is_cuda:
        values, vectors = torch.linalg.eigh(matrix)
    else:  # LAPACK can leave out the vectors nobody needs, a third of the time; torch cannot
        found = scipy.linalg.eigh(matrix.numpy(), subset_by_index=(max(size - count, 0), size - 1), check_finite=False)
        values, vectors = map(torch.from_numpy, found)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = values > torch.finfo(values.dtype).eps * size * max(float(values[0]), SMALLEST)
    return values[kept], vectors[:, kept]
