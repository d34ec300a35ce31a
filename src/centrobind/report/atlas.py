"""A map of a space in two dimensions, and how much of it is true.

t-SNE (van der Maaten & Hinton 2008) with the same weight for each of the nearest neighbours instead of a perplexity
(Boehm et al., JMLR 2022), repulsion by convolution on a grid (Linderman et al., Nature Methods 2019; fields as in
Pezzotti et al. 2019), started from the principal components (Kobak & Berens 2019). No draw of chance is in it, so the
same embeddings give the same map. Rejected: UMAP, 400 MB of packages for a map that keeps less.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from centrobind.data.npz import NOT_A_ZIP
from centrobind.data.samples import NOT_AN_ARRAY
from centrobind.errors import CentrobindError
from centrobind.files import not_written
from centrobind.types import Embeddings

VERSION = 2  # of the method: another one makes cached maps worthless
MOST = 100_000  # points
NEAREST = 15  # neighbours that attract
COMPARED = 10  # neighbours that are looked for again on the map
EXAGGERATED, STEPS = 150, 450  # steps with fourfold attraction, and all
SPACING, LARGEST = 0.5, 512  # of the grid of the repulsion: in units of the map, and most cells along a side
LEAST_CELLS = 30  # along a side, however small the map is
GROUP = 16  # columns of similarities that are reduced to their largest before the nearest are picked
EXACT_BELOW = 1000  # points: with fewer, float32 fields would be too coarse beside the force of a single pair
CHUNK = 256


@dataclass(frozen=True)
class Atlas:
    """Where P points lie; a point is one modality of one sample."""

    xy: np.ndarray  # (P, 2) float32, within [-1, 1]
    row: np.ndarray  # (P,) int32, the sample
    modality: np.ndarray  # (P,) uint8
    kept: np.ndarray  # (P,) uint8: how many of its COMPARED nearest neighbours in the space are so on the map

    def __len__(self) -> int:
        return len(self.row)

    @property
    def share_kept(self) -> float:
        """The share of true neighbours that the map keeps; NaN for fewer than two points."""
        return float(self.kept.mean() / min(COMPARED, len(self) - 1)) if len(self) > 1 else float("nan")


def make_atlas(space: Embeddings, *, most: int = MOST, each: Callable[[int], None] | None = None) -> Atlas:
    """Map every modality of every sample, or of evenly picked samples where that is more than `most` points.

    `each(step)` is called with the number of steps done, of STEPS.
    """
    present = space.present.numpy()
    count = int(present.sum())
    if count > most:
        picked = np.linspace(0, len(space) - 1, len(space) * most // count).astype(np.int64)
        present = present & np.isin(np.arange(len(space)), picked)
    modality, row = np.nonzero(present)
    z = space.z[modality, row].float()
    near = nearest(z, min(NEAREST, len(z) - 1))
    xy = lay_out(z, near, each)
    return Atlas(_framed(xy), row.astype(np.int32), modality.astype(np.uint8), _kept(near, xy))


def nearest(z: Tensor, k: int) -> np.ndarray:
    """(P, k) the most similar other rows of unit vectors (P, D), best first."""
    found = []
    padded = torch.nn.functional.pad(z, (0, 0, 0, -len(z) % GROUP))
    for start in range(0, len(z), CHUNK):
        similarity = z[start : start + CHUNK] @ padded.T
        similarity[:, len(z) :] = -torch.inf
        own = torch.arange(len(similarity))
        similarity[own, own + start] = -torch.inf
        found.append(_largest(similarity, k))
    return torch.cat(found).numpy() if found else np.zeros((0, 0), np.int64)


def _largest(values: Tensor, k: int) -> Tensor:
    """(n, k) the columns of the k largest of each row, best first; a multiple of GROUP columns.

    The k groups with the largest maxima hold them all, so that only those are sorted: a third of the time of `topk`.
    """
    groups = values.unflatten(1, (-1, GROUP))
    best = groups.amax(2).topk(min(k, groups.shape[1]), sorted=False).indices
    columns = (best[..., None] * GROUP + torch.arange(GROUP)).flatten(1).sort(1).values
    return columns.gather(1, values.gather(1, columns).topk(k).indices)


def _kept(near: np.ndarray, xy: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    k = min(COMPARED, near.shape[1])
    if k < 1:
        return np.zeros(len(xy), np.uint8)
    seen = np.asarray(cKDTree(xy).query(xy, k + 1)[1])
    # Drop the point itself; where several lie on one spot it may not come first, or not at all.
    others = [[other for other in row if other != own][:k] for own, row in enumerate(seen.tolist())]
    return np.array([len(set(a) & set(b)) for a, b in zip(near[:, :k].tolist(), others)], np.uint8)


def lay_out(z: Tensor, near: np.ndarray, each: Callable[[int], None] | None = None) -> np.ndarray:
    """(P, 2) places for (P, D) points that attract their neighbours `near` (P, k) and repel all others."""
    if len(z) < 4:
        return np.stack([np.arange(len(z)), np.zeros(len(z))], 1).astype(np.float64)
    first, second, weight = _attractions(near)
    y = _principal(z)
    speed, gain = np.zeros_like(y), np.ones_like(y)
    rate = len(z) / 4
    for step in range(STEPS):
        exaggeration, momentum = (4.0, 0.5) if step < EXAGGERATED else (1.0, 0.8)
        gradient = 4 * (exaggeration * _attraction(y, first, second, weight) - _repulsion(y))
        gain = np.where((speed > 0) != (gradient > 0), gain + 0.2, gain * 0.8).clip(0.01)
        speed = momentum * speed - rate * gain * gradient
        y = y + speed
        if each is not None:
            each(step + 1)
    return y


def _attractions(near: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends and the weight of every attraction, each pair once; over both directions the weights sum to 1."""
    count, k = near.shape
    ends = np.sort(np.stack([np.repeat(np.arange(count), k), near.reshape(-1).astype(np.int64)]), axis=0)
    key, times = np.unique(ends[0] * count + ends[1], return_counts=True)
    return key // count, key % count, times / (2 * times.sum())


