"""How good a bound space is, from embeddings alone: retrieval in every direction, and its geometry. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.evaluation.ranks import average_precision, first_ranks
from centrobind.evaluation.relevance import Question, question, with_relevance
from centrobind.evaluation.scores import KS, Geometry, Retrieval, mean_of, worst_of
from centrobind.evaluation.summary import Scores
from centrobind.types import Embeddings

MOST_FOR_UNIFORMITY = 4096


def pair_ranks(embeddings: Embeddings, query: str, target: str) -> Tensor:
    """Ranks of the first right answer, of the samples that have both modalities, among all values of the target."""
    ranks = ranks_by_sample(embeddings, query, target)
    return torch.from_numpy(ranks[np.isfinite(ranks)]).long()


def ranks_by_sample(embeddings: Embeddings, query: str, target: str) -> np.ndarray:
    """(N,) rank of each sample's first right answer, inf where it lacks one of the two."""
    return asked_ranks(with_relevance(embeddings), [embeddings.index(query)], embeddings.index(target))


def asked_ranks(embeddings: Embeddings, sources: Sequence[int], target: int) -> np.ndarray:
    """The same for the sum of several modalities, by row, as far as a sample has them; needs with_relevance."""
    ask = question(embeddings, sources, target)
    queries, candidates = _vectors(embeddings, ask, sources, target)
    return ask.spread(first_ranks(queries, candidates, ask.right), len(embeddings))


def _vectors(embeddings: Embeddings, ask: Question, sources: Sequence[int], target: int) -> tuple[Tensor, Tensor]:
    """The (Q, D) queries and (C, D) candidates of a question; the length of a query does not change an order."""
    picked, wanted = torch.from_numpy(ask.queries), torch.from_numpy(ask.candidates)
    return embeddings.z[list(sources)][:, picked].sum(0), embeddings.z[target, wanted]


def retrieval(
    embeddings: Embeddings, groups: Sequence[Any] | np.ndarray | Tensor | None = None, *, precision: bool = True
) -> Scores:
    """Recall@1, @5, @10, MRR and median rank for every ordered pair of modalities, their mean, and the worst of them.

    Each sample asks once; its rank is that of its first right answer. Samples of one group and equal values are right
    answers to each other (docs/evaluation.md): where some query has several, `map` is the mean average precision over
    all of them (not with `precision=False`; it takes several times as long). `groups`: a number or string per sample,
    None = alone; the default are those of the data that was embedded. Pairs that no sample has are left out; DataError
    if that leaves none.
    """
    embeddings = with_relevance(embeddings, groups)
    rows = {}
    for query, target in embeddings.pairs:
        row = _retrieved(embeddings, [embeddings.index(query)], embeddings.index(target), precision)
        if row is not None:
            rows[query, target] = row
    if not rows:
        raise DataError("no sample has two modalities, so there is nothing to retrieve across them")
    if all(row.right == 1 for row in rows.values()):
        rows = {pair: replace(row, map=None) for pair, row in rows.items()}
    found = list(rows.values())
    return Scores(rows, mean_of(found), worst_of(found), len(embeddings))


def _retrieved(embeddings: Embeddings, sources: Sequence[int], target: int, precision: bool) -> Retrieval | None:
    ask = question(embeddings, sources, target)
    if len(ask.asked) == 0:
        return None
    vectors = _vectors(embeddings, ask, sources, target)
    row = rank_metrics(first_ranks(*vectors, ask.right)[ask.query])
    several = bool((ask.right.counts > 1).any())
    return replace(
        row,
        map=(average_precision(*vectors, ask.right)[ask.query].mean().item() if several else row.mrr)
        if precision
        else None,
        chance={k: ask.chance(k) for k in KS},
        queries=len(ask.asked),
        candidates=len(ask.candidates),
        right=ask.right.counts[ask.query].double().mean().item(),
    )


def rank_metrics(ranks: Tensor) -> Retrieval:
    """The numbers people quote, from (Q,) ranks."""
    ranks = ranks.double()
    recall = {k: (ranks <= k).double().mean().item() for k in KS}
    return Retrieval(recall, mrr=(1 / ranks).mean().item(), median_rank=ranks.quantile(0.5).item())


def geometry(embeddings: Embeddings) -> Geometry:
    """Alignment of pairs, uniformity of modalities and the gap between them; modalities without a sample left out."""
    centre, spread = {}, {}
    for name, rows, here in zip(embeddings.modalities, embeddings.z, embeddings.present):
        if here.any():
            centre[name] = rows[here].mean(0)
        if here.sum() > 1:
            spread[name] = uniformity(rows[here])
    alignment, gap = {}, {}
    for (a, one), (b, other) in itertools.combinations(enumerate(embeddings.modalities), 2):
        both = embeddings.present[a] & embeddings.present[b]
        if both.any():
            apart = embeddings.z[a][both] - embeddings.z[b][both]
            alignment[one, other] = apart.square().sum(1).mean().item()
            gap[one, other] = (centre[one] - centre[other]).norm().item()
    return Geometry(alignment, spread, gap)


def uniformity(z: Tensor) -> float:
    """log mean exp(-2 |x - y|^2) over all pairs of different rows (at most 4,096 of them, evenly picked)."""
    if len(z) > MOST_FOR_UNIFORMITY:
        z = z[torch.linspace(0, len(z) - 1, MOST_FOR_UNIFORMITY).long()]
    return torch.pdist(z.double()).square().mul(-2).exp().mean().log().item()
