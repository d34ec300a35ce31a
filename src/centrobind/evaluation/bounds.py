"""The theory of CentroBind as numbers of a trained binder: information bounds, their inequality, leak, dominance.

    I(u; v)  >=  log K - InfoNCE(u, v),        K candidates, in nats        (van den Oord et al. 2018)

holds in expectation for *any* critic that did not see the samples, hence at any temperature, and both ways. It can
never say more than log K, the ceiling. docs/theory.md says what each number means and what it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.evaluation.evaluate import units
from centrobind.evaluation.scores import joined
from centrobind.objectives import anchors
from centrobind.objectives.anchors import Anchor
from centrobind.progress import Watch, silent
from centrobind.seeds import seeded
from centrobind.types import Embeddings

# A factor of 1.4 to 2 apart: between neighbours a bound changes by a few hundredths of a nat. The last is so high that
# unrelated embeddings come out at 0 rather than below.
TEMPERATURES = (0.01, 0.014, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 1.0, 4.0)
MOST_SAMPLES = 2048  # half of them are candidates: a ceiling of log 1024 = 6.9 nats, and seconds rather than minutes


@dataclass(frozen=True)
class Bound:
    """A lower bound of one mutual information, in nats, with a bootstrap 95 % interval over samples."""

    nats: float
    low: float
    high: float
    ceiling: float  # log(candidates): no InfoNCE bound can say more
    temperature: float  # geometric mean of those that the two halves chose for each other
    samples: int


@dataclass(frozen=True)
class Bounds:
    """The three claims of CentroBind as numbers, each a Bound: by modality, by pair, and their means."""

    intra: Mapping[str, Bound]  # a modality with its own augmented view: what it keeps of itself
    inter: Mapping[tuple[str, str], Bound]  # a pair of modalities: what they share
    anchor: Mapping[str, Bound]  # a modality with its anchor: alignment of all
    others: Mapping[str, Bound]  # a modality with the centroid of the others: the same without self-matching
    mean: Mapping[str, Bound]  # of each of these four: "intra", "inter", "anchor", "others"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; a pair reads `image_with_name`, a name that could be taken for two in quotes."""
        named = {kind: getattr(self, kind) for kind in ("intra", "inter", "anchor", "others", "mean")}
        return {
            kind: {
                joined(key[0], key[1], "_with_") if isinstance(key, tuple) else key: vars(bound)
                for key, bound in found.items()
            }
            for kind, found in named.items()
        }


def information(one: Tensor, other: Tensor, temperature: float | Tensor) -> Tensor:
    """(N,) for each sample: log N minus its InfoNCE, mean of both directions, in nats. (N, D) and (N, D).

    All N samples are the candidates of each, so only hand in samples that have both: then positives and negatives
    come from one distribution and the bound needs no assumption on why anything is missing.
    """
    logits = one @ other.T / temperature
    lse = (logits.logsumexp(1) + logits.logsumexp(0)) / 2
    return math.log(len(one)) + logits.diagonal() - lse


def contributions(one: Tensor, other: Tensor, temperature: float | Tensor) -> Tensor:
    """(N,) what each sample contributes to the mean information, as query *and* as candidate; with the same mean.

    Pseudo-values of the jackknife (Tukey 1958): N times the bound less N - 1 times the bound without the sample,
    brought to the mean of the bound. `information` lets samples vary as queries only, as if candidates had not been
    drawn too: standard errors of its values are up to 17 % too small, those of these within 3 % of the truth.
    """
    logits = one @ other.T / temperature
    (rows, taken), (columns, also_taken) = _sums(logits), _sums(logits.T)
    whole = math.log(len(one)) + logits.diagonal() - (rows + columns) / 2
    return whole - (taken + also_taken - (taken + also_taken).mean()) / 2


