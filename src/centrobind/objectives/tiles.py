"""The logits of an InfoNCE, cut into tiles that are made one at a time, or kept as they were made the first time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from centrobind.objectives.comparison import Comparison

# Rows and columns of a tile. On a CPU a tile should stay in the second-level caches: measured best of 256 to 4096 each
# on 2 cores with 2 MB. On a GPU a tile should fill the device and be few; not measured.
TILES = {"cpu": (1024, 1024), "other": (4096, 4096)}

# Rows of a tile that the backward pass works on at a time between its multiplications. A tile fits the second-level
# caches, but not with its weights beside it: strips of 256 take a quarter less time than whole tiles. The forward pass,
# with nothing beside its tile, gains nothing.
STRIPS = {"cpu": 256, "other": 4096}


class Tile(NamedTuple):
    """Some rows and columns of one term's matrix."""

    term: int
    rows: slice  # of the rank's own
    cols: slice
    q: Tensor  # (rows, D), zeros where absent
    k: Tensor  # (cols, D), zeros where absent
    s: Tensor  # (rows, cols) logits, in a buffer that the next tile overwrites; exponentials, read only, if `kept`
    kept: bool
    positives: slice  # the rows whose positive is in this tile
    corner: tuple[int, int]  # the place of the first of them
    same_group: Tensor | None  # (rows, cols) bool, True where the two may not be negatives; None if all may

    def diagonal(self, matrix: Tensor) -> Tensor:
        """The places of the positives in a matrix of the tile's shape, a view."""
        (top, left), size = self.corner, self.positives.stop - self.positives.start
        return matrix[top : top + size, left : left + size].diagonal() if size else matrix.new_empty(0)


class Tiles:
    """Cuts the logits of every pair into tiles. What is set from outside: `scale`, `shift`, and what is `kept`."""

    def __init__(self, query: Tensor, key: Tensor, comparison: Comparison):
        self.query, self.key, self.comparison = query, key, comparison
        # float32 at least: in bfloat16 exp(1/0.05) is known to 2 digits.
        self.dtype = torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32
        self.n, self.N = query.shape[1], key.shape[1]
        self.own = comparison.own(query)
        self.size = TILES.get(query.device.type, TILES["other"])
        self.strip = STRIPS.get(query.device.type, STRIPS["other"])
        self.gaps = (True, True)  # whether anything is absent, among queries and among keys
        self.scale = 1.0  # what products are multiplied by
        self.shift = 0.0  # subtracted from all logits
        self.reach = math.inf  # no exponent is larger, either sign
        self.kept: list[Tensor] = []  # the first tiles, if they need not be made again
        self.room = 0  # bytes that more of them may take

    def zeros(self, samples: int) -> Tensor:
        """(T, samples) float64 for sums over samples: 100,000 terms in float32 would lose digits."""
        return torch.zeros(len(self.comparison.pairs), samples, dtype=torch.float64, device=self.query.device)

    def buffer(self, rows: int) -> Tensor:
        """Room for this many rows of a tile."""
        rows, cols = min(self.n, self.size[0], rows), min(self.N, self.size[1])
        return torch.empty(rows * cols, dtype=self.dtype, device=self.query.device)

    def some(self, x: Tensor, present: Tensor, gaps: bool) -> Tensor:
        """Rows in the numbers we compute with, zeros where absent: an absent row may be NaN, and 0 * NaN is NaN."""
        x = x.to(self.dtype)
        return torch.where(present[:, None], x, 0) if gaps else x

    def queries(self, one: int, rows: slice) -> Tensor:
        """(rows, D) of the rank's own queries."""
        return self.some(self.query[one, rows], self.comparison.present()[0][one, self.own][rows], self.gaps[0])

    def keys(self, other: int, cols: slice) -> Tensor:
        """(cols, D) keys."""
        return self.some(self.key[other, cols], self.comparison.present()[1][other, cols], self.gaps[1])

    def longest(self, x: Tensor, present: Tensor) -> Tensor:
        """() float64: the length of the longest row that is there."""
        most = []
        for rows in cut(x.shape[1], self.size[1]):
            lengths = torch.linalg.vector_norm(x[:, rows], dim=2, dtype=self.dtype)
            most.append(torch.where(present[:, rows], lengths, 0).amax())
        return torch.stack(most).amax().double() if most else x.new_zeros((), dtype=torch.float64)

    def inner(self, other: Tensor) -> Tensor:
        """() float64: the sum of query * other over everything that is present."""
        total = other.new_zeros((), dtype=torch.float64)
        for one in range(len(self.query)):
            for rows in cut(self.n, self.size[1]):
                total += (self.queries(one, rows) * other[one, rows]).sum()
        return total

    def __iter__(self) -> Iterator[Tile]:
        shift = self.query.new_full((1,), -self.shift, dtype=self.dtype)
        kept, number = len(self.kept), 0
        buffer: Tensor | None = None
        for term, (one, other) in enumerate(self.comparison.pairs):
            for rows in cut(self.n, self.size[0]):
                q = self.queries(one, rows)
                for cols in cut(self.N, self.size[1]):
                    k = self.keys(other, cols)
                    if number < kept:
                        s = self.kept[number]
                    else:
                        place = self.place(len(q), len(k))
                        if place is None:
                            buffer = self.buffer(self.n) if buffer is None else buffer
                            place = buffer[: len(q) * len(k)].view(len(q), len(k))
                        s = place
                        beta = 1.0 if self.shift else 0.0  # 0: the shift is not even read
                        torch.addmm(shift, q, k.mT, beta=beta, alpha=self.scale, out=s)
                    first = self.comparison.first
                    start = max(rows.start, cols.start - first)
                    stop = max(start, min(rows.stop, cols.stop - first))
                    corner = start - rows.start, start + first - cols.start
                    same_group = None  # exponentials that were kept are 0 there already
                    if number >= kept:
                        same_group = self.comparison.same_group(slice(first + rows.start, first + rows.stop), cols)
                    yield Tile(term, rows, cols, q, k, s, number < kept, slice(start, stop), corner, same_group)
                    number += 1

    def place(self, rows: int, cols: int) -> Tensor | None:
        """New memory for a tile that will be kept, as long as there is room."""
        size = rows * cols * self.dtype.itemsize
        if size > self.room:
            self.room = 0  # those that are kept are the first ones, without a hole
            return None
        self.room -= size
        self.kept.append(torch.empty(rows, cols, dtype=self.dtype, device=self.query.device))
        return self.kept[-1]


def cut(samples: int, size: int) -> Iterator[slice]:
    """Slices of at most this size that cover all samples."""
    return (slice(start, min(start + size, samples)) for start in range(0, samples, size))
