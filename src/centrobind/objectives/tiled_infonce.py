"""InfoNCE without its matrix: the N x N logits exist only as tiles, in the forward and again in the backward pass.

What is held beyond inputs and gradients is a tile and a few numbers per sample. A tile is one multiplication and, for
both directions at once, one exponential: with E_ij = exp(s_ij - shift), s_ij = q_i . k_j / temperature,

    ahead_i = log sum_j E_ij,  back_j = log sum_i E_ij,  d loss / d s_ij = E_ij (a_i exp(-ahead_i) + b_j exp(-back_j))

and the positives s_ii apart. One `shift` for all keeps E inside the numbers' range when no |s_ij| exceeds twice its
exponents; whether every sum was large enough to be exact is checked afterwards. Where that fails (temperatures below
0.01, or unlucky ones near it) the careful form takes one exponential per direction, each with its own maximum. Exact in
both: equal to the dense form to the rounding of the numbers. The recomputation costs 8 M N^2 D operations instead of 6.

Several ranks. Each holds some rows of the matrix, all columns, and calls fused_infonce with

    query (M, n, D)            its own samples            first   the column of its row 0
    key (M, N, D)              everybody's, gathered      ranks   an object with sum(tensor) and max(tensor)
    query_present, key_present (M, N), everybody's

`ranks.sum` and `ranks.max` return the elementwise sum and maximum over all ranks (an all_reduce, which may work in
place). They are called in the forward pass only, outside autograd, in the same order with the same shapes on every
rank, T pairs: max of a () tensor, then sum of (T, N) and max of (), then, in the careful form, max and sum of (T, N);
all float64. A rank returns the sums over its own samples; added over ranks they are what one rank would return for
all. The backward pass does not communicate. It gives the gradient of that total, if all ranks differentiate the same
function of what they return (they do, when each divides by the global count): complete for the rank's own queries,
and its rows' part for ALL keys and for the temperature, still to be summed over ranks (reduce-scatter what came from
an all-gather; all-reduce the temperature's). Nothing of size n x N is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from centrobind.errors import RunError
from centrobind.objectives.dense_infonce import dense_gradients

# Rows and columns of a tile. On a CPU a tile should stay in the second-level caches: measured best of 256 to 4096 each
# on 2 cores with 2 MB. On a GPU a tile should fill the device and be few; not measured.
TILES = {"cpu": (1024, 1024), "other": (4096, 4096)}

# Rows of a tile that the backward pass works on at a time between its multiplications. A tile fits the second-level
# caches, but not with its weights beside it: strips of 256 take a quarter less time than whole tiles. The forward pass,
# with nothing beside its tile, gains nothing.
STRIPS = {"cpu": 256, "other": 4096}

# Exponents that E may reach, either sign. float32 ends at 88: the rest is for sums over N, and for products with the
# gradients that come in. Terms that underflow are below exp(-87 + 55) = 1e-14 of the sum they are missing from.
LARGEST = {torch.float32: 55.0, torch.float64: 550.0}

# Slopes this much smaller than a softmax of 1 become 0; a sum of a million of them is still below its rounding. Without
# it, at low temperatures most slopes are subnormal numbers, which CPUs multiply up to 60 times slower. Only where
# logits reach beyond MODEST can they be: it is one more pass over the tile.
NEGLIGIBLE, MODEST = -60.0, 30.0  # exponents


class Ranks(Protocol):
    """Those who share the rows of the matrix; see the module's text."""

    def sum(self, x: Tensor) -> Tensor:
        """The elementwise sum of every rank's x, the same on all ranks."""

    def max(self, x: Tensor) -> Tensor:
        """The elementwise maximum of every rank's x, the same on all ranks."""


class OneRank:
    """Nobody to share with."""

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x


ALONE = OneRank()


