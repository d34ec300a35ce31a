"""InfoNCE of small batches: the matrices of all pairs in one batched product, their exponentials kept.

The same numbers as tiled_infonce, by its formulas, with a fifth of the calls: below some hundred samples a call costs
more than what it computes. Which of the two is taken depends on the size of the whole batch and on the largest logit
of all ranks, so several ranks and one process always take the same one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from centrobind.objectives.comparison import ALONE, LARGEST, LOG2E, MODEST, NEGLIGIBLE, Comparison, exactly

# Entries of all pairs' matrices up to which they are made at once. Measured on a CPU with 1 to 12 pairs of 64 and 256
# dimensions: above, the matrices leave the caches and tiles are as fast.
WHOLE = 2**19


def batched_infonce(query: Tensor, key: Tensor, temperature: Tensor, comparison: Comparison) -> Tensor | None:
    """What tiled_infonce returns; None, on all ranks, where one exponential cannot hold every logit."""
    with torch.no_grad(), exactly(query):
        matrices = _Matrices.of(query, key, temperature, comparison)
    if not matrices.reach <= LARGEST[matrices.e.dtype]:  # written so that a NaN is too much
        return None
    means: Tensor = _BatchedInfoNCE.apply(query, key, temperature, matrices)  # type: ignore[no-untyped-call]
    return means


@dataclass
class _Matrices:
    """exp(logits) of all pairs, (T, n, N), and what they were made of."""

    comparison: Comparison
    q: Tensor  # (T, n, D), zeros where absent
    k: Tensor  # (T, N, D), zeros where absent
    e: Tensor
    match: Tensor  # (T, n) logits of the positives, as exponents of 2
    reach: float  # no exponent is larger on any rank, either sign

    @classmethod
    def of(cls, query: Tensor, key: Tensor, temperature: Tensor, comparison: Comparison) -> _Matrices:
        # float32 at least: in bfloat16 exp(1/0.05) is known to 2 digits.
        dtype = torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32
        one, other = zip(*comparison.pairs)
        own = comparison.own(query)
        q = _picked(_there(query, comparison.query_present, own).to(dtype), one)
        k = _picked(_there(key, comparison.key_present).to(dtype), other)
        e = torch.bmm(q * (LOG2E / temperature.to(dtype)), k.mT)  # exponents of 2
        match = e.diagonal(comparison.first, 1, 2).clone()
        e.exp2_()
        low, high = torch.stack(e.aminmax()).tolist() if e.numel() else (1.0, 1.0)
        reach = max(math.log(high), -math.log(low)) if 0 < low <= high < math.inf else math.inf
        if comparison.ranks is not ALONE:
            reach = float(comparison.ranks.max(e.new_full((), reach, dtype=torch.float64)))
        if (same_group := comparison.same_group(own)) is not None:
            e.masked_fill_(same_group, 0)
        return cls(comparison, q, k, e, match, reach)

    def sums(self, own: slice) -> tuple[Tensor, Tensor]:
        """Over the columns that are present, (T, n), and over this rank's rows, (T, N)."""
        has_query, has_key = self.comparison.query_present, self.comparison.key_present
        if has_query is None or has_key is None:
            return self.e.sum(2), self.e.sum(1)
        one, other = zip(*self.comparison.pairs)
        has_query = _picked(has_query[:, own], one).to(self.e.dtype)
        has_key = _picked(has_key, other).to(self.e.dtype)
        return torch.bmm(self.e, has_key[..., None]).squeeze(2), torch.bmm(has_query[:, None], self.e).squeeze(1)


class _BatchedInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, temperature: Tensor, matrices: _Matrices) -> Tensor:
        comparison, e = matrices.comparison, matrices.e
        own = comparison.own(query)
        with exactly(query):
            ahead, back = matrices.sums(own)
        if comparison.ranks is not ALONE:
            back = comparison.ranks.sum(back.double())
        back = back.to(e.dtype)
        losses = torch.stack([ahead, back[:, own]]).double().log2_().sub_(matrices.match)
        if not comparison.complete:
            # Select, never multiply: a row without candidates is -inf, and 0 * inf is NaN.
            losses = torch.where(comparison.both()[:, own], losses, 0)
        ctx.save_for_backward(query, key, temperature, matrices.q, matrices.k, e, ahead, back)
        ctx.comparison, ctx.reach = comparison, matrices.reach
        return losses.sum(2).div_(LOG2E).div_(comparison.count).to(e.dtype)

    @staticmethod
    def backward(ctx: Any, d_means: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        query, key, temperature, q, k, e, ahead, back = ctx.saved_tensors
        comparison = ctx.comparison
        if torch.is_grad_enabled():  # create_graph=True: what follows would be a constant to autograd
            return *comparison.dense_gradients(query, key, temperature, d_means), None
        needs_query, needs_key, needs_temperature, _ = ctx.needs_input_grad
        own = comparison.own(query)
        d_query = d_key = d_temperature = None
        with exactly(query):
            slope = _slopes(ctx, e, ahead, back, d_means / temperature.to(e.dtype) / comparison.count, own)
            one, other = zip(*comparison.pairs)
            if needs_query or needs_temperature:
                d_q = torch.bmm(slope, k)
                if needs_query:
                    d_query = _there(_put_back(d_q, one, query), comparison.query_present, own)
                if needs_temperature:
                    d_temperature = (d_q * q).sum(dtype=torch.float64).neg().div(temperature).to(temperature.dtype)
            if needs_key:
                d_key = _there(_put_back(torch.bmm(slope.mT, q), other, key), comparison.key_present)
        return d_query, d_key, d_temperature, None


def _slopes(ctx: Any, e: Tensor, ahead: Tensor, back: Tensor, d_sums: Tensor, own: slice) -> Tensor:
    """(T, n, N): the derivative of the loss by the logits, over the temperature."""
    d_ahead, d_back = d_sums[:, :, None].to(e.dtype)
    a, b, positive = d_ahead / ahead, d_back / back, d_ahead + d_back
    if not ctx.comparison.complete:
        both = ctx.comparison.both()
        b = torch.where(both, b, 0)
        a, positive = (torch.where(both[:, own], x, 0) for x in (a, positive))
    slope = torch.add(a[:, :, None], b[:, None, :]).mul_(e)
    if ctx.reach > MODEST:  # slopes may be subnormal numbers
        most = (d_ahead.abs() + d_back.abs()).max() * math.exp(NEGLIGIBLE)
        torch.hardshrink(slope, float(most), out=slope)
    slope.diagonal(ctx.comparison.first, 1, 2).sub_(positive)
    return slope


def _there(x: Tensor, present: Tensor | None, rows: slice = slice(None)) -> Tensor:
    """Zeros where absent. Select, never multiply: an absent row may be NaN, and 0 * NaN is NaN."""
    return x if present is None else torch.where(present[:, rows, None], x, 0)


def _picked(x: Tensor, which: Sequence[int]) -> Tensor:
    """Those of x, without a copy where they are neighbours."""
    if which == tuple(range(which[0], which[0] + len(which))):
        return x[which[0] : which[0] + len(which)]
    return x[list(which)]


def _put_back(d: Tensor, which: Sequence[int], like: Tensor) -> Tensor:
    """The gradient of what was picked, by what it was picked from."""
    if which == tuple(range(len(like))):
        return d.to(like.dtype)
    whole = d.new_zeros(like.shape)
    if which == tuple(range(which[0], which[0] + len(which))):
        whole[which[0] : which[0] + len(which)] = d
    else:
        whole.index_add_(0, torch.tensor(which, device=d.device), d)
    return whole.to(like.dtype)