def _attraction(y: np.ndarray, first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(P, 2): the sum over a point's attractions of w q (y_i - y_j), q = 1 / (1 + d^2)."""
    apart = [axis[first] - axis[second] for axis in y.T.copy()]
    strength = weight / (1 + apart[0] ** 2 + apart[1] ** 2)
    pulls = [strength * axis for axis in apart]
    return np.stack([np.bincount(first, pull, len(y)) - np.bincount(second, pull, len(y)) for pull in pulls], 1)


def _principal(z: Tensor) -> np.ndarray:
    """The two principal components, scaled so small that neighbours find each other before they repel."""
    centred = (z - z.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -2:].flip(1)
    strongest = axes.abs().argmax(0)
    axes = axes * axes[strongest, torch.arange(axes.shape[1])].sign()  # an eigenvector has no sign of its own
    y = (centred @ axes).numpy()
    if y.shape[1] < 2:
        y = np.concatenate([y, np.zeros((len(y), 2 - y.shape[1]))], 1)
    # Points that lie on one spot would never part: nothing in the forces tells them from each other.
    turn = np.arange(len(y)) * 2.399963
    y = y / max(y[:, 0].std(), 1e-12) + 1e-2 * np.stack([np.cos(turn), np.sin(turn)], 1)
    start: np.ndarray = 1e-4 * y
    return start


def _repulsion(y: np.ndarray) -> np.ndarray:
    """(P, 2): the sum over others of q^2 (y_i - y_j), q = 1 / (1 + d^2), over the sum of q over all pairs.

    Points are spread over the corners of their cell, the fields of all points are one convolution, and a point reads
    them at the corners of its cell with the same weights, so that it does not repel itself.
    """
    low, high = y.min(0), y.max(0)
    cells, spacing = _grid(float((high - low).max()))
    at = (y - low) / spacing + 0.5
    corner = np.floor(at).astype(np.int64)
    share = at - corner
    density = np.zeros(cells * cells)
    places, weights = [], []
    for dx in (0, 1):
        for dy in (0, 1):
            places.append((corner[:, 0] + dx) * cells + corner[:, 1] + dy)
            weights.append(np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1]))
            density += np.bincount(places[-1], weights[-1], cells * cells)
    kernels = _kernels(cells, spacing, torch.float32 if len(y) > EXACT_BELOW else torch.float64)
    spectrum = torch.fft.rfft2(torch.from_numpy(density.reshape(cells, cells)).to(kernels.real.dtype), (2 * cells,) * 2)
    fields = torch.fft.irfft2(kernels * spectrum, (2 * cells,) * 2)[:, :cells, :cells].reshape(3, -1).numpy()
    total, across, down = (sum(field[place] * weight for place, weight in zip(places, weights)) for field in fields)
    own = _own_share(share, spacing)
    force: np.ndarray = np.stack([across, down], 1) / max(float((total - own).sum()), 1e-12)
    return force