def fused_infonce(
    query: Tensor,
    key: Tensor,
    query_present: Tensor,
    key_present: Tensor,
    temperature: Tensor,
    *,
    pairs: Sequence[tuple[int, int]],
    groups: Tensor | None = None,
    first: int = 0,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """The sums over positives of -log softmax, (T,) each way, one for each of the T pairs.

    `pairs`: which modality of (M, n, D) `query` meets which of (K, N, D) `key`; neither is copied. `present` are (M, N)
    and (K, N) bool, absent rows may hold anything. `groups`: (N,) integers; samples of one group are no negatives of
    each other. `first`, `ranks`: see the module's text; alone, n = N. Differentiable in queries, keys and
    temperature. Half precision is brought to float32 tile by tile; sums over samples are float64.
    """
    work = _Work(query_present, key_present, tuple(pairs), groups, first, ranks)
    return _FusedInfoNCE.apply(query, key, temperature, work)


@dataclass(frozen=True)
class _Work:
    """What is compared with what; everything but the numbers that have gradients."""

    query_present: Tensor
    key_present: Tensor
    pairs: tuple[tuple[int, int], ...]
    groups: Tensor | None
    first: int
    ranks: Ranks

    def both(self) -> Tensor:
        """(T, N) bool: where there is a positive."""
        return torch.stack([self.query_present[one] & self.key_present[other] for one, other in self.pairs])

    def dense_gradients(
        self, query: Tensor, key: Tensor, temperature: Tensor, d_sums: tuple[Tensor, Tensor]
    ) -> list[Tensor | None]:
        """The gradients, with a graph of their own; RunError where another rank holds rows of the matrix."""
        if self.ranks is not ALONE:
            raise RunError(
                "second derivatives (create_graph=True) of a loss that several ranks share are not known: expected a "
                "backward pass without create_graph; compute a gradient penalty on one process"
            )
        present = self.query_present, self.key_present
        return dense_gradients(query, key, *present, temperature, d_sums, pairs=self.pairs, groups=self.groups)


class _Tile(NamedTuple):
    term: int
    rows: slice  # of the rank's own
    cols: slice
    q: Tensor  # (rows, D), zeros where absent
    k: Tensor  # (cols, D), zeros where absent
    s: Tensor  # (rows, cols) logits, in a buffer that the next tile overwrites
    positives: slice  # the rows whose positive is in this tile
    diagonal: Tensor  # their places in s, a view
    strangers: Tensor | None  # (rows, cols) bool, True where the two may not be negatives; None if all may


class _FusedInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, temperature, work):
        with torch.autocast(query.device.type, enabled=False):
            tiles = _Tiles(query, key, float(temperature), work)
            largest = LARGEST[tiles.dtype]
            reach = work.ranks.max(tiles.longest(query, work.query_present)) * tiles.longest(key, work.key_present)
            reach = float(reach) / abs(tiles.temperature)
            found = None
            if reach <= 2 * largest:
                tiles.shift = max(0.0, reach - largest)
                found = _sums_one_exponential(tiles)
            careful = found is None
            if careful:
                tiles.shift = 0.0
                found = _sums_careful(tiles)
            ahead, back, match = found
        ctx.save_for_backward(query, key, temperature, ahead, back)
        ctx.work, ctx.shift, ctx.careful, ctx.reach = work, tiles.shift, careful, reach
        both, own = tiles.both[:, tiles.own], back[:, tiles.own]
        # Select, never multiply: a row without candidates is -inf, and 0 * inf is NaN.
        sums = (torch.where(both, lse - match, 0).sum(1).to(tiles.dtype) for lse in (ahead, own))
        return tuple(sums)

    @staticmethod
    def backward(ctx, d_ahead, d_back):
        query, key, temperature, ahead, back = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: what follows would be a constant to autograd
            return *ctx.work.dense_gradients(query, key, temperature, (d_ahead, d_back)), None
        needs_query, needs_key, needs_temperature, _ = ctx.needs_input_grad
        with torch.autocast(query.device.type, enabled=False):
            tiles = _Tiles(query, key, float(temperature), ctx.work)
            tiles.shift, tiles.reach = ctx.shift, ctx.reach
            d_query = query.new_zeros(query.shape, dtype=tiles.dtype) if needs_query or needs_temperature else None
            d_key = key.new_zeros(key.shape, dtype=tiles.dtype) if needs_key else None
            slopes = _slopes_careful if ctx.careful else _slopes_one_exponential
            scale = 1 / tiles.temperature
            for tile, slope in slopes(tiles, ahead, back, d_ahead.double(), d_back.double()):
                one, other = ctx.work.pairs[tile.term]
                if d_query is not None:
                    d_query[one, tile.rows].addmm_(slope, tile.k, alpha=scale)
                if d_key is not None:
                    d_key[other, tile.cols].addmm_(slope.mT, tile.q, alpha=scale)
            d_temperature = None
            if d_query is not None:
                if tiles.gaps[0]:
                    d_query.masked_fill_(~ctx.work.query_present[:, tiles.own, None], 0)
                if needs_temperature:
                    d_temperature = tiles.inner(d_query).mul_(-scale).to(temperature.dtype).view(temperature.shape)
            if d_key is not None and tiles.gaps[1]:
                d_key.masked_fill_(~ctx.work.key_present[..., None], 0)
        return (
            d_query.to(query.dtype) if needs_query else None,
            d_key.to(key.dtype) if needs_key else None,
            d_temperature,
            None,
        )