def _sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) the logsumexp of each row, and how much those of all other rows would fall without each column."""
    lse = logits.logsumexp(1)
    share = (logits - lse[:, None]).exp_().clamp_(max=1 - 1e-6)
    return lse, -share.neg_().log1p_().fill_diagonal_(0).sum(0)


def bounds(
    z: Embeddings,
    views: Embeddings | None = None,
    *,
    anchor: Anchor = anchors.centroid,
    temperatures: Sequence[float] = TEMPERATURES,
    resamples: int = 1000,
    seed: int = 0,
    most: int = MOST_SAMPLES,
    watch: Watch = silent,
) -> Bounds:
    """Information bounds of held-out embeddings: within modalities, across pairs, with the anchor.

    `views` are embeddings of augmented inputs (embed_views); without them there is no `intra`, and anchors are made of
    z. At most `most` samples are used, evenly picked. Raises DataError when no pair has four samples in common.
    """
    used = _some(z, views, most)
    z, views = z.take(used), None if views is None else views.take(used)
    terms = list(_terms(z, views, anchor))
    half = torch.from_numpy(np.random.default_rng(seed).permutation(len(z)) % 2).bool()
    rows: list[_Row] = []
    for done, (kind, key, one, other, both) in enumerate(terms, start=1):
        if (row := _cross_fitted(kind, key, one, other, both, half, temperatures)) is not None:
            rows.append(row)
        watch(done * len(z) // len(terms))
    if not any(row.kind == "inter" for row in rows):
        raise DataError(
            f"no two of {list(z.modalities)} have four samples in common (two to choose a temperature on, two to "
            f"measure), of {len(z)}; expected some hundreds"
        )
    return _summarised(rows, units(z), resamples, seed)


@dataclass(frozen=True)
class _Row:
    kind: str
    key: Any
    tables: Tensor  # (T, N) nats that each sample contributes at each temperature, NaN where it lacks one of the two
    half: Tensor  # (N,) bool
    temperatures: Sequence[float]

    @property
    def there(self) -> np.ndarray:
        """(N,) the samples that are measured."""
        measured: np.ndarray = np.isfinite(self.tables[0].numpy())
        return measured

    def means(self, weights: np.ndarray) -> tuple[np.ndarray, float]:
        """(B,) nats under (B, N) weights, and the temperature of the first row: the geometric mean of both halves'.

        Each half is measured at the temperature that is best on the other one. The best of several bounds on the same
        samples would be too high: a maximum of noisy means is biased upwards. A single split would be as honest, but
        waste half of the samples. Each row of weights chooses anew, because the choice is drawn as well.
        """
        here, half = self.there, self.half.numpy()
        values = np.where(here, self.tables.numpy(), 0).T
        shares = [weights @ (here & part) for part in (half, ~half)]
        sums = [(weights * part) @ values for part in (half, ~half)]
        table = [total / np.maximum(share, 1)[:, None] for total, share in zip(sums, shares)]
        picked = [means.argmax(1) for means in table]
        rows = np.arange(len(weights))
        total = sums[0][rows, picked[1]] + sums[1][rows, picked[0]]
        share = shares[0] + shares[1]
        nats = np.divide(total, share, out=np.full(len(weights), np.nan), where=share > 0)
        return nats, math.sqrt(self.temperatures[picked[0][0]] * self.temperatures[picked[1][0]])

    @property
    def ceiling(self) -> float:
        """The mean over samples of the log of the number of candidates."""
        counts = [int((self.there & part).sum()) for part in (self.half.numpy(), ~self.half.numpy())]
        return sum(count * math.log(count) for count in counts) / sum(counts)


def _terms(
    z: Embeddings, views: Embeddings | None, anchor: Anchor
) -> Iterator[tuple[str, Any, Tensor, Tensor, Tensor]]:
    """What is compared with what: kind, key, (N, D), (N, D), and the (N,) samples that have both."""
    for m, name in enumerate(z.modalities):
        if views is not None:
            yield "intra", name, z.z[m], views.z[m], z.present[m]
    for a, b in pairs(z):
        yield "inter", (z.modalities[a], z.modalities[b]), z.z[a], z.z[b], z.present[a] & z.present[b]
    for kind, make in (("anchor", anchor), ("others", anchors.leave_one_out)):
        made = _made(make, z if views is None else views)
        for m, name in enumerate(z.modalities):
            yield kind, name, z.z[m], made.z[m], z.present[m] & made.present[m]


def _cross_fitted(
    kind: str, key: Any, one: Tensor, other: Tensor, both: Tensor, half: Tensor, temperatures: Sequence[float]
) -> _Row | None:
    """Measured in halves, so that each can choose a temperature for the other; None if one has under two samples."""
    parts = [both & half, both & ~half]
    if min(int(part.sum()) for part in parts) < 2:
        return None
    tables = torch.full((len(temperatures), len(both)), torch.nan, dtype=torch.float64)
    for part in parts:
        for row, temperature in zip(tables, temperatures):
            row[part] = contributions(one[part], other[part], temperature).double()
    return _Row(kind, key, tables, half, temperatures)


def _summarised(rows: Sequence[_Row], unit: np.ndarray, resamples: int, seed: int) -> Bounds:
    """Means and intervals. The same samples (whole units of them, where there are groups) are drawn for all rows, with
    replacement, and their contributions averaged: bounds of the drawn samples themselves would be too low, because a
    sample drawn twice is its own negative."""
    there = np.stack([row.there for row in rows])
    count = int(unit.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = np.concatenate([np.ones((1, count)), drawn])[:, unit]
    nats, temperatures = zip(*(row.means(weights) for row in rows))
    means = np.stack(nats, 1)

    def bound(picked: Sequence[int]) -> Bound:
        first, *rest = means[:, picked].mean(1)
        low, high = np.nanpercentile(rest, [2.5, 97.5]) if resamples > 0 else (math.nan, math.nan)
        return Bound(
            nats=float(first),
            low=float(low),
            high=float(high),
            ceiling=float(np.mean([rows[n].ceiling for n in picked])),
            temperature=math.exp(np.mean([math.log(temperatures[n]) for n in picked])),
            samples=int(there[picked].any(0).sum()),
        )

    by_kind: dict[str, list[int]] = {kind: [] for kind in ("intra", "inter", "anchor", "others")}
    for n, row in enumerate(rows):
        by_kind[row.kind].append(n)
    single = {kind: {rows[n].key: bound([n]) for n in picked} for kind, picked in by_kind.items()}
    return Bounds(**single, mean={kind: bound(picked) for kind, picked in by_kind.items() if picked})


@dataclass(frozen=True)
class Slack:
    """Both sides of the inequality for one modality, in nats at one temperature; `slack` is never negative."""

    anchored: float  # I_NCE(z_m; a)
    intra: float  # I_NCE(z_m; z'_m)
    inter: float  # mean over k != m of I_NCE(z_m; z'_k)
    slack: float  # anchored minus the mean of the M pairwise ones


def slack(z: Embeddings, views: Embeddings, temperature: float, *, most: int = MOST_SAMPLES) -> dict[str, Slack]:
    """How much more the centroid says than the pairs that it is the mean of, for each modality.

        I_NCE(z_m; a)  >=  (1/M) [ I_NCE(z_m; z'_m) + sum over k != m of I_NCE(z_m; z'_k) ],   a = (1/M) sum_k z'_k

    because log-sum-exp is convex in the logits. Needs one temperature, the same candidates everywhere and a centroid
    that is not brought back to unit length; nothing of the data. Only samples with every modality count, because
    otherwise candidates are means of different modalities and it can fail; DataError with fewer than two. The other
    direction is false: a large left side certifies neither part on the right.
    """
    used = _some(z, views, most)
    z, views = z.take(used), views.take(used)
    complete = z.present.all(0)
    if int(complete.sum()) < 2:
        raise DataError(f"{int(complete.sum())} of {len(z)} samples have every modality; the inequality needs two")
    one, other = z.z[:, complete], views.z[:, complete]
    centre, count = other.mean(0), len(other)
    found = {}
    for m, name in enumerate(z.modalities):
        pairwise = [information(one[m], other[k], temperature).mean().item() for k in range(count)]
        anchored = information(one[m], centre, temperature).mean().item()
        inter = (sum(pairwise) - pairwise[m]) / (count - 1)
        found[name] = Slack(anchored, pairwise[m], inter, anchored - sum(pairwise) / count)
    return found


@dataclass(frozen=True)
class Dominance:
    """How much of the anchor is one modality's; shares over modalities, 1/M when all count the same."""

    variance: float  # of the anchor's variance
    gradient: float  # of the gradient that reaches the anchor, from this modality's loss


