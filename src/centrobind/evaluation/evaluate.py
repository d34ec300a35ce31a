"""What a bound space is worth: retrieval in every direction, probes, transfer, geometry, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from centrobind.data import Codes
from centrobind.errors import DataError
from centrobind.evaluation.metrics import geometry, ranks_by_sample, retrieval
from centrobind.evaluation.relevance import with_relevance
from centrobind.evaluation.scores import KS, Accuracy, Difference, Direction, Directions, Interval, joined, quoted
from centrobind.evaluation.summary import Scores
from centrobind.types import Embeddings

NEIGHBOURS = 10
FOLDS = 5
DRAWN = 2**22  # weights of resamples held at a time


def evaluate(
    embeddings: Embeddings,
    labels: Sequence[Any] | None = None,
    *,
    train: Embeddings | None = None,
    train_labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | np.ndarray | torch.Tensor | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Scores:
    """Every measure of these embeddings: scores["image", "text"].recall[1], scores.mean.mrr, print(scores.table()).

    Retrieval and geometry always; with labels also `probe` (accuracy of logistic regression), `knn` (10 nearest
    neighbours) and `transfer` (the regression trained on one modality, tested on another: the protocol of Jeong et
    al.). Probes learn from `train` if it is given, else by 5-fold cross-validation. `resamples` > 0 adds bootstrap
    95 % intervals of recall. `groups`: samples of one group are right answers to each other, see retrieval; by
    default, equal values are. Raises DataError when labels or groups do not fit.
    """
    embeddings = with_relevance(embeddings, groups).detach()
    train = None if train is None else train.detach()
    scores = replace(retrieval(embeddings), geometry=geometry(embeddings))
    if labels is not None:
        scores = replace(scores, **accuracies(probes(embeddings, labels, train, train_labels, seed)))
    elif train is not None or train_labels is not None:
        raise DataError("train= and train_labels= are for probes, which need labels= of the embeddings as well")
    if resamples > 0:
        ends = recall_intervals(embeddings, resamples, seed)
        scores = replace(
            scores,
            pairs={pair: replace(row, interval=ends[pair]) for pair, row in scores.pairs.items()},
            mean=replace(scores.mean, interval=ends.mean),
            worst=replace(scores.worst, interval=ends.worst),
        )
    return scores


def probes(
    embeddings: Embeddings,
    labels: Sequence[Any],
    train: Embeddings | None = None,
    train_labels: Sequence[Any] | None = None,
    seed: int = 0,
) -> dict[Probe, float]:
    """Accuracies of classifiers on top of the embeddings; see evaluate."""
    if (train is None) != (train_labels is None):
        raise DataError("train= and train_labels= go together: give both or neither")
    y = label_codes(labels, len(embeddings), "labels")
    if train is not None and train_labels is not None:
        return means_of(probe_outcomes(embeddings, y, train, label_codes(train_labels, len(train), "train_labels")))
    known = np.flatnonzero(y != "")
    rounds = []
    for a, b in KFold(min(FOLDS, len(known)), shuffle=True, random_state=seed).split(known):
        learn, ask = known[a], known[b]
        rounds.append(probe_outcomes(embeddings.take(ask), y[ask], embeddings.take(learn), y[learn]))
    keys = dict.fromkeys(key for found in rounds for key in found)
    return means_of({key: np.concatenate([found[key] for found in rounds if key in found]) for key in keys})


def means_of(outcomes: Mapping[Probe, np.ndarray]) -> dict[Probe, float]:
    """The share of right ones, of those that had something to be right about."""
    return {key: float(np.nanmean(right)) for key, right in outcomes.items() if np.isfinite(right).any()}


def accuracies(found: Mapping[Probe, float]) -> dict[str, Any]:
    """The fields `probe`, `knn` and `transfer` of Scores."""

    def single(kind: str) -> Accuracy:
        by_modality = {key.source: value for key, value in found.items() if key.kind == kind and key.source is not None}
        return Accuracy(by_modality, found.get(Probe(kind)), found.get(MAJORITY) if kind == "probe" else None)

    crossed = {(key.source, key.target): value for key, value in found.items() if key.kind == "transfer"}
    return {"probe": single("probe"), "knn": single("knn"), "transfer": crossed}


class Probe(NamedTuple):
    """Which classifier: `probe` or `knn` on a source, or on all modalities (None), or `transfer` to a target."""

    kind: str
    source: str | None = None
    target: str | None = None

    @property
    def name(self) -> str:
        """As a string: probe/image, probe/all, transfer/image_to_text."""
        if self.target is not None and self.source is not None:
            return f"{self.kind}/{joined(self.source, self.target)}"
        if self == MAJORITY:
            return "probe/majority"
        return f"{self.kind}/{'all' if self.source is None else quoted(self.source)}"


MAJORITY = Probe("majority")  # always saying the commonest class of train


def label_codes(labels: Sequence[Any], count: int | None, what: str) -> np.ndarray:
    """(N,) labels as strings, "" where none is given."""
    values = np.array((labels if isinstance(labels, Codes) else Codes.of(labels, what)).texts())
    if count is not None and len(values) != count:
        raise DataError(f"{what}: expected {count} values, one per sample, got {len(values)}")
    if len(set(values) - {""}) < 2:
        raise DataError(f"{what}: expected at least two classes, got {sorted(set(values))[:5]}")
    return values


def probe_outcomes(
    test: Embeddings, y_test: np.ndarray, train: Embeddings, y_train: np.ndarray
) -> dict[Probe, np.ndarray]:
    """By probe, (N,) for the test samples: 1 where it was right, 0 where wrong, NaN where there was nothing to ask."""
    if train.modalities != test.modalities:
        raise DataError(f"train embeddings have modalities {train.modalities}, expected {test.modalities}")
    found: dict[Probe, np.ndarray] = {}
    labelled, asked = y_train != "", y_test != ""
    sources: dict[str | None, tuple[np.ndarray, np.ndarray]] = {None: _side_by_side(train)}
    targets: dict[str | None, tuple[np.ndarray, np.ndarray]] = {None: _side_by_side(test)}
    sources |= {name: (train[name].numpy(), train.present[m].numpy()) for m, name in enumerate(train.modalities)}
    targets |= {name: (test[name].numpy(), test.present[m].numpy()) for m, name in enumerate(test.modalities)}

    def right(classifier: Any, target: str | None) -> np.ndarray:
        x, there = targets[target]
        hits = np.full(len(x), np.nan)
        if (ask := there & asked).any():
            hits[ask] = classifier.predict(x[ask]) == y_test[ask]
        return hits

    for name, (x, present) in sources.items():
        use = present & labelled
        if len(set(y_train[use])) < 2:
            continue
        linear = fit_linear_probe(x[use], y_train[use])
        nearest = KNeighborsClassifier(min(NEIGHBOURS, int(use.sum())), weights="distance").fit(x[use], y_train[use])
        found[Probe("probe", name)], found[Probe("knn", name)] = right(linear, name), right(nearest, name)
        others = [] if name is None else [other for other in train.modalities if other != name]
        found |= {Probe("transfer", name, other): right(linear, other) for other in others}
    values, counts = np.unique(y_train[labelled], return_counts=True)
    found[MAJORITY] = np.where(asked, y_test == values[counts.argmax()], np.nan)
    return found


def fit_linear_probe(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Multinomial logistic regression on standardised features."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy has settled long before the weights
        return probe.fit(x, y)


def _side_by_side(embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """All modalities of a sample as one vector, zeros where one is missing."""
    m, n, d = embeddings.z.shape
    return embeddings.z.transpose(0, 1).reshape(n, m * d).numpy(), embeddings.present.any(0).numpy()


def recall_intervals(
    embeddings: Embeddings,
    resamples: int = 1000,
    seed: int = 0,
    *,
    groups: Sequence[Any] | np.ndarray | torch.Tensor | None = None,
) -> Directions[Mapping[int, Interval]]:
    """Bootstrap 95 % intervals of every recall by k, of the mean and the worst too: ends["image", "text"][1].low.

    Samples, or whole groups of them, are drawn with replacement as queries, the same ones for all pairs; the
    candidates stay.
    """
    embeddings = with_relevance(embeddings, groups)
    found = pair_outcomes(embeddings)
    table = _resampled_recall(np.stack([*found.values()]), units(embeddings), resamples, seed)
    low, high = np.nanpercentile(table, [2.5, 97.5], axis=0)
    ends = [{k: Interval(float(a), float(b)) for k, a, b in zip(KS, *row)} for row in zip(low, high)]
    return Directions(dict(zip(found, ends)), *ends[-2:])


def recall_differences(
    ours: Embeddings,
    theirs: Embeddings,
    *,
    k: int = 1,
    resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[Any] | np.ndarray | torch.Tensor | None = None,
) -> Directions[Difference]:
    """Recall@k of ours minus theirs, with a paired bootstrap 95 % interval, for each pair, the mean and the worst.

    Both must embed the same samples in the same order: each resample draws the same queries (groups of them, where
    there are groups) for both. Raises DataError where presence, ids, groups or values say that they do not.
    """
    ours, theirs = with_relevance(ours, groups), with_relevance(theirs, groups)
    check_same_samples(ours, theirs)
    ranks = [pair_outcomes(one) for one in (ours, theirs)]
    drawn, points = (
        [_resampled_recall(np.stack([*one.values()]), units(ours), count, seed, (k,))[..., 0] for one in ranks]
        for count in (resamples, None)
    )
    low, high = np.nanpercentile(drawn[0] - drawn[1], [2.5, 97.5], axis=0)
    point = (points[0] - points[1])[0]
    rows = [Difference(*map(float, row)) for row in zip(point, low, high)]
    return Directions(dict(zip(ranks[0], rows)), *rows[-2:])


def check_same_samples(ours: Embeddings, theirs: Embeddings) -> None:
    """DataError unless two embeddings are of the same samples in the same order, as far as they can tell."""
    said = "paired differences need embeddings of the same samples in the same order and modalities; "
    if ours.modalities != theirs.modalities or not torch.equal(ours.present, theirs.present):
        raise DataError(f"{said}got {ours!r} and {theirs!r}, which differ in who has what")
    if ours.ids is not None and theirs.ids is not None:
        mine, other = np.asarray(ours.ids).astype(str), np.asarray(theirs.ids).astype(str)
        if (differ := np.flatnonzero(mine != other)).size:
            first = differ[0]
            raise DataError(
                f"{said}{differ.size} of {len(ours)} ids differ, the first at row {first}: {str(mine[first])!r} and "
                f"{str(other[first])!r}. Bring both into one order with embeddings.take"
            )
    if (ours.groups is None) != (theirs.groups is None) or not np.array_equal(units(ours), units(theirs)):
        raise DataError(f"{said}their groups differ: pass groups=, which then hold for both")


def units(embeddings: Embeddings) -> np.ndarray:
    """(N,) which samples are drawn together, counted from 0."""
    if embeddings.groups is None:
        return np.arange(len(embeddings))
    alone = embeddings.groups.max(initial=-1) + 1 + np.arange(len(embeddings))
    return np.unique(np.where(embeddings.groups >= 0, embeddings.groups, alone), return_inverse=True)[1]


def pair_outcomes(embeddings: Embeddings) -> dict[Direction, np.ndarray]:
    """By pair that some sample has, (N,) ranks of each sample's first right answer, inf where it lacks either."""
    found = {pair: ranks_by_sample(embeddings, *pair) for pair in embeddings.pairs}
    return {pair: ranks for pair, ranks in found.items() if np.isfinite(ranks).any()}


