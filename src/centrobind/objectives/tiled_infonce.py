"""InfoNCE without its matrix: the N x N logits exist only as tiles, in the forward and again in the backward pass.

What is held beyond inputs and gradients is a tile, a few numbers per sample, and as many tiles as `memory` has room
for. A tile is one multiplication and, for both directions at once, one exponential: with E_ij = exp(s_ij - shift),
s_ij = q_i . k_j / temperature,

    ahead_i = log sum_j E_ij,  back_j = log sum_i E_ij,  d loss / d s_ij = E_ij (a_i exp(-ahead_i) + b_j exp(-back_j))

and the positives s_ii apart. One `shift` for all keeps E inside the numbers' range when no |s_ij| exceeds twice its
exponents; where it is needed at all, whether every sum was large enough to be exact is checked afterwards. Where that
fails (temperatures below 0.01, or unlucky ones near it) the careful form takes one exponential per direction, each with
its own maximum. Exact in both: equal to the dense form to the rounding of the numbers.

Exponentials that are kept from the forward pass cost 6 M N^2 D operations, those that are made again 8 M N^2 D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from centrobind.objectives.comparison import LARGEST, LOG2E, MODEST, NEGLIGIBLE, Comparison, exactly
from centrobind.objectives.tiles import Tile, Tiles, cut


def tiled_infonce(query: Tensor, key: Tensor, temperature: Tensor, comparison: Comparison) -> Tensor:
    """The means over positives of -log softmax, (2, T): each way, one for each pair; 0 where there is no positive.

    Differentiable in queries, keys and temperature. Half precision is brought to float32 tile by tile; sums over
    samples are float64.
    """
    comparison = comparison.with_presence(query, key)
    means: Tensor = _TiledInfoNCE.apply(query, key, temperature, comparison)  # type: ignore[no-untyped-call]
    return means


class _TiledInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, temperature: Tensor, comparison: Comparison) -> Tensor:
        ctx.given = comparison
        keys, comparison = comparison.of_one_key(key)
        with exactly(query):
            tiles = Tiles(query, keys, comparison)
            divisor = _measure(tiles, temperature)
            sums = None
            if tiles.reach <= 2 * LARGEST[tiles.dtype]:
                tiles.room = comparison.memory if any(ctx.needs_input_grad) else 0
                sums = _sums_one_exponential(tiles, divisor)
            careful = sums is None
            if sums is None:
                tiles.kept, tiles.room = [], 0
                sums = _sums_careful(tiles, divisor)
            ahead, back, match = sums
            losses = torch.stack([ahead, back[:, tiles.own]]) - match
            if any(tiles.gaps):
                # Select, never multiply: a row without candidates is -inf, and 0 * inf is NaN.
                losses = torch.where(comparison.both()[:, tiles.own], losses, 0)
        ctx.save_for_backward(query, key, temperature, ahead, back, *tiles.kept)
        ctx.comparison, ctx.keys, ctx.careful, ctx.divisor = comparison, len(keys), careful, divisor
        ctx.scale, ctx.shift, ctx.reach, ctx.gaps = tiles.scale, tiles.shift, tiles.reach, tiles.gaps
        return (losses.sum(2) / comparison.count).to(tiles.dtype)

    @staticmethod
    def backward(ctx: Any, d_means: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        query, key, temperature, ahead, back, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: what follows would be a constant to autograd
            return *ctx.given.dense_gradients(query, key, temperature, d_means), None
        needs_query, needs_key, needs_temperature, _ = ctx.needs_input_grad
        keys = key[: ctx.keys]
        with exactly(query):
            tiles = Tiles(query, keys, ctx.comparison)
            tiles.scale, tiles.shift, tiles.reach, tiles.gaps = ctx.scale, ctx.shift, ctx.reach, ctx.gaps
            tiles.kept = kept
            d_query = query.new_zeros(query.shape, dtype=tiles.dtype) if needs_query or needs_temperature else None
            d_key = keys.new_zeros(keys.shape, dtype=tiles.dtype) if needs_key else None
            slopes = _slopes_careful if ctx.careful else _slopes_one_exponential
            for tile, slope in slopes(tiles, ahead, back, *(d_means.double() / ctx.comparison.count)):
                one, other = ctx.comparison.pairs[tile.term]
                if d_query is not None:
                    d_query[one, tile.rows].addmm_(slope, tile.k, alpha=1 / ctx.divisor)
                if d_key is not None:
                    d_key[other, tile.cols].addmm_(slope.mT, tile.q, alpha=1 / ctx.divisor)
            d_temperature = None
            if d_query is not None:
                if tiles.gaps[0]:
                    d_query.masked_fill_(~ctx.comparison.present()[0][:, tiles.own, None], 0)
                if needs_temperature:
                    d_temperature = tiles.inner(d_query).mul_(-1 / ctx.divisor).to(temperature.dtype)
            if d_key is not None and tiles.gaps[1]:
                d_key.masked_fill_(~ctx.comparison.present()[1][..., None], 0)
            if d_key is not None and len(keys) < len(key):
                d_key = d_key.div_(len(key)).expand(key.shape)  # what they add up to is all that matters
        return (
            d_query.to(query.dtype) if d_query is not None and needs_query else None,
            d_key.to(key.dtype) if d_key is not None else None,
            d_temperature if d_temperature is None else d_temperature.view(temperature.shape),
            None,
        )


def _measure(tiles: Tiles, temperature: Tensor) -> float:
    """The temperature, and what the tiles should know of their inputs, read from the device at once."""
    comparison = tiles.comparison
    present = comparison.present()
    reach = comparison.ranks.max(tiles.longest(tiles.query, present[0][:, tiles.own]))
    reach = reach * tiles.longest(tiles.key, present[1])
    facts = [reach, temperature.detach().reshape(()).double(), *(there.all().double() for there in present)]
    longest, divisor, *complete = (float(fact) for fact in torch.stack(facts).tolist())
    tiles.reach = longest / abs(divisor) if divisor else math.inf
    tiles.gaps = (not complete[0], not complete[1])
    return divisor


def _sums_one_exponential(tiles: Tiles, divisor: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """log sums over columns (T, n) and over all ranks' rows (T, N), and positives (T, n); all less the shift.

    None if a sum came out too small to be exact, on any rank.
    """
    comparison, largest = tiles.comparison, LARGEST[tiles.dtype]
    shift = max(0.0, tiles.reach - largest)
    tiles.scale, tiles.shift = LOG2E / divisor, LOG2E * shift
    ahead, back, match = tiles.zeros(tiles.n), tiles.zeros(tiles.N), tiles.zeros(tiles.n)
    has_query, has_key = (there.to(tiles.dtype) for there in comparison.present())
    has_query = has_query[:, tiles.own]
    for tile in tiles:
        one, other = comparison.pairs[tile.term]
        match[tile.term, tile.positives] = tile.diagonal(tile.s)
        e = tile.s.exp2_()
        if tile.same_group is not None:
            e.masked_fill_(tile.same_group, 0)
        ahead[tile.term, tile.rows].add_(e @ has_key[other, tile.cols] if tiles.gaps[1] else e.sum(1))
        back[tile.term, tile.cols].add_(has_query[one, tile.rows] @ e)
    ahead, back = ahead.log_(), comparison.ranks.sum(back).log_()
    if tiles.reach > largest:  # else every candidate counts exp(-largest) at least
        both = comparison.both()
        too_small = ((ahead < -largest) & both[:, tiles.own]).any() | ((back < -largest) & both).any()
        if comparison.ranks.max(too_small.double()):
            return None
    return ahead, back, match.div_(LOG2E)


def _sums_careful(tiles: Tiles, divisor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same for logits of any size."""
    tiles.scale, tiles.shift = 1 / divisor, 0.0
    ranks, match = tiles.comparison.ranks, tiles.zeros(tiles.n)
    ahead, back = tiles.zeros(tiles.n) - torch.inf, tiles.zeros(tiles.N) - torch.inf
    for tile in tiles:
        match[tile.term, tile.positives] = tile.diagonal(tile.s).double()
        s = _leave_out(tile, tiles.comparison)
        for sums, place, over in ((ahead, tile.rows, 1), (back, tile.cols, 0)):
            sums[tile.term, place] = torch.logaddexp(sums[tile.term, place], s.logsumexp(over).double())
    top = ranks.max(back.clone())
    top = torch.where(top.isfinite(), top, 0)
    return ahead, ranks.sum((back - top).exp_()).log_().add_(top), match


