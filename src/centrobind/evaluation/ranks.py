"""Which place the right answer takes among all candidates, in blocks of bounded memory.

Ties count against: a collapsed space, in which everything is equally near, ranks last. Scores closer than the
rounding of their sums are tied, so that neither the order of the candidates nor the size of a block decides a rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES = 128  # at a time: scores stay in the cache between the product and the count
BLOCK = 2**24  # scores at a time: 64 MB in float32, whatever the number of candidates
# In units of eps sqrt(D). Of one vector brought to unit length from many lengths, for D of 2 to 4,096, no two float32
# scores were further apart than 2.9 of it. A fixed 1e-6 would be too small for many dimensions, too large in float64.
ROUNDINGS = 4.0


@dataclass(frozen=True)
class Right:
    """Which candidates are right for each query: those at `places[starts[q]:starts[q + 1]]`, at least one."""

    starts: Tensor  # (Q + 1,) int64
    places: Tensor  # (R,) int64

    @classmethod
    def single(cls, match: Tensor) -> Right:
        """One right candidate for each query, (Q,)."""
        return cls(torch.arange(len(match) + 1, device=match.device), match)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> Tensor:
        """(Q,) right candidates of each query."""
        return self.starts.diff()

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Of the queries from start to stop, the (row, column) of every right score; rows count from start."""
        places = self.places[self.starts[start] : self.starts[stop]]
        rows = torch.arange(stop - start, device=places.device).repeat_interleave(self.counts[start:stop])
        return rows, places


def ranks(queries: Tensor, candidates: Tensor, match: Tensor) -> Tensor:
    """(Q,) the place, from 1, of candidate match[q] when all (C, D) candidates are ordered by similarity to query q.

    A rank counts the candidates that are not below the right one: ties count against, and so does a NaN; a right
    score that is not finite comes last.
    """
    return first_ranks(queries, candidates, Right.single(match))


def first_ranks(queries: Tensor, candidates: Tensor, right: Right) -> Tensor:
    """(Q,) the place of the first right answer of each query, among the wrong candidates and itself."""
    places = [block.first_places() for block in _blocks(queries, candidates, right)]
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.long, device=queries.device)


def average_precision(queries: Tensor, candidates: Tensor, right: Right) -> Tensor:
    """(Q,) float64: the mean, over the right answers of a query, of the share of right ones down to its place."""
    values = []
    for block in _blocks(queries, candidates, right):
        ordered = block.scores.sort(1).values
        width = int(block.counts.max())
        column = torch.arange(len(block.rows), device=block.rows.device) - block.offsets[block.rows]
        table = block.scores.new_full((len(block.counts), width), -torch.inf)
        table[block.rows, column] = block.right_scores
        table = table.sort(1, descending=True).values
        below = torch.searchsorted(ordered, table - block.margin[:, None])
        wrong = torch.minimum(len(candidates) - below, block.wrong[:, None])
        place = torch.arange(1, width + 1, device=table.device)
        precision = (place / (wrong + place)).double().masked_fill(place > block.counts[:, None], 0)
        values.append(precision.sum(1) / block.counts)
    return torch.cat(values) if values else torch.zeros(0, dtype=torch.float64, device=queries.device)


@dataclass(frozen=True)
class _Block:
    """Some queries: their scores with every right one taken out (-inf), and those apart."""

    scores: Tensor  # (B, C)
    rows: Tensor  # (R,) which query a right score belongs to
    right_scores: Tensor  # (R,) -inf where not finite: such a score never wins
    counts: Tensor  # (B,) right answers
    margin: Tensor  # (B,) scores closer than this are tied

    @classmethod
    def of(cls, scores: Tensor, right: Right, start: int, margin: Tensor) -> _Block:
        """Of the scores of queries from `start` on, which are written into."""
        rows, columns = right.rows(start, start + len(scores))
        own = scores[rows, columns]
        scores[rows, columns] = -torch.inf
        own = own.masked_fill(~own.isfinite(), -torch.inf)
        return cls(scores, rows, own, right.counts[start : start + len(scores)], margin)

    @property
    def wrong(self) -> Tensor:
        """(B,) wrong candidates."""
        return self.scores.shape[1] - self.counts

    @property
    def offsets(self) -> Tensor:
        """(B,) where the right scores of each query begin."""
        return self.counts.cumsum(0) - self.counts

    def first_places(self) -> Tensor:
        """(B,) the place of the first right answer; the scores are gone afterwards."""
        best = torch.full_like(self.margin, -torch.inf)
        best = best.scatter_reduce(0, self.rows, self.right_scores, "amax")
        below = torch.lt(self.scores, (best - self.margin)[:, None], out=self.scores).sum(1)
        return torch.minimum(self.scores.shape[1] - below.long(), self.wrong) + 1


def _blocks(queries: Tensor, candidates: Tensor, right: Right) -> Iterator[_Block]:
    if queries.dtype not in (torch.float32, torch.float64):
        queries, candidates = queries.float(), candidates.float()
    step = max(1, min(QUERIES, BLOCK // max(1, len(candidates))))
    lengths = candidates.norm(dim=1)
    longest = lengths.masked_fill(~lengths.isfinite(), 0).amax() if len(candidates) else lengths.sum()
    for start in range(0, len(queries), step):
        asking = queries[start : start + step]
        margin = rounding(queries.dtype, queries.shape[1]) * asking.norm(dim=1) * longest
        yield _Block.of(asking @ candidates.T, right, start, margin)


def rounding(dtype: torch.dtype, dim: int) -> float:
    """How far apart two computations of the same similarity of unit vectors can be."""
    return ROUNDINGS * torch.finfo(dtype).eps * math.sqrt(dim)


def score_ranks(scores: Tensor, right: Right) -> Tensor:
    """(Q,) the place of the first right answer in each row of (Q, C) scores of any kind, ties and NaN against it."""
    size = scores.abs().masked_fill(~scores.isfinite(), 0).amax(1)
    block = _Block.of(scores.clone(), right, 0, ROUNDINGS * torch.finfo(scores.dtype).eps * size)
    return block.first_places()
