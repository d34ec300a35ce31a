"""How good a bound space is, from embeddings alone: retrieval in every direction, and its geometry. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.evaluation.ranks import ranks
from centrobind.types import Embeddings

KS = (1, 5, 10)
MOST_FOR_UNIFORMITY = 4096


def pair_ranks(embeddings: Embeddings, query: str, target: str) -> Tensor:
    """Ranks of the samples that have both modalities, among all samples that have the target."""
    asked, wanted = embeddings.index(query), embeddings.index(target)
    both = embeddings.present[asked] & embeddings.present[wanted]
    place = embeddings.present[wanted].cumsum(0) - 1
    candidates = embeddings.z[wanted][embeddings.present[wanted]]
    return ranks(embeddings.z[asked][both], candidates, place[both])


def retrieval(embeddings: Embeddings) -> dict[str, float]:
    """recall@1, @5, @10, mrr and median_rank for every ordered pair, their mean, and the worst pair.

    Keys read `image_to_text/recall@1`, `mean/recall@1`, `worst/recall@1` (the lowest over ordered pairs; for
    median_rank the highest). Pairs that no sample has are left out; DataError if that leaves none.
    """
    rows: dict[str, dict[str, float]] = {}
    for query, target in embeddings.pairs:
        found = pair_ranks(embeddings, query, target).double()
        if len(found):
            rows[f"{query}_to_{target}"] = rank_metrics(found)
    if not rows:
        raise DataError("no sample has two modalities, so there is nothing to retrieve across them")
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
