"""What an InfoNCE compares with what, and the ranks that share its rows: everything but the numbers with gradients.

Several ranks. Each holds some rows of the matrix, all columns, and calls infonce with

    query (M, n, D)            its own samples            first   the column of its row 0
    key (K, N, D)              everybody's, gathered      ranks   an object with sum(tensor) and max(tensor)
    query_present, key_present (M, N) and (K, N), everybody's

`ranks.sum` and `ranks.max` return the elementwise sum and maximum over all ranks (an all_reduce, which may work in
place). They are called in the forward pass only, outside autograd, in the same order with the same shapes on every
rank, T pairs: max of a () tensor, then sum of (T, N); where logits reach beyond what one exponential holds, max of (),
and in the careful form max and sum of (T, N); all float64. A rank returns its own samples' share of the means; added
over ranks they are what one rank would return for all. The backward pass does not communicate. It gives the gradient
of that total, if all ranks differentiate the same function of it: complete for the rank's own queries, and its rows'
part for ALL keys and for the temperature, still to be summed over ranks (reduce-scatter what came from an all-gather;
all-reduce the temperature's). Nothing of size n x N is held, but in small batches and as far as `memory` allows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from centrobind.errors import RunError
from centrobind.objectives.dense_infonce import dense_gradients

# Exponents that exp(logits) may reach, either sign. float32 ends at 88: the rest is for sums over N, and for products
# with the gradients that come in. Terms that underflow are below exp(-87 + 55) = 1e-14 of the sum they are missing
# from.
LARGEST = {torch.float32: 55.0, torch.float64: 550.0}

# Slopes this much smaller than a softmax of 1 become 0; a sum of a million of them is still below its rounding. Without
# it, at low temperatures most slopes are subnormal numbers, which CPUs multiply up to 60 times slower. Only where
# logits reach beyond MODEST can they be: it is one more pass over the slopes.
NEGLIGIBLE, MODEST = -60.0, 30.0  # exponents

LOG2E = math.log2(math.e)  # logits come out of their product as exponents of 2: exp2 takes a third of exp's time


class Ranks(Protocol):
    """Those who share the rows of the matrix; see the module's text."""

    def sum(self, x: Tensor) -> Tensor:
        """The elementwise sum of every rank's x, the same on all ranks."""

    def max(self, x: Tensor) -> Tensor:
        """The elementwise maximum of every rank's x, the same on all ranks."""


class OneRank:
    """Nobody to share with."""

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x


ALONE = OneRank()


@dataclass
class Comparison:
    """`pairs` of queries and keys, what is present of them, and which samples are no negatives of each other."""

    query_present: Tensor | None  # (M, N) bool; None where nothing is missing
    key_present: Tensor | None  # (K, N) bool, None where query_present is
    pairs: tuple[tuple[int, int], ...]  # T of (query, key)
    samples: int  # N, of all ranks
    groups: Tensor | None = None
    first: int = 0
    ranks: Ranks = ALONE
    memory: int = 0  # bytes of exponentials that the forward pass may leave to the backward pass

    def __post_init__(self) -> None:
        # How many samples have both: (T,), or one number for all pairs where nothing is missing.
        self.positives: int | Tensor = self.samples if self.complete else self.both().sum(1)

    @property
    def count(self) -> int | Tensor:
        """What sums over positives are divided by."""
        return self.positives.clamp(min=1) if isinstance(self.positives, Tensor) else max(1, self.positives)

    @property
    def complete(self) -> bool:
        """Whether it is known, without asking the device, that nothing is missing."""
        return self.query_present is None

    def with_presence(self, query: Tensor, key: Tensor) -> Comparison:
        """The same with everything marked as present, if nothing was marked."""
        if self.query_present is not None:
            return self
        there = [x.new_ones((), dtype=torch.bool).expand(len(x), self.samples) for x in (query, key)]
        return replace(self, query_present=there[0], key_present=there[1])

    def of_one_key(self, key: Tensor) -> tuple[Tensor, Comparison]:
        """If all keys are one and the same tensor (a centroid), that one and who is compared with it."""
        present = self.key_present
        if len(key) == 1 or key.stride(0) != 0 or (present is not None and present.stride(0) != 0):
            return key, self
        pairs = tuple((one, 0) for one, _ in self.pairs)
        return key[:1], replace(self, pairs=pairs, key_present=None if present is None else present[:1])

    def own(self, query: Tensor) -> slice:
        """The samples that this rank's rows are."""
        return slice(self.first, self.first + query.shape[1])

    def both(self) -> Tensor:
        """(T, N) bool: where there is a positive."""
        queries, keys = self.present()
        return torch.stack([queries[one] & keys[other] for one, other in self.pairs])

    def present(self) -> tuple[Tensor, Tensor]:
        """(M, N) and (K, N) bool; only where it is marked (see with_presence)."""
        assert self.query_present is not None and self.key_present is not None
        return self.query_present, self.key_present

    def same_group(self, rows: slice, cols: slice = slice(None)) -> Tensor | None:
        """(rows, cols) bool of samples: which are no negatives of each other; a sample and itself are a positive."""
        if self.groups is None:
            return None
        numbers = torch.arange(self.samples, device=self.groups.device)
        return (self.groups[rows, None] == self.groups[cols]) & (numbers[rows, None] != numbers[cols])

    def dense_gradients(self, query: Tensor, key: Tensor, temperature: Tensor, d_means: Tensor) -> list[Tensor | None]:
        """The gradients, with a graph of their own; RunError where another rank holds rows of the matrix."""
        if self.ranks is not ALONE:
            raise RunError(
                "second derivatives (create_graph=True) of a loss that several ranks share are not known: expected a "
                "backward pass without create_graph; compute a gradient penalty on one process"
            )
        present = self.with_presence(query, key).present()
        return dense_gradients(
            query, key, *present, temperature, d_means / self.count, pairs=self.pairs, groups=self.groups
        )


def exactly(x: Tensor) -> AbstractContextManager[object]:
    """Inside, numbers are computed in the type they have; entering autocast to leave it costs as much as a product."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