def dominance(
    anchor: Anchor, z: Embeddings, views: Embeddings, temperature: float, *, most: int = MOST_SAMPLES
) -> dict[str, Dominance]:
    """The share of each modality in the variance of the anchor, and of each modality's loss in its gradient.

    Variance: cov(a - a without k, a) / var(a), summed over dimensions and over the anchors of all modalities; for a
    mean the shares add up to 1, as var(a) = sum_k cov(w_k z'_k, a), for others they are brought to that. A share is
    negative when a modality is anticorrelated with the rest. Gradient: mean length of d sym(z_m, a_m) / d a_m, over
    samples.
    """
    used = _some(z, views, most)
    z, views = z.take(used), views.take(used)
    whole = _made(anchor, views)
    parts, pulls = [], []
    for k in range(len(z.modalities)):
        rest = _made(anchor, _without(views, k))
        rows = [(whole.z[m] - rest.z[m], whole.z[m], here) for m, here in enumerate(whole.present)]
        parts.append(sum(_covariance(part[here], all_[here]) for part, all_, here in rows))
        pulls.append(_pull(z.z[k], whole.z[k], z.present[k] & whole.present[k], temperature))
    # An anchor that never moves or a loss of zero has no shares.
    shares = [[value / (sum(values) or 1.0) for value in values] for values in (parts, pulls)]
    return {name: Dominance(*row) for name, row in zip(z.modalities, zip(*shares))}


