"""Which samples come when: splits, and an endless stream of batches that can be stopped and resumed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from centrobind.data.categories import Codes
from centrobind.data.samples import Samples
from centrobind.errors import DataError
from centrobind.types import Batch

# Samples to validate on. Ranking grows with their square: 20,000 took 7 s a time, and a tenth of a million would take
# ten times as long as training. With 4,096 a mean reciprocal rank is known to .01 or better.
MOST_VALIDATED = 4096
DRAWS = 10  # of a part to validate on, until there is a pair in it
SPLITS: Mapping[str, float] = {"train": 0.7, "valid": 0.1, "test": 0.2}


def assign_splits(samples: Samples, fractions: Mapping[str, float] = SPLITS, *, seed: int = 0) -> Samples:
    """Put every sample in a split at random; samples of one group stay together.

    Same seed, same count and same groups give the same splits. Raises DataError if the fractions do not
    add up to 1 or a split would be empty.
    """
    if any(part < 0 for part in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(f"split fractions must be positive and add up to 1, got {dict(fractions)}")
    unit = np.arange(len(samples)) if samples.group is None else samples.group.codes.copy()
    alone = unit < 0  # no group given: a unit of its own
    unit[alone] = unit.max(initial=0) + 1 + np.arange(alone.sum())
    units, unit = np.unique(unit, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(units))
    place = np.empty(len(units))
    place[order] = (np.arange(len(units)) + 0.5) / len(units)
    edges = np.cumsum(list(fractions.values()))[:-1]
    codes = Codes(np.searchsorted(edges, place, side="right")[unit].astype(np.int32), tuple(fractions))
    if empty := [name for name, part in fractions.items() if part > 0 and len(codes.where(name)) == 0]:
        raise DataError(f"{len(samples)} samples in {len(units)} groups are too few: split {empty} would be empty")
    return replace(samples, split=codes)


def fixed_sample(samples: Samples, most: int = MOST_VALIDATED, *, seed: int = 0) -> Samples:
    """At most `most` samples to validate on again and again, in their order: the same for the same data and seed.

    Drawn at random; half of them have two modalities, as far as there are that many.
    """
    if len(samples) <= most:
        return samples
    order = np.random.default_rng(seed).permutation(len(samples))
    paired = (samples.present.sum(0) >= 2)[order]
    sure, rest = order[paired][: most // 2], order[paired][most // 2 :]
    others = np.concatenate([rest, order[~paired]])
    others = np.random.default_rng([seed, 1]).permutation(others)[: most - len(sure)]
    return samples.take(np.sort(np.concatenate([sure, others])))


def train_and_valid(samples: Samples, *, valid: float = 0.1, seed: int = 0) -> tuple[Samples, Samples]:
    """The training samples and the ones to validate on, never touching test.

    Without a `valid` split, a part of `train` is set aside (whole groups); without any split, of everything. Of ten
    draws the first with which both parts have samples of two modalities, if there is one: without, there is nothing
    to learn or nothing to score. Raises DataError when either would be empty.
    """
    if samples.split is not None:
        train = samples.part("train")
        if samples.has("valid"):
            return train, samples.part("valid")
    else:
        train = samples
    for attempt in range(DRAWS):
        apart = assign_splits(train, {"train": 1 - valid, "valid": valid}, seed=seed + attempt * 2**32)
        learned, scored = apart.part("train"), apart.part("valid")
        if has_pairs(learned) and has_pairs(scored):
            return learned, scored
    return learned, scored


def has_pairs(samples: Samples) -> bool:
    """Whether any sample has two modalities."""
    return bool((samples.present.sum(0) >= 2).any())


@dataclass
class Sampler:
    """Every sample once an epoch, in an order drawn from (seed, epoch); its state is three numbers.

    With `positives`, (count,) bool, every batch holds at least `least` of them: others move to make room, and where
    there are too few for all batches, an epoch has fewer batches and leaves some of the others out.

    The batches of an epoch differ in size by one at most and never exceed `batch_size`, so that no epoch
    ends in a tiny batch with hardly a negative in it and no sample is dropped. `seen` counts the samples of the
    running epoch that were handed out, by all ranks together: any number of ranks can take over from it.
    """

    count: int
    batch_size: int
    seed: int = 0
    epoch: int = 0
    seen: int = 0
    positives: np.ndarray | None = None
    least: int = 1

    def __post_init__(self) -> None:
        if self.positives is not None and self.positives.sum() < self.least:
            raise DataError(f"expected {self.least} positives for every batch, got {self.positives.sum()} in all")
        if not 2 <= self.batch_size <= self.count:
            raise DataError(
                f"batch_size must lie between 2 and the {self.count} training samples, got {self.batch_size}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """As many as it takes, or as there are positives for."""
        batches = -(-self.count // self.batch_size)
        return batches if self.positives is None else min(batches, int(self.positives.sum()) // self.least)

    @property
    def per_epoch(self) -> int:
        """Samples that an epoch hands out."""
        return min(self.count, self.batches_per_epoch * self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        edges = np.linspace(0, self.per_epoch, self.batches_per_epoch + 1).astype(np.int64)
        while True:
            order = self._order(edges)
            while self.seen < self.per_epoch:
                start = self.seen
                stop = int(edges[np.searchsorted(edges, start, side="right")])
                self.seen = stop
                yield order[start:stop]
            self.epoch, self.seen = self.epoch + 1, 0

    def _order(self, edges: np.ndarray) -> np.ndarray:
        """The samples of the running epoch: a permutation, changed only as far as batches lack positives."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        if self.positives is None:
            return order
        positive = self.positives[order]
        if self.per_epoch < self.count:  # all positives, and the first of the others
            others = np.cumsum(~positive) <= self.per_epoch - positive.sum()
            order = order[positive | others]
            positive = self.positives[order]
        if (np.add.reduceat(positive.astype(np.int64), edges[:-1]) >= self.least).all():
            return order
        batches = len(edges) - 1
        dealt = np.flatnonzero(positive)[: batches * self.least]  # so many for each batch, the rest fills up
        rest = np.split(np.delete(order, dealt), np.cumsum(np.diff(edges) - self.least)[:-1])
        return np.concatenate([np.r_[own, more] for own, more in zip(order[dealt].reshape(batches, -1), rest)])

    def state(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "seen": self.seen}

    def place_after(self, batches: int) -> dict[str, int]:
        """The state that a sampler of this seed has after so many batches, counted from the first epoch."""
        if batches == 0:
            return {"seed": self.seed, "epoch": 0, "seen": 0}
        epoch, place = divmod(batches - 1, self.batches_per_epoch)
        edges = np.linspace(0, self.per_epoch, self.batches_per_epoch + 1).astype(np.int64)
        return {"seed": self.seed, "epoch": epoch, "seen": int(edges[place + 1])}

    def load_state(self, state: Mapping[str, int]) -> None:
        """DataError for numbers that no sampler of this many samples can have."""
        seed, epoch, seen = (state[key] for key in ("seed", "epoch", "seen"))
        if not all(type(value) is int for value in (seed, epoch, seen)):
            raise DataError(f"expected whole numbers for seed, epoch and seen, got {dict(state)}")
        if seed < 0 or epoch < 0 or not 0 <= seen <= self.per_epoch:
            raise DataError(f"expected a place within {self.count} samples, got {dict(state)}")
        self.seed, self.epoch, self.seen = seed, epoch, seen


class ReadAhead:
    """The sampler's batches, each read in a thread while the one before it is worked on.

    `state()` is the sampler's as of the last batch handed out: what was only read ahead is not yet done. One batch
    ahead is enough, because a step takes longer than a read, and costs the memory of one batch.
    """

    def __init__(self, sampler: Sampler, read: Callable[[np.ndarray], Batch]):
        self.sampler, self.read = sampler, read
        self._rows = iter(sampler)
        self._state = sampler.state()
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._next: Future[tuple[Batch, dict[str, int]]] = self._thread.submit(self._read_one)

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Batch:
        batch, self._state = self._next.result()
        self._next = self._thread.submit(self._read_one)
        return batch

    def _read_one(self) -> tuple[Batch, dict[str, int]]:
        batch = self.read(next(self._rows))
        return batch, self.sampler.state()

    def state(self) -> dict[str, int]:
        return self._state

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *error: Any) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
