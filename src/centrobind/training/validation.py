"""How good the towers are on samples that they do not learn from, and how much of what was learned to keep.

A tower with a linear path is unit(linear + amount * learned). Amount 0 is the closed form, and 1 what training made of
it; on small data the best lies between (emoji: mean reciprocal rank 49.8 at 0, 49.5 at 1, 51.6 at .3), so every look
tries a few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from centrobind.binder.binder import Binder
from centrobind.binder.linear import KeptFeatures
from centrobind.data import Samples, sameness
from centrobind.evaluation.ranks import first_ranks
from centrobind.evaluation.relevance import Question, question
from centrobind.types import Batch, Embeddings, unit

AMOUNTS = (0.0, 0.15, 0.3, 0.6, 1.0)
ERRORS = 1.5  # standard errors by which what was learned must beat the closed form
MOST_ROWS = 2000  # samples that are scored: enough to know a mean reciprocal rank to a point
CHUNK = 1024


@dataclass(frozen=True)
class Look:
    """Scores on the validation samples at the best of AMOUNTS."""

    numbers: dict[str, float]  # mean/mrr, mean/recall@1, worst/recall@1
    amount: float
    start: float  # mean reciprocal rank of the linear paths alone
    sure: bool  # better than these by more than ERRORS of the difference

    @property
    def score(self) -> float:
        """Mean reciprocal rank, mean over directions."""
        return self.numbers["mean/mrr"]


class Validation:
    """Validation samples of towers with linear paths, with their right answers, worked out once for many looks."""

    def __init__(self, binder: Binder, samples: Samples):
        paired = np.flatnonzero(samples.present.sum(0) >= 2)
        if len(paired) > MOST_ROWS:
            paired = paired[np.linspace(0, len(paired) - 1, MOST_ROWS).astype(np.int64)]
        self.samples = samples.take(paired)
        paths = {name: tower.linear for name, tower in binder.towers.items() if tower.linear is not None}
        self.features = KeptFeatures.of(paths, self.samples)
        present = torch.from_numpy(self.samples.present)
        empty = torch.zeros(*present.shape, 1)
        things = Embeddings(empty, present, self.samples.modalities, None, *sameness(self.samples))
        rows = range(len(present))
        asked = {(a, b): question(things, [a], b) for a in rows for b in rows if a != b}
        self.questions = {pair: ask for pair, ask in asked.items() if len(ask.asked)}

    def look(self, binder: Binder) -> Look:
        """Score the binder as it is now."""
        z = self.embed(binder)
        linear, learned = z.chunk(2, -1)
        ranks = {amount: self.ranks(unit(linear + amount * learned)) for amount in AMOUNTS}
        numbers = {amount: numbers_of(each) for amount, each in ranks.items()}
        best = max(AMOUNTS, key=lambda amount: numbers[amount]["mean/mrr"])
        gain = self.by_sample(ranks[best]) - self.by_sample(ranks[0.0])
        error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else np.inf
        return Look(numbers[best], best, numbers[0.0]["mean/mrr"], bool(gain.mean() > ERRORS * error))

    @torch.no_grad()
    def embed(self, binder: Binder) -> Tensor:
        """(M, n, 2 D): linear paths and what was learned, side by side."""
        parts = []
        was_training = binder.training
        binder.eval()
        with binder.apart():
            for start in range(0, len(self.samples), CHUNK):
                rows = np.arange(start, min(start + CHUNK, len(self.samples)))
                batch = with_features(self.samples.batch(rows), self.features, rows)
                parts.append(binder(binder.prepare(batch)).z.float().cpu())
        binder.train(was_training)
        return torch.cat(parts, 1)

    def ranks(self, z: Tensor) -> dict[tuple[int, int], Tensor]:
        """By direction, (asked,) ranks of the first right answer."""
        return {(a, b): self._ranks(z, a, b, ask) for (a, b), ask in self.questions.items()}

    def _ranks(self, z: Tensor, a: int, b: int, ask: Question) -> Tensor:
        queries, candidates = z[a, torch.from_numpy(ask.queries)], z[b, torch.from_numpy(ask.candidates)]
        return first_ranks(queries, candidates, ask.right)[torch.from_numpy(ask.query)].double()

    def by_sample(self, ranks: dict[tuple[int, int], Tensor]) -> np.ndarray:
        """(n,) each sample's share in the mean reciprocal rank: their mean is that number."""
        shares = np.zeros(len(self.samples))
        for pair, each in ranks.items():
            shares[self.questions[pair].asked] += (1 / each).numpy() / len(each)
        return shares * len(self.samples) / len(ranks)


def with_features(batch: Batch, kept: KeptFeatures | None, rows: np.ndarray) -> Batch:
    """The batch, with the features of its samples (`rows` of the data) if they were kept."""
    return batch if kept is None else replace(batch, features=kept.batch(rows, batch.modalities))


def numbers_of(ranks: dict[tuple[int, int], Tensor]) -> dict[str, float]:
    """What is logged of a look."""
    recalls = [(each <= 1).double().mean().item() for each in ranks.values()]
    reciprocal = [(1 / each).mean().item() for each in ranks.values()]
    return {
        "mean/mrr": sum(reciprocal) / len(reciprocal),
        "mean/recall@1": sum(recalls) / len(recalls),
        "worst/recall@1": min(recalls),
    }
