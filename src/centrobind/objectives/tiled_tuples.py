"""InfoNCE between one modality and tuples of the others, its scores made tile by tile, and again in the backward pass.

Whatever scores a candidate against a tuple, only two tiles of scores, their autograd graph and a few numbers per sample
are held: a tile of columns is brought to the form the score needs, then meets the rows. With s_ij the score of
candidate i and tuple j over the temperature, label smoothing e, and all N samples complete,

    to_tuple   = mean_i [ log sum_j exp(s_ij) - (1 - e) s_ii - e mean_j s_ij ],   from_tuple the same of s transposed.

Several ranks divide the rows, as in fused: each scores its own candidates against everybody's tuples, sums over a row
are its own, those over a column are added up over ranks, and the backward pass does not communicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from centrobind.distributed import dividing
from centrobind.errors import RunError
from centrobind.objectives.comparison import Ranks
from centrobind.objectives.dense_infonce import differentiable_gradients
from centrobind.objectives.tiles import cut

TILE = 512  # rows and columns of a tile: a score and its gradient hold about ten of them
# Samples up to which one matrix is left to autograd. Measured with 3 modalities of 256 dimensions on a CPU, tiles take
# up to 2 times as long at 128, 1.0 to 1.5 at 512, and no longer at 1024; but what they spare grows with the square.
DENSE_UP_TO = 128


class Score(Protocol):
    """How candidates are scored against tuples, in two steps, because the first does not depend on the candidate."""

    def tuples(self, others: Tensor) -> Sequence[Tensor]:
        """(M - 1, K, D) -> what `score` wants to know of the K tuples."""

    def score(self, one: Tensor, *tuples: Tensor) -> Tensor:
        """(N, D) candidates -> (N, K) scores."""


def tuple_infonce(
    form: Score,
    one: Tensor,
    other: Tensor,
    temperature: Tensor,
    *,
    smoothing: float = 0.0,
    both_ways: bool = True,
    order: Tensor | None = None,
    match: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean loss in nats of each modality, (M,): candidates among tuples, and tuples among candidates (else zeros).

    `one`, `other`: (M, N, D), every sample complete; candidates are of `one`, tuples of `other`. `order`: (M, M - 1, N)
    integers, for candidates of modality m the samples that make up each column's tuple, when not its own. `match`:
    (M, N) scores of the positives, when not those on the diagonal. `groups`: (N,) integers; a tuple that is all of a
    candidate's group is no negative of it. Differentiable in all but `order` and `groups`; with
    create_graph=True whole (N, N) matrices are held, and where ranks share the rows it is a RunError.
    """
    team = dividing()
    if team.size == 1 and other.shape[1] <= DENSE_UP_TO:
        return _dense(form, one, other, temperature, smoothing, both_ways, order, match, groups)
    mine = team.part(other.shape[1])
    work = _Work(form, other.shape[1], mine.start, smoothing, both_ways, order, team, groups)
    own = None if match is None else match[:, mine]
    forward, backward = team.sum(torch.stack(_Tuples.apply(one[:, mine], other, temperature, own, work)))
    return forward / work.samples, backward / work.samples


def _dense(form, one, other, temperature, smoothing, both_ways, order, match, groups) -> tuple[Tensor, Tensor]:
    """The same by way of whole matrices."""
    ways: tuple[list[Tensor], list[Tensor]] = ([], [])
    target = torch.arange(other.shape[1], device=other.device)
    everything = slice(0, other.shape[1])
    with torch.autocast(other.device.type, enabled=False):
        for m in range(len(one)):
            tuples = form.tuples(
                torch.stack([_wide(other[k, rows]) for k, rows in _members(m, other, everything, order)])
            )
            logits = form.score(_wide(one[m]), *tuples) / temperature
            if match is not None:
                logits = logits.diagonal_scatter(match[m] / temperature)
            kin = kin_of(groups, m, everything, everything, len(one), order)
            ways[0].append(_cross_entropy(logits, target, smoothing, kin))
            kin = None if kin is None else kin.T
            ways[1].append(_cross_entropy(logits.T, target, smoothing, kin) if both_ways else 0 * ways[0][-1])
    return torch.stack(ways[0]), torch.stack(ways[1])


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float, kin: Tensor | None) -> Tensor:
    """The mean over rows; what is `kin` (N, N) is no candidate, and has no share of the smoothing."""
    if kin is None:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    expected = (1 - smoothing) * logits.diagonal()
    expected = expected + smoothing * logits.masked_fill(kin, 0).sum(1) / (~kin).sum(1)
    return (logits.masked_fill(kin, -torch.inf).logsumexp(1) - expected).mean()


