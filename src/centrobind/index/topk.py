"""The k nearest of a stream of vectors, exactly, in bounded memory, on any device.

float32 products, in blocks, say which vectors could be among the best; those few are scored again in float64 and
rounded to float32. So the answer does not depend on the size of a block, the number of queries or the device, equal
vectors have equal scores, and ties go to the lower row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

QUERIES = 256  # at a time: scores of 256 queries x 32,768 vectors are 32 MB
FEW = 4  # queries
BLOCK = 32_768  # vectors at a time, for callers that make the stream
PAIRS = 65_536  # scored again at a time: 64 MB at 128 dimensions
LOOSE = 8  # times k: the share that may pass the bar before the block's own k-th best is looked for

# Relative error of one product of numbers, by how torch multiplies float32 matrices.
_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-10, "medium": 2.0**-7}


def products(queries: Tensor, vectors: Tensor) -> Tensor:
    """(q, n) float32 products of queries and vectors.

    One query meets each vector once, so that memory sets the pace: einsum reads 100,000 x 128 in 2.9 ms on one core,
    where the libraries' matrix products take 7.4 (torch) and 10.3 (numpy). From FEW queries on those are faster.
    """
    if len(queries) >= FEW or vectors.device.type != "cpu" or vectors.dtype != torch.float32:
        return queries @ vectors.T
    rows = [np.einsum("nd,d->n", vectors.numpy(), query) for query in queries.contiguous().numpy()]
    return torch.from_numpy(np.stack(rows))


class Nearest:
    """The best so far: show it blocks with `see`, rows ascending, then ask for the `result`."""

    def __init__(self, queries: Tensor, k: int):
        self.queries, self.k = queries, k
        # A float32 sum of D products of two unit vectors is off by at most D 2^-24 (Cauchy-Schwarz bounds the sum of
        # their sizes by 1); what we compare it with is another such sum, so twice. Half a bit more for the rounding.
        off = queries.shape[1] * 2.0**-24 + 2 * _ROUNDING[torch.get_float32_matmul_precision()]
        self.slack = 2 * off + 2.0**-22
        device = queries.device
        self.query = torch.zeros(0, dtype=torch.long, device=device)
        self.row = torch.zeros(0, dtype=torch.long, device=device)
        self.score = torch.zeros(0, device=device)
        self.bar = torch.full((len(queries),), -torch.inf, device=device)  # below it nothing is among the best

    def see(self, rows: Tensor, vectors: Tensor) -> None:
        """A block: (n,) rows, larger than all that were seen, and their (n, D) unit vectors."""
        found = [self._candidates(start, vectors) for start in range(0, len(self.queries), QUERIES)]
        query, column, score = (torch.cat(parts) for parts in zip(*found))
        self._keep_best(
            torch.cat([self.query, query]), torch.cat([self.row, rows[column]]), torch.cat([self.score, score])
        )

    def _candidates(self, start: int, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, bar = self.queries[start : start + QUERIES], self.bar[start : start + QUERIES]
        scores = products(queries, vectors)
        passing = scores >= bar[:, None]
        first = len(self.row) == 0  # nothing is below the bar yet
        if self.k < len(vectors) and (first or passing.sum() > LOOSE * self.k * len(queries)):
            bar = torch.maximum(bar, scores.topk(self.k).values[:, -1] - self.slack)
            passing = scores >= bar[:, None]
        query, column = passing.nonzero(as_tuple=True)
        exact = [
            (queries[q].double() * vectors[c].double()).sum(1).float()
            for q, c in zip(query.split(PAIRS), column.split(PAIRS))
        ]
        return query + start, column, torch.cat(exact) if exact else scores.new_zeros(0)

    def _keep_best(self, query: Tensor, row: Tensor, score: Tensor) -> None:
        """The k best of each query, by falling score; both sorts are stable, so ties stay in order of rows."""
        order = score.sort(descending=True, stable=True).indices
        order = order[query[order].sort(stable=True).indices]
        query = query[order]
        best = torch.arange(len(query), device=query.device) - torch.searchsorted(query, query) < self.k
        self.query, self.row, self.score = query[best], row[order[best]], score[order[best]]
        counts = torch.bincount(self.query, minlength=len(self.queries))
        full = counts == self.k
        self.bar[full] = self.score[counts.cumsum(0)[full] - 1] - self.slack

    def result(self) -> tuple[list[list[float]], list[list[int]]]:
        """Scores and rows of each query, best first; fewer than k where there were fewer vectors."""
        counts = torch.bincount(self.query, minlength=len(self.queries)).tolist()
        return (
            [part.tolist() for part in self.score.cpu().split(counts)],
            [part.tolist() for part in self.row.cpu().split(counts)],
        )
