"""How good a bound space is, from embeddings alone: retrieval in every direction, and its geometry. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.evaluation.ranks import average_precision, first_ranks
from centrobind.evaluation.relevance import Question, question, with_relevance
from centrobind.types import Embeddings

KS = (1, 5, 10)
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
) -> dict[str, float]:
    """recall@1, @5, @10, mrr and median_rank for every ordered pair, their mean, and the worst pair.

    Keys read `image_to_text/recall@1`, `mean/recall@1`, `worst/recall@1` (the lowest over ordered pairs; for
    median_rank the highest). Each sample asks once; its rank is that of its first right answer. Samples of one group
    and equal values are right answers to each other (see relevance): where some query has several, `map` is the mean
    average precision over all of them (not with `precision=False`; it takes several times as long).
    `groups`: a number or string per sample, None = alone; the default are those of the data that was embedded. Pairs
    that no sample has are left out; DataError if that leaves none.
    """
    embeddings = with_relevance(embeddings, groups)
    rows: dict[str, dict[str, float]] = {}
    several = False
    for query, target in embeddings.pairs:
        a, b = embeddings.index(query), embeddings.index(target)
        ask = question(embeddings, [a], b)
        if len(ask.asked) == 0:
            continue
        vectors = _vectors(embeddings, ask, [a], b)
        first = first_ranks(*vectors, ask.right)[ask.query]
        row = rows[f"{query}_to_{target}"] = rank_metrics(first)
        if precision:
            mixed = bool((ask.right.counts > 1).any())
            several |= mixed
            row["map"] = average_precision(*vectors, ask.right)[ask.query].mean().item() if mixed else row["mrr"]
    if not rows:
        raise DataError("no sample has two modalities, so there is nothing to retrieve across them")
    if not several:
        rows = {pair: {key: value for key, value in row.items() if key != "map"} for pair, row in rows.items()}
    named = {f"{pair}/{metric}": value for pair, row in rows.items() for metric, value in row.items()}
    for metric in next(iter(rows.values())):
        values = [row[metric] for row in rows.values()]
        named[f"mean/{metric}"] = sum(values) / len(values)
        named[f"worst/{metric}"] = max(values) if metric == "median_rank" else min(values)
    return named


def rank_metrics(found: Tensor) -> dict[str, float]:
    """The numbers people quote, from (Q,) ranks."""
    found = found.double()
    recalls = {f"recall@{k}": (found <= k).double().mean().item() for k in KS}
    return recalls | {"mrr": (1 / found).mean().item(), "median_rank": found.quantile(0.5).item()}


def geometry(embeddings: Embeddings) -> dict[str, float]:
    """Alignment of pairs, uniformity of modalities and the gap between them.

    `image_text/alignment`: mean squared distance of positives, 0 = perfect; `image/uniformity`: log of the mean of
    exp(-2 distance^2), lower = better spread (both Wang & Isola 2020); `image_text/gap`: distance between the
    means of two modalities (Liang et al. 2022), 0 = none, at most 2.
    """
    named: dict[str, float] = {}
    count = len(embeddings.modalities)
    centres = []
    for m, name in enumerate(embeddings.modalities):
        z = embeddings.z[m][embeddings.present[m]]
        centres.append(z.mean(0))
        if len(z) > 1:
            named[f"{name}/uniformity"] = uniformity(z)
    for a in range(count):
        for b in range(a + 1, count):
            pair = f"{embeddings.modalities[a]}_{embeddings.modalities[b]}"
            both = embeddings.present[a] & embeddings.present[b]
            if both.any():
                apart = embeddings.z[a][both] - embeddings.z[b][both]
                named[f"{pair}/alignment"] = apart.square().sum(1).mean().item()
                named[f"{pair}/gap"] = (centres[a] - centres[b]).norm().item()
    for metric in ("alignment", "uniformity", "gap"):
        values = [value for key, value in named.items() if key.endswith(f"/{metric}")]
        if values:
            named[f"mean/{metric}"] = sum(values) / len(values)
    return named


def uniformity(z: Tensor) -> float:
    """log mean exp(-2 |x - y|^2) over all pairs of different rows (at most 4,096 of them, evenly picked)."""
    if len(z) > MOST_FOR_UNIFORMITY:
        z = z[torch.linspace(0, len(z) - 1, MOST_FOR_UNIFORMITY).long()]
    return torch.pdist(z.double()).square().mul(-2).exp().mean().log().item()