def kin_of(
    groups: Tensor | None, m: int, rows: slice, cols: slice, modalities: int, order: Tensor | None = None
) -> Tensor | None:
    """(rows, cols) bool: tuples all of the candidate's group, but for its own, which is the positive; None without."""
    if groups is None:
        return None
    members = [cols] if order is None else [order[m, place, cols] for place in range(modalities - 1)]
    kin = torch.stack([groups[rows, None] == groups[each] for each in members]).all(0)
    places = torch.arange(len(groups), device=groups.device)
    return kin & (places[rows, None] != places[cols])


def _members(m: int, other: Tensor, cols: slice, order: Tensor | None) -> Iterator[tuple[int, slice | Tensor]]:
    """The other modalities, and which samples of each are in the tuples of these columns."""
    for place, k in enumerate(k for k in range(len(other)) if k != m):
        yield k, cols if order is None else order[m, place, cols]


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: in bfloat16 exp(1/0.05) is known to 2 digits."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class _Work:
    """Everything but the numbers that have gradients."""

    form: Score
    samples: int  # N, of all ranks
    first: int  # the column of this rank's row 0
    smoothing: float
    both_ways: bool
    order: Tensor | None
    ranks: Ranks
    groups: Tensor | None

    def kin(self, m: int, rows: slice, cols: slice, modalities: int) -> Tensor | None:
        """What of a tile is no negative."""
        own = slice(rows.start + self.first, rows.stop + self.first)
        return kin_of(self.groups, m, own, cols, modalities, self.order)

    def share(self, like: Tensor) -> Tensor:
        """(N,) 1 / the number of tuples each candidate has, itself included: the smoothing is divided among them."""
        if self.groups is None:
            return like.new_full((self.samples,), 1 / self.samples)
        _, place, sizes = self.groups.unique(return_inverse=True, return_counts=True)
        return 1 / (self.samples + 1 - sizes[place]).to(like.dtype)

    def diagonal(self, tile: Tensor, rows: slice, cols: slice) -> tuple[Tensor, slice]:
        """Where the positives are in a tile, a view, and whose they are of the rank's own rows."""
        start = max(rows.start, cols.start - self.first)
        stop = max(start, min(rows.stop, cols.stop - self.first))
        top, left, size = start - rows.start, start + self.first - cols.start, stop - start
        inside = tile[top : top + size, left : left + size] if size else tile[:0, :0]
        return inside.diagonal(), slice(start, stop)

    def dense_gradients(
        self, one: Tensor, other: Tensor, temperature: Tensor, match: Tensor | None, d_sums: tuple[Tensor, Tensor]
    ) -> list[Tensor | None]:
        """The gradients, with a graph of their own; RunError where another rank holds rows of the matrix."""
        if one.shape[1] < self.samples:
            raise RunError(
                "second derivatives (create_graph=True) of a loss that several ranks share are not known: expected a "
                "backward pass without create_graph; compute a gradient penalty on one process"
            )
        inputs = [x if x is None else x.view_as(x) for x in (one, other, temperature, match)]
        means = _dense(self.form, *inputs[:3], self.smoothing, self.both_ways, self.order, inputs[3], self.groups)
        return differentiable_gradients([self.samples * mean for mean in means], inputs, d_sums)


