"""Ridge, spectrum and dimension by K-fold cross-validation on the mean reciprocal rank over all directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from centrobind.closed_form.gcca import Principal, solve
from centrobind.types import unit

RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
START = 0.3
DIMS = (8, 16, 32, 64, 128, 256, 512)
POWERS = (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class HeldOut:
    """A fold's samples that scores are computed on, and everything outside the fold."""

    train: Principal
    features: list[Tensor]  # (n, features) per modality
    present: Tensor  # (M, n) bool


@dataclass(frozen=True)
class Settings:
    """What a closed form can be given; `ridge` and `weights` have one number per modality."""

    ridge: tuple[float, ...]
    weights: tuple[float, ...]
    dim: int
    power: float


@dataclass(frozen=True)
class Choice:
    """The settings with the best mean reciprocal rank over folds, and that of each fold."""

    settings: Settings
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean over folds."""
        return sum(self.scores) / len(self.scores)


def fold_numbers(count: int, folds: int, *, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """(count,) a fold for each sample, whole groups together, folds as equal in size as the groups allow.

    `groups`: (count,) integers, negative where a sample has none and is a group of its own. A single group for all
    samples says nothing and is passed over.
    """
    unit_of = np.arange(count) if groups is None else np.asarray(groups).astype(np.int64).copy()
    if (unit_of == unit_of[:1]).all():
        unit_of = np.arange(count)
    alone = unit_of < 0
    unit_of[alone] = unit_of.max(initial=0) + 1 + np.arange(alone.sum())
    _, unit_of, sizes = np.unique(unit_of, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    fold_of = np.empty(len(sizes), np.int64)
    filled = np.zeros(min(folds, len(sizes)), np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:  # the largest first, into the emptiest fold
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return fold_of[unit_of]


def mean_reciprocal_rank(places: Sequence[Tensor], present: Tensor) -> float:
    """Over all directions between modalities, each over the samples that have both; ties count against.

    `places`: (n, dim) unit vectors per modality, `present`: (M, n). 0 when no two modalities share a sample.
    """
    scores = []
    for a, b in itertools.combinations(range(len(places)), 2):
        both = present[a] & present[b]
        if both.sum() > 1:
            similarity = places[a][both] @ places[b][both].T
            own = similarity.diagonal()
            for axis, towards in ((1, own[:, None]), (0, own[None, :])):
                scores.append((1 / (similarity >= towards).sum(axis).double()).mean())
    return float(torch.stack(scores).mean()) if scores else 0.0


def choose(folds: Sequence[HeldOut], *, dim: int, weights: Sequence[float]) -> Choice:
    """The best of all RIDGES, DIMS up to `dim` and POWERS, the same ridge for all modalities.

    The ridge climbs from the middle of RIDGES to the nearest summit: the score has one, and each step costs an
    eigenproblem per fold.
    """
    dims = [d for d in DIMS if d < dim] + [dim]
    tried: dict[int, Choice] = {}

    def attempt(place: int) -> float:
        if not 0 <= place < len(RIDGES):
            return -1.0
        if place not in tried:
            ridge = (RIDGES[place],) * len(weights)
            scores = [fold_scores(fold, Settings(ridge, tuple(weights), dim, 0.0), dims) for fold in folds]
            tried[place] = max(
                (
                    Choice(Settings(ridge, tuple(weights), d, power), tuple(each[d, power] for each in scores))
                    for d, power in itertools.product(dims, POWERS)
                ),
                key=lambda choice: choice.score,
            )
        return tried[place].score

    best = RIDGES.index(START)
    while (better := max((best, best - 1, best + 1), key=attempt)) != best:
        best = better
    return tried[best]


def fold_scores(fold: HeldOut, settings: Settings, dims: Sequence[int]) -> dict[tuple[int, float], float]:
    """Mean reciprocal rank of a fold by (dim, power), with these settings' ridge and weights."""
    solution = solve(fold.train, ridge=settings.ridge, weights=settings.weights, dim=max(dims))
    full = solution.project(fold.features)
    scores = {}
    for power in POWERS:
        scaled = [z * solution.spectrum**power for z in full]
        for d in dims:
            scores[d, power] = mean_reciprocal_rank([unit(z[:, :d].float()) for z in scaled], fold.present)
    return scores