def _resampled_recall(
    ranks: np.ndarray, unit: np.ndarray, resamples: int | None, seed: int, ks: Sequence[int] = KS
) -> np.ndarray:
    """(resamples, P + 2, K) recall at each k of (P, N) ranks, then the mean over pairs and the worst pair.

    Draws whole units; `resamples` None is the data as they are, once.
    """
    pairs, count = ranks.shape
    here = np.isfinite(ranks)
    hits = np.stack([here, *(ranks <= k for k in ks)], 1).reshape(-1, count).astype(np.float32)
    if (drawn := int(unit.max(initial=-1)) + 1) < count:
        hits = np.stack([np.bincount(unit, row, minlength=drawn) for row in hits]).astype(np.float32)
    rows = []
    for weights in _weights(drawn, resamples, seed):
        share = (weights @ hits.T).astype(np.float64).reshape(len(weights), pairs, -1)
        found = np.full((*share.shape[:2], len(ks)), np.nan)
        np.divide(share[..., 1:], share[..., :1], out=found, where=share[..., :1] > 0)
        rows.append(np.concatenate([found, found.mean(1, keepdims=True), found.min(1, keepdims=True)], 1))
    return np.concatenate(rows)


def _weights(count: int, resamples: int | None, seed: int) -> Iterator[np.ndarray]:
    """(some, count) at a time: how often each sample is drawn.

    float32 holds counts exactly up to 2^24 and multiplies at twice the rate. Counting drawn numbers, because numpy's
    multinomial takes ten times as long to draw the same distribution.
    """
    if resamples is None:
        yield np.ones((1, count), np.float32)
        return
    draw = np.random.default_rng(seed)
    block = max(1, DRAWN // count)
    for start in range(0, resamples, block):
        rows = range(start, min(start + block, resamples))
        yield np.stack([np.bincount(draw.integers(0, count, count), minlength=count) for _ in rows]).astype(np.float32)