class _Tiles:
    """Cuts the logits of every pair into tiles, and makes them one at a time."""

    def __init__(self, query: Tensor, key: Tensor, temperature: float, work: _Work):
        self.query, self.key, self.temperature, self.work = query, key, temperature, work
        self.shift = 0.0  # subtracted from all logits
        self.reach = math.inf  # no logit is larger, either sign
        # float32 at least: in bfloat16 exp(1/0.05) is known to 2 digits.
        self.dtype = torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32
        self.n, self.N = query.shape[1], key.shape[1]
        self.own = slice(work.first, work.first + self.n)
        self.size = TILES.get(query.device.type, TILES["other"])
        self.strip = STRIPS.get(query.device.type, STRIPS["other"])
        self.both = work.both()
        # Usually nothing is absent, and then no row needs to be looked at again.
        self.gaps = [not bool(present.all()) for present in (work.query_present, work.key_present)]

    def zeros(self, samples: int) -> Tensor:
        """(T, samples) float64 for sums over samples: 100,000 terms in float32 would lose digits."""
        return torch.zeros(len(self.work.pairs), samples, dtype=torch.float64, device=self.query.device)

    def buffer(self, rows: int) -> Tensor:
        """Room for so many rows of a tile."""
        rows, cols = min(self.n, self.size[0], rows), min(self.N, self.size[1])
        return torch.empty(rows * cols, dtype=self.dtype, device=self.query.device)

    def some(self, x: Tensor, present: Tensor, gaps: bool) -> Tensor:
        """Rows in the numbers we compute with, zeros where absent: an absent row may be NaN, and 0 * NaN is NaN."""
        x = x.to(self.dtype)
        return torch.where(present[:, None], x, 0) if gaps else x

    def queries(self, one: int, rows: slice) -> Tensor:
        there = self.work.query_present[one, self.own][rows]
        return self.some(self.query[one, rows], there, self.gaps[0])

    def keys(self, other: int, cols: slice) -> Tensor:
        return self.some(self.key[other, cols], self.work.key_present[other, cols], self.gaps[1])

    def longest(self, x: Tensor, present: Tensor) -> Tensor:
        """() float64: the length of the longest row that is there."""
        present = present[:, self.own] if x is self.query else present
        most = x.new_zeros((), dtype=torch.float64)
        for rows in cut(x.shape[1], self.size[1]):
            lengths = x[:, rows].to(self.dtype).norm(dim=2).double()
            most = torch.maximum(most, torch.where(present[:, rows], lengths, 0).max())
        return most

    def inner(self, other: Tensor) -> Tensor:
        """() float64: the sum of query * other over everything that is present."""
        total = other.new_zeros((), dtype=torch.float64)
        for one in range(len(self.query)):
            for rows in cut(self.n, self.size[1]):
                total += (self.queries(one, rows) * other[one, rows]).sum()
        return total

    def __iter__(self) -> Iterator[_Tile]:
        logits = self.buffer(self.n)
        shift = logits.new_full((1,), -self.shift)
        groups = self.work.groups
        for term, (one, other) in enumerate(self.work.pairs):
            for rows in cut(self.n, self.size[0]):
                q = self.queries(one, rows)
                for cols in cut(self.N, self.size[1]):
                    k = self.keys(other, cols)
                    s = logits[: len(q) * len(k)].view(len(q), len(k))
                    beta = 1.0 if self.shift else 0.0  # 0: the shift is not even read
                    torch.addmm(shift, q, k.mT, beta=beta, alpha=1 / self.temperature, out=s)
                    start = max(rows.start, cols.start - self.work.first)
                    stop = max(start, min(rows.stop, cols.stop - self.work.first))
                    positives = slice(start, stop)
                    top, left = start - rows.start, start + self.work.first - cols.start
                    size = stop - start
                    diagonal = s[top : top + size, left : left + size].diagonal() if size else s.new_empty(0)
                    kin = None
                    if groups is not None:
                        kin = groups[self.own][rows, None] == groups[cols]
                        if size:
                            kin[top : top + size, left : left + size].fill_diagonal_(False)
                    yield _Tile(term, rows, cols, q, k, s, positives, diagonal, kin)