def _grid(extent: float) -> tuple[int, float]:
    """Cells along a side of the grid, and their size: steps of both, so that many a map has the same kernels."""
    extent = max(extent, 1e-9)
    if extent <= SPACING * LARGEST:
        spacing = min(SPACING, 2.0 ** math.floor(math.log2(extent / LEAST_CELLS)))
    else:
        spacing = SPACING * 2 ** (math.ceil(8 * math.log2(extent / SPACING / LARGEST)) / 8)
    return 16 * math.ceil((extent / spacing + 2) / 16), spacing


@lru_cache(maxsize=2)
def _kernels(cells: int, spacing: float, dtype: torch.dtype) -> Tensor:
    """(3, 2 cells, cells + 1) spectra of q, q^2 x and q^2 y; twice as wide as the grid, so nothing wraps around."""
    away = torch.fft.fftfreq(2 * cells, 1 / (2 * cells), dtype=torch.float64) * spacing
    q = 1 / (1 + away[:, None] ** 2 + away[None] ** 2)
    return torch.fft.rfft2(torch.stack([q, q**2 * away[:, None], q**2 * away[None]]).to(dtype))


def _own_share(share: np.ndarray, spacing: float) -> np.ndarray:
    """(P,) what a point, spread over four corners, adds to the sum of q at its own place; 1 for a very fine grid."""
    same = [share[:, axis] ** 2 + (1 - share[:, axis]) ** 2 for axis in (0, 1)]
    near, far = 1 / (1 + spacing**2), 1 / (1 + 2 * spacing**2)
    own: np.ndarray = (
        same[0] * same[1]
        + near * (same[0] * (1 - same[1]) + (1 - same[0]) * same[1])
        + far * (1 - same[0]) * (1 - same[1])
    )
    return own


def _framed(xy: np.ndarray) -> np.ndarray:
    """Centred and scaled to [-1, 1]; the proportions stay."""
    low, high = xy.min(0), xy.max(0)
    framed: np.ndarray = ((xy - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)).astype(np.float32)
    return framed


def cached_atlas(folder: Path, space: Embeddings, each: Callable[[int], None] | None = None) -> Atlas:
    """The map of these embeddings, from the folder if it was made before, else made and left there."""
    digest = hashlib.sha256(f"{VERSION} {MOST} {space.modalities} {tuple(space.z.shape)}".encode())
    digest.update(np.ascontiguousarray(space.z.numpy()).data)
    digest.update(np.ascontiguousarray(space.present.numpy()).data)
    file = folder / f"map-{digest.hexdigest()[:16]}.npz"
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as held:
            return Atlas(*(held[name] for name in ("xy", "row", "modality", "kept")))
    except (*NOT_AN_ARRAY, *NOT_A_ZIP):
        pass  # not there yet, or damaged: it is made again
    atlas = make_atlas(space, each=each)
    temporary = file.with_name(file.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as out:
            np.savez(out, xy=atlas.xy, row=atlas.row, modality=atlas.modality, kept=atlas.kept)
        os.replace(temporary, file)
    except OSError as error:
        raise CentrobindError(f"{not_written(file, error)}; --cache FOLDER puts the map elsewhere") from None
    return atlas