def _slopes_one_exponential(
    tiles: Tiles, ahead: Tensor, back: Tensor, d_ahead: Tensor, d_back: Tensor
) -> Iterator[tuple[Tile, Tensor]]:
    """Tiles, each with the derivative of the loss by its logits. Rows that are absent get anything that is finite."""
    a, b = d_ahead[:, None] * (-ahead).exp(), d_back[:, None] * (-back).exp()
    positive = (d_ahead + d_back)[:, None].expand_as(ahead)
    if any(tiles.gaps):
        both = tiles.comparison.both()
        b = torch.where(both, b, 0)
        a, positive = (torch.where(both[:, tiles.own], x, 0) for x in (a, positive))
    a, b, positive = (x.to(tiles.dtype) for x in (a, b, positive))
    # A tile that was made again is turned into slopes where it is; one that is kept may be asked for a second time.
    room = tiles.buffer(tiles.n if tiles.kept else tiles.strip)
    negligible = ((d_ahead.abs() + d_back.abs()) * math.exp(NEGLIGIBLE)).tolist() if tiles.reach > MODEST else None
    for tile in tiles:
        slope = room[: tile.s.numel()].view(tile.s.shape) if tile.kept else tile.s
        a_here, b_here = a[tile.term, tile.rows, None], b[tile.term, tile.cols]
        for rows in cut(len(tile.s), tiles.strip):
            e, out = tile.s[rows], slope[rows]
            weights = out if tile.kept else room[: e.numel()].view(e.shape)
            torch.add(a_here[rows], b_here, out=weights)
            torch.mul(e if tile.kept else e.exp2_(), weights, out=out)
            if negligible is not None:
                torch.hardshrink(out, negligible[tile.term], out=out)
            if tile.same_group is not None:
                out.masked_fill_(tile.same_group[rows], 0)
        tile.diagonal(slope).sub_(positive[tile.term, tile.positives])
        yield tile, slope