def leaks(anchor: Anchor, z: Embeddings, views: Embeddings) -> dict[str, float]:
    """For each modality, the share of its positive similarities z_m . a_m that its own view puts into the anchor.

    1/M for perfectly aligned modalities under a centroid, near 1 for unrelated ones, 0 for an anchor that leaves its
    own modality out. Modalities without an anchor are left out. `anchored.leak` is the mean of these, each weighted by
    its similarity.
    """
    whole = _made(anchor, views)
    found = {}
    for m, name in enumerate(z.modalities):
        both = z.present[m] & whole.present[m]
        if both.any():
            rest = _made(anchor, _without(views, m))
            positive, without = ((z.z[m] * made.z[m]).sum(-1)[both].double().sum() for made in (whole, rest))
            found[name] = float((positive - without) / positive) if positive != 0 else 0.0
    return found


def pairs(z: Embeddings) -> list[tuple[int, int]]:
    """Every pair of modalities once, by row."""
    return [(a, b) for a in range(len(z.modalities)) for b in range(a + 1, len(z.modalities))]


def _some(z: Embeddings, views: Embeddings | None, most: int) -> np.ndarray:
    """At most `most` rows of z, evenly picked; DataError if the views are not of the same samples."""
    if views is not None and (views.modalities != z.modalities or views.z.shape != z.z.shape):
        raise DataError(
            f"views must have the modalities and shape of z, {list(z.modalities)} {tuple(z.z.shape)}, "
            f"got {list(views.modalities)} {tuple(views.z.shape)}"
        )
    return np.arange(len(z)) if len(z) <= most else np.linspace(0, len(z) - 1, most).astype(np.int64)


def _made(anchor: Anchor, views: Embeddings) -> Embeddings:
    """The anchors, without gradients; one that draws draws the same every time."""
    with torch.no_grad(), seeded(0):
        return anchor(views)


def _without(views: Embeddings, k: int) -> Embeddings:
    """Modality k masked: still counted, but zero. (Absent, it would give its weight to the others.)"""
    return views.with_z(views.z.index_fill(0, torch.tensor([k], device=views.z.device), 0))


def _covariance(x: Tensor, y: Tensor) -> float:
    """Summed over dimensions."""
    x, y = x.double(), y.double()
    return float(((x - x.mean(0)) * (y - y.mean(0))).sum(1).mean()) if len(x) else 0.0


def _pull(z: Tensor, made: Tensor, both: Tensor, temperature: float) -> float:
    """Mean length over samples of the gradient of their InfoNCE with respect to the anchors."""
    if not both.any():
        return 0.0
    with torch.enable_grad():
        free = made[both].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-information(z[both].detach(), free, temperature).sum(), free)
    return float(gradient.norm(dim=1).mean())