def _sums_one_exponential(tiles: _Tiles) -> tuple[Tensor, Tensor, Tensor] | None:
    """log sums over columns (T, n) and over all ranks' rows (T, N), and positives (T, n); all less the shift.

    None if a sum came out too small to be exact, on any rank.
    """
    work = tiles.work
    ahead, back, match = tiles.zeros(tiles.n), tiles.zeros(tiles.N), tiles.zeros(tiles.n)
    has_query, has_key = work.query_present[:, tiles.own].to(tiles.dtype), work.key_present.to(tiles.dtype)
    for tile in tiles:
        one, other = work.pairs[tile.term]
        match[tile.term, tile.positives] = tile.diagonal.double()
        e = tile.s.exp_()
        if tile.strangers is not None:
            e.masked_fill_(tile.strangers, 0)
        ahead[tile.term, tile.rows] += e @ has_key[other, tile.cols]
        back[tile.term, tile.cols] += has_query[one, tile.rows] @ e
    ahead, back = ahead.log_(), work.ranks.sum(back).log_()
    too_small = ((ahead < -LARGEST[tiles.dtype]) & tiles.both[:, tiles.own]).any()
    too_small = too_small | ((back < -LARGEST[tiles.dtype]) & tiles.both).any()
    failed = float(work.ranks.max(too_small.double()))
    return None if failed else (ahead, back, match)