class _Tuples(torch.autograd.Function):
    """Sums over this rank's own samples, (M,) each way."""

    @staticmethod
    def forward(ctx, one, other, temperature, match, work):
        modalities, n = one.shape[:2]
        divisor = float(temperature)
        ahead = torch.full((modalities, n), -torch.inf, dtype=torch.float64, device=one.device)
        back = torch.full((modalities, work.samples), -torch.inf, dtype=torch.float64, device=one.device)
        found, shares = torch.zeros_like(ahead), ahead.new_zeros(2, modalities)  # of the smoothing, each way
        share = work.share(ahead)
        mine = slice(work.first, work.first + n)
        with torch.autocast(one.device.type, enabled=False):
            for m in range(modalities):
                for cols in cut(work.samples, TILE):
                    members = [_wide(other[k, rows]) for k, rows in _members(m, other, cols, work.order)]
                    tuples = work.form.tuples(torch.stack(members))
                    for rows in cut(n, TILE):
                        s = work.form.score(_wide(one[m, rows]), *tuples) / divisor
                        diagonal, own = work.diagonal(s, rows, cols)
                        if match is not None:
                            diagonal.copy_(match[m, own] / divisor)
                        found[m, own] = diagonal.double()
                        kin = work.kin(m, rows, cols, modalities)
                        if work.smoothing:
                            allowed = s if kin is None else s.masked_fill(kin, 0)
                            shares[0, m] += allowed.sum(1, dtype=torch.float64) @ share[mine][rows]
                            shares[1, m] += allowed.sum(0, dtype=torch.float64) @ share[cols]
                        if kin is not None:
                            s.masked_fill_(kin, -torch.inf)
                        ahead[m, rows] = torch.logaddexp(ahead[m, rows], s.logsumexp(1).double())
                        if work.both_ways:
                            back[m, cols] = torch.logaddexp(back[m, cols], s.logsumexp(0).double())
        if work.both_ways:
            top = work.ranks.max(back.clone())
            back = work.ranks.sum((back - top).exp_()).log_().add_(top)
        ctx.save_for_backward(one, other, temperature, match, ahead, back)
        ctx.work = work
        expected = (1 - work.smoothing) * found.sum(1) + work.smoothing * shares
        own = back[:, mine]
        forward, backward = (_wide(one.new_zeros(modalities)) for _ in range(2))
        forward += ahead.sum(1) - expected[0]
        if work.both_ways:
            backward += own.sum(1) - expected[1]
        return forward, backward

    @staticmethod
    def backward(ctx, d_forward, d_backward):
        one, other, temperature, match, ahead, back = ctx.saved_tensors
        work = ctx.work
        if torch.is_grad_enabled():  # create_graph=True: what follows would be a constant to autograd
            return *work.dense_gradients(one, other, temperature, match, (d_forward, d_backward)), None
        divisor = float(temperature)
        d_one, d_other = (torch.zeros_like(_wide(x)) for x in (one, other))
        d_match = None if match is None else torch.zeros_like(_wide(match))
        d_temperature = torch.zeros((), dtype=torch.float64, device=one.device)
        ahead, back = ahead.to(d_one.dtype), back.to(d_one.dtype)
        share, mine = work.smoothing * work.share(back), slice(work.first, work.first + one.shape[1])
        with torch.autocast(one.device.type, enabled=False):
            for m in range(len(one)):
                both = d_forward[m] + d_backward[m]
                for cols in cut(work.samples, TILE):
                    places = list(_members(m, other, cols, work.order))
                    members = torch.stack([_wide(other[k, rows]) for k, rows in places]).requires_grad_()
                    with torch.enable_grad():
                        made = work.form.tuples(members)
                    tuples = [each.detach().requires_grad_() for each in made]
                    d_tuples = [torch.zeros_like(each) for each in tuples]
                    for rows in cut(one.shape[1], TILE):
                        candidates = _wide(one[m, rows]).detach().requires_grad_()
                        with torch.enable_grad():
                            score = work.form.score(candidates, *tuples)
                        s = score.detach() / divisor
                        diagonal, own = work.diagonal(s, rows, cols)
                        if match is not None:
                            diagonal.copy_(match[m, own] / divisor)
                        slope = (s - ahead[m, rows, None]).exp_().mul_(d_forward[m])
                        if work.both_ways:
                            slope.addcmul_((s - back[m, cols]).exp_(), d_backward[m])
                        if work.smoothing:
                            slope -= share[mine][rows, None] * d_forward[m] + share[cols] * d_backward[m]
                        kin = work.kin(m, rows, cols, len(one))
                        if kin is not None:
                            slope.masked_fill_(kin, 0)
                            s.masked_fill_(kin, 0)
                        positive, _ = work.diagonal(slope, rows, cols)
                        positive -= (1 - work.smoothing) * both
                        d_temperature -= s.mul_(slope).sum(dtype=torch.float64)
                        slope /= divisor
                        if match is not None:
                            d_match[m, own] += positive
                            positive.zero_()
                        d_candidates, *parts = torch.autograd.grad(score, [candidates, *tuples], slope)
                        d_one[m, rows] += d_candidates
                        for total, part in zip(d_tuples, parts):
                            total += part
                    (d_members,) = torch.autograd.grad(made, members, d_tuples)
                    for (k, rows), part in zip(places, d_members):
                        if work.order is None:
                            d_other[k, rows] += part
                        else:
                            d_other[k].index_add_(0, rows, part)
        d_temperature = (d_temperature / divisor).to(temperature.dtype).view(temperature.shape)
        return d_one.to(one.dtype), d_other.to(other.dtype), d_temperature, d_match, None
