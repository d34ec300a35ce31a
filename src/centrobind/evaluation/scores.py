"""What an evaluation found, by direction: scores["image", "text"].recall[1], scores.mean, scores.worst, scores.probe.

Keys are the names of modalities as they are. They become strings for JSON and print only, with a name in quotes where
it could be taken for something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, NamedTuple, TypeVar

from centrobind.errors import DataError

KS = (1, 5, 10)
Direction = tuple[str, str]  # the modality that asks, the modality that is looked for
RESERVED = ("all", "majority", "mean", "worst")
QUOTED, PLAIN = r'"(?:[^"\\]|\\.)*"', r'[^"/]+?'
T = TypeVar("T")


class Interval(NamedTuple):
    """95 % of the resamples lie between these."""

    low: float
    high: float


class Difference(NamedTuple):
    """Ours minus theirs, with its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Retrieval:
    """How well one direction finds its right answers, or the mean or the worst of all directions.

    Recall, its chance level, MRR and mAP lie between 0 and 1; ranks count from 1. docs/evaluation.md says what is
    right.
    """

    recall: Mapping[int, float]  # by k: the share of queries with a right answer among the first k
    mrr: float  # mean of 1 / rank of the first right answer
    median_rank: float
    map: float | None = None  # mean average precision; None where every query of every direction has one right answer
    chance: Mapping[int, float] = field(default_factory=dict)  # by k: recall of a random order
    interval: Mapping[int, Interval] = field(default_factory=dict)  # by k: of recall, by bootstrap, if it was asked for
    queries: float | None = None  # samples that ask
    candidates: float | None = None  # different values among which they look
    right: float | None = None  # right answers of a query, on average

    def flat(self) -> dict[str, float]:
        """As strings: recall@1, recall@1/low, recall@1/high, chance@1, mrr, median_rank, map, queries and so on."""
        named: dict[str, float] = {f"recall@{k}": value for k, value in self.recall.items()}
        for k, ends in self.interval.items():
            named |= {f"recall@{k}/low": ends.low, f"recall@{k}/high": ends.high}
        named |= {f"chance@{k}": value for k, value in self.chance.items()}
        return named | {name: value for name in SINGLE if (value := getattr(self, name)) is not None}

    @classmethod
    def of_flat(cls, named: Mapping[str, float]) -> Retrieval:
        """What `flat` wrote, or an older version of it."""

        def by_k(pattern: str) -> dict[int, float]:
            return {int(hit[1]): value for key, value in named.items() if (hit := re.fullmatch(pattern, key))}

        low, high = by_k(r"recall@(\d+)/low"), by_k(r"recall@(\d+)/high")
        ends = {k: Interval(low[k], high[k]) for k in low if k in high}
        single = {name: named[name] for name in SINGLE if name in named}
        return cls(recall=by_k(r"recall@(\d+)"), chance=by_k(r"chance@(\d+)"), interval=ends, **single)


SINGLE = ("mrr", "median_rank", "map", "queries", "candidates", "right")


@dataclass(frozen=True, repr=False)
class Directions(Generic[T]):
    """Something for every direction that some sample has, for their mean, and for the worst of them."""

    pairs: Mapping[Direction, T]
    mean: T
    worst: T

    def __getitem__(self, direction: Direction) -> T:
        """Of one direction: in ["image", "text"] image asks and text is looked for. DataError if there is none."""
        if direction not in self.pairs:
            known = ", ".join(f"[{a!r}, {b!r}]" for a, b in self.pairs)
            got = list(direction) if isinstance(direction, tuple) else [direction]
            raise DataError(f"expected a direction, one of {known}, or .mean or .worst; got {got}")
        return self.pairs[direction]

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean {self.mean}, worst {self.worst}, {len(self)} directions)"


def mean_of(rows: Sequence[Retrieval]) -> Retrieval:
    """The mean of every number over directions."""
    return _joined(rows, fmean, fmean)