def _slopes_careful(
    tiles: Tiles, ahead: Tensor, back: Tensor, d_ahead: Tensor, d_back: Tensor
) -> Iterator[tuple[Tile, Tensor]]:
    """The same for logits of any size: exp(s - log sum) is at most 1, whatever s is."""
    both = tiles.comparison.both()
    # A sum that no positive needs becomes infinite, so that its whole row is exp(-inf) = 0.
    ahead = torch.where(both[:, tiles.own], ahead, torch.inf).to(tiles.dtype)
    back = torch.where(both, back, torch.inf).to(tiles.dtype)
    d_ahead, d_back = d_ahead.to(tiles.dtype), d_back.to(tiles.dtype)
    positive = both[:, tiles.own].to(tiles.dtype) * (d_ahead + d_back)[:, None]
    buffer = tiles.buffer(tiles.strip)
    for tile in tiles:
        _leave_out(tile, tiles.comparison)
        ahead_here, back_here = ahead[tile.term, tile.rows, None], back[tile.term, tile.cols]
        for rows in cut(len(tile.s), tiles.strip):
            s = tile.s[rows]
            e = torch.sub(s, ahead_here[rows], out=buffer[: s.numel()].view(s.shape))
            for exponents in (e, s.sub_(back_here)):
                torch.threshold_(exponents, NEGLIGIBLE, -torch.inf).exp_()
            s.mul_(d_back[tile.term]).add_(e.mul_(d_ahead[tile.term]))
        tile.diagonal(tile.s).sub_(positive[tile.term, tile.positives])
        yield tile, tile.s


def _leave_out(tile: Tile, comparison: Comparison) -> Tensor:
    """The tile's logits, -inf where either is absent or the two may not be negatives."""
    one, other = comparison.pairs[tile.term]
    there = slice(comparison.first + tile.rows.start, comparison.first + tile.rows.stop)
    queries, keys = comparison.present()
    tile.s.masked_fill_(~queries[one, there, None], -torch.inf)
    tile.s.masked_fill_(~keys[other, tile.cols], -torch.inf)
    return tile.s if tile.same_group is None else tile.s.masked_fill_(tile.same_group, -torch.inf)