def _sums_careful(tiles: _Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """The same for logits of any size."""
    work = tiles.work
    match = tiles.zeros(tiles.n)
    ahead, back = tiles.zeros(tiles.n) - torch.inf, tiles.zeros(tiles.N) - torch.inf
    for tile in tiles:
        match[tile.term, tile.positives] = tile.diagonal.double()
        s = _leave_out(tile, work)
        for sums, place, over in ((ahead, tile.rows, 1), (back, tile.cols, 0)):
            sums[tile.term, place] = torch.logaddexp(sums[tile.term, place], s.logsumexp(over).double())
    top = work.ranks.max(back.clone())
    top = torch.where(top.isfinite(), top, 0)
    return ahead, work.ranks.sum((back - top).exp_()).log_().add_(top), match


def _slopes_one_exponential(
    tiles: _Tiles, ahead: Tensor, back: Tensor, d_ahead: Tensor, d_back: Tensor
) -> Iterator[tuple[_Tile, Tensor]]:
    """Tiles, each with the derivative of the loss by its logits. Rows that are absent get anything that is finite."""
    both = tiles.both
    a = torch.where(both[:, tiles.own], d_ahead[:, None] * (-ahead).exp(), 0).to(tiles.dtype)
    b = torch.where(both, d_back[:, None] * (-back).exp(), 0).to(tiles.dtype)
    positive = (both[:, tiles.own] * (d_ahead + d_back)[:, None]).to(tiles.dtype)
    weights = tiles.buffer(tiles.strip)
    negligible = ((d_ahead.abs() + d_back.abs()) * math.exp(NEGLIGIBLE)).tolist()
    for tile in tiles:
        a_here, b_here = a[tile.term, tile.rows, None], b[tile.term, tile.cols]
        for rows in cut(len(tile.s), tiles.strip):
            e = tile.s[rows].exp_()
            e.mul_(torch.add(a_here[rows], b_here, out=weights[: e.numel()].view(e.shape)))
            if tiles.reach > MODEST:
                torch.hardshrink(e, negligible[tile.term], out=e)
            if tile.strangers is not None:
                e.masked_fill_(tile.strangers[rows], 0)
        tile.diagonal.sub_(positive[tile.term, tile.positives])
        yield tile, tile.s


def _slopes_careful(
    tiles: _Tiles, ahead: Tensor, back: Tensor, d_ahead: Tensor, d_back: Tensor
) -> Iterator[tuple[_Tile, Tensor]]:
    """The same for logits of any size: exp(s - log sum) is at most 1, whatever s is."""
    both = tiles.both
    # A sum nobody asks for becomes infinite, so that its whole row is exp(-inf) = 0.
    ahead = torch.where(both[:, tiles.own], ahead, torch.inf).to(tiles.dtype)
    back = torch.where(both, back, torch.inf).to(tiles.dtype)
    d_ahead, d_back = d_ahead.to(tiles.dtype), d_back.to(tiles.dtype)
    positive = both[:, tiles.own].to(tiles.dtype) * (d_ahead + d_back)[:, None]
    buffer = tiles.buffer(tiles.strip)
    for tile in tiles:
        _leave_out(tile, tiles.work)
        ahead_here, back_here = ahead[tile.term, tile.rows, None], back[tile.term, tile.cols]
        for rows in cut(len(tile.s), tiles.strip):
            s = tile.s[rows]
            e = torch.sub(s, ahead_here[rows], out=buffer[: s.numel()].view(s.shape))
            for exponents in (e, s.sub_(back_here)):
                torch.threshold_(exponents, NEGLIGIBLE, -torch.inf).exp_()
            s.mul_(d_back[tile.term]).add_(e.mul_(d_ahead[tile.term]))
        tile.diagonal.sub_(positive[tile.term, tile.positives])
        yield tile, tile.s


def _leave_out(tile: _Tile, work: _Work) -> Tensor:
    """The tile's logits, -inf where either is absent or the two may not be negatives."""
    one, other = work.pairs[tile.term]
    there = slice(work.first + tile.rows.start, work.first + tile.rows.stop)
    tile.s.masked_fill_(~work.query_present[one, there, None], -torch.inf)
    tile.s.masked_fill_(~work.key_present[other, tile.cols], -torch.inf)
    return tile.s if tile.strangers is None else tile.s.masked_fill_(tile.strangers, -torch.inf)


def cut(samples: int, size: int) -> Iterator[slice]:
    """Slices that cover so many samples."""
    return (slice(start, min(start + size, samples)) for start in range(0, samples, size))