def worst_of(rows: Sequence[Retrieval]) -> Retrieval:
    """The lowest of every number over directions; of ranks, the highest."""
    return _joined(rows, min, max)


def _joined(
    rows: Sequence[Retrieval], over: Callable[[Iterable[float]], float], ranks: Callable[[Iterable[float]], float]
) -> Retrieval:
    first = rows[0]
    return Retrieval(
        recall={k: over([row.recall[k] for row in rows]) for k in first.recall},
        mrr=over([row.mrr for row in rows]),
        median_rank=ranks([row.median_rank for row in rows]),
        map=None if first.map is None else over([row.map for row in rows if row.map is not None]),
        chance={k: over([row.chance[k] for row in rows]) for k in first.chance},
    )


@dataclass(frozen=True)
class Geometry:
    """Where the modalities lie in the space."""

    alignment: Mapping[Direction, float]  # of a pair: mean squared distance of positives, 0 = perfect
    uniformity: Mapping[str, float]  # log of the mean of exp(-2 distance^2), lower = better spread (Wang & Isola 2020)
    gap: Mapping[Direction, float]  # of a pair: distance of the two means (Liang et al. 2022), 0 = none, at most 2

    @property
    def mean(self) -> dict[str, float]:
        """Of each of the three over modalities or pairs, where there are any."""
        named = {
            "alignment": list(self.alignment.values()),
            "uniformity": list(self.uniformity.values()),
            "gap": list(self.gap.values()),
        }
        return {name: fmean(values) for name, values in named.items() if values}

    def flat(self) -> dict[str, float]:
        """As strings: image_with_text/alignment, image/uniformity, mean/gap."""
        named = {f"{joined(a, b, '_with_')}/alignment": value for (a, b), value in self.alignment.items()}
        named |= {f"{quoted(name)}/uniformity": value for name, value in self.uniformity.items()}
        named |= {f"{joined(a, b, '_with_')}/gap": value for (a, b), value in self.gap.items()}
        return named | {f"mean/{name}": value for name, value in self.mean.items()}


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier on top of the embeddings is right, between 0 and 1."""

    by_modality: Mapping[str, float]
    all: float | None = None  # on all modalities of a sample side by side
    majority: float | None = None  # of always saying the commonest class: the chance level

    def __getitem__(self, name: str) -> float:
        """Of a modality, or ["all"]: of all of them, unless a modality is called that."""
        value = self.by_modality.get(name, self.all if name == "all" else None)
        if value is None:
            raise DataError(f"expected one of {[*self.by_modality, 'all']}, got {name!r}")
        return value

    def flat(self, kind: str) -> dict[str, float]:
        """As strings: probe/image, probe/all, probe/majority."""
        named = {f"{kind}/{quoted(name)}": value for name, value in self.by_modality.items()}
        single = {"all": self.all, "majority": self.majority}
        return named | {f"{kind}/{name}": value for name, value in single.items() if value is not None}


def quoted(name: str, joint: str = "_to_") -> str:
    """A name as part of a string key: in JSON's quotes if it could be taken for another name or for two."""
    plain = re.fullmatch(PLAIN, name) and name not in RESERVED and joint not in f"{name}_"
    return name if plain else json.dumps(name)


def joined(a: str, b: str, joint: str = "_to_") -> str:
    """Two names as one string, which `parted` takes apart again."""
    return f"{quoted(a, joint)}{joint}{quoted(b, joint)}"


def parted(key: str, joint: str = "_to_") -> tuple[str, str, str] | None:
    """The two names and the rest of a key such as image_to_text/recall@1; None if it is none."""
    hit = re.fullmatch(rf"({QUOTED}|{PLAIN}){joint}({QUOTED}|{PLAIN})(?:/(.*))?", key)
    return None if hit is None else (unquoted(hit[1]), unquoted(hit[2]), hit[3] or "")


def unquoted(name: str) -> str:
    """What `quoted` was given."""
    return str(json.loads(name)) if name.startswith('"') else name
