"""Ridge, spectrum and dimension by K-fold cross-validation on the mean reciprocal rank over all directions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.closed_form.gcca import Part, Principal, joined, principal_part, solve
from centrobind.types import unit

LINEAR, KERNEL = "linear", "kernel"
REST = 1e-3  # weight of the modalities that are not the fixed anchor
MOST_SCORED = 1500  # samples of a fold
GAIN = 1.005
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
START = 0.3
DIMS = (8, 16, 32, 64, 128, 256, 512)
POWERS = (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Settings:
    """What a closed form can be given; `forms`, `ridge` and `weights` have one entry per modality."""

    forms: tuple[str, ...]  # LINEAR or KERNEL
    ridge: tuple[float, ...]
    weights: tuple[float, ...]
    dim: int = 0
    power: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The settings with the best mean reciprocal rank over folds, and that of each fold."""

    settings: Settings
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean over folds; 0 where the settings were given and nothing was scored."""
        return sum(self.scores) / max(len(self.scores), 1)


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


@dataclass
class Folds:
    """Features of the samples that the choice is made on; each modality's part of a fold is computed once."""

    features: list[dict[str, Tensor]]  # per modality: LINEAR, and KERNEL where there is one -> (n, width)
    present: Tensor  # (M, n) bool
    fold_of: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # (n,)
    _parts: dict[tuple[int, int, str], Part] = field(default_factory=dict)
    _trains: dict[int, tuple[tuple[str, ...], Principal]] = field(default_factory=dict)  # the last of every fold

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.fold_of.max()) + 1

    def train(self, fold: int, forms: Sequence[str]) -> Principal:
        """All samples outside a fold, in single precision: only the order of places is looked at."""
        if fold not in self._trains or self._trains[fold][0] != tuple(forms):
            self._trains[fold] = (tuple(forms), joined([self._part(fold, m, form) for m, form in enumerate(forms)]))
        return self._trains[fold][1]

    def held_out(self, fold: int, forms: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """Features and presence of up to MOST_SCORED samples of a fold."""
        rows = torch.nonzero(self.fold_of == fold)[:, 0]
        rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), MOST_SCORED), device=rows.device).long()]
        return [x[form][rows] for x, form in zip(self.features, forms)], self.present[:, rows]

    def whole(self, forms: Sequence[str]) -> Principal:
        """All samples."""
        pairs = zip(self.features, forms, self.present)
        return joined([principal_part(x[form].double(), here) for x, form, here in pairs])

    def _part(self, fold: int, m: int, form: str) -> Part:
        key = (fold, m, form)
        if key not in self._parts:
            others = self.fold_of != fold
            part = principal_part(self.features[m][form][others].double(), self.present[m, others])
            self._parts[key] = Part(*(x.float() for x in (part.directions, part.variances, part.mean, part.rows)))
        return self._parts[key]


def choose(folds: Folds, *, dim: int, weights: Sequence[float], refine: bool = True) -> Choice:
    """The best forms, ridge, dimension up to `dim`, power and, with `refine`, weights.

    The ridge, first the same for all modalities, climbs from START to the nearest summit of the score, which has one:
    every step costs an eigenproblem per fold. Then all kernels are tried in place of linear features, then changes to
    one modality at a time; these have to be better by GAIN, or noise would choose among them.
    """
    linear = Settings((LINEAR,) * len(weights), (START,) * len(weights), tuple(weights))
    best = _climb(folds, linear, dim)
    bent = tuple(KERNEL if KERNEL in x else LINEAR for x in folds.features)
    if KERNEL in bent:
        best = max(best, _climb(folds, replace(best.settings, forms=bent), dim), key=lambda choice: choice.score)
    if refine:
        for m in range(len(weights)):
            for settings in _changes(best.settings, m, folds):
                other = attempt(folds, settings, [settings.dim], [settings.power])
                best = other if other.score > best.score * GAIN else best
    return best


def attempt(folds: Folds, settings: Settings, dims: Sequence[int], powers: Sequence[float]) -> Choice:
    """The best of these dimensions and powers with these settings' forms, ridge and weights."""
    keys = list(itertools.product(dims, powers))
    scores = [_fold_scores(folds, fold, settings, keys) for fold in range(folds.count)]
    by = {key: tuple(each[key] for each in scores) for key in keys}
    d, power = max(by, key=lambda key: sum(by[key]))
    return Choice(replace(settings, dim=d, power=power), by[d, power])


def _climb(folds: Folds, settings: Settings, dim: int) -> Choice:
    """The summit of the score over RIDGES, the same for all modalities, from these settings' own ridge."""
    tried: dict[int, Choice] = {}
    dims = [d for d in DIMS if d < dim] + [dim]

    def score(place: int) -> float:
        if not 0 <= place < len(RIDGES):
            return -1.0
        if place not in tried:
            ridge = (RIDGES[place],) * len(settings.ridge)
            tried[place] = attempt(folds, replace(settings, ridge=ridge), dims, POWERS)
        return tried[place].score

    best = RIDGES.index(settings.ridge[0])
    while (better := max((best, best + 1, best - 1), key=score)) != best:
        best = better
    return tried[best]


def _changes(settings: Settings, m: int, folds: Folds) -> Iterator[Settings]:
    """The same with one thing of modality m changed: its weight, its ridge, its form."""

    def at(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*values[:m], value, *values[m + 1 :])

    if len(settings.weights) > 2 and min(settings.weights) > REST:
        yield replace(settings, weights=at(settings.weights, settings.weights[m] / 4))
    yield replace(settings, ridge=at(settings.ridge, settings.ridge[m] * 10))
    other = LINEAR if settings.forms[m] == KERNEL else KERNEL
    if other in folds.features[m]:
        yield replace(settings, forms=at(settings.forms, other))


def _fold_scores(
    folds: Folds, fold: int, settings: Settings, keys: Sequence[tuple[int, float]]
) -> dict[tuple[int, float], float]:
    """Mean reciprocal rank in a fold by (dim, power)."""
    features, present = folds.held_out(fold, settings.forms)
    at = folds.train(fold, settings.forms)
    most = max(dim for dim, _ in keys)
    solution = solve(at, ridge=settings.ridge, weights=settings.weights, dim=most)
    full = solution.project(features)
    scores = {}
    for dim, power in keys:
        places = [unit(z[:, :dim] * solution.spectrum[:dim] ** power) for z in full]
        scores[dim, power] = mean_reciprocal_rank(places, present)
    return scores
