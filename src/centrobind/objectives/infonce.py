"""InfoNCE between modalities and their anchors, both ways, over whatever is present.

    InfoNCE(u -> v) = -mean_i log( exp(u_i . v_i / temperature) / sum_k exp(u_i . v_k / temperature) )

(van den Oord et al. 2018; both directions: Radford et al. 2021). Small batches are one matrix per pair, larger ones are
made of tiles; the result is the same to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from centrobind.distributed import dividing
from centrobind.errors import DataError
from centrobind.objectives.batched_infonce import WHOLE, batched_infonce
from centrobind.objectives.comparison import ALONE, Comparison, Ranks
from centrobind.objectives.tiled_infonce import tiled_infonce

# Bytes of exponentials that are kept for the backward pass, by default. On a CPU, so that a loss stays below 64 MB.
MEMORY = {"cpu": 48 * 2**20, "other": 2**30}
WORTH_KEEPING = 1 / 8  # a smaller share of them saves less than 3 % of the time, and would cost all of MEMORY


@dataclass(frozen=True)
class InfoNCE:
    """Mean loss per row of queries, in nats, and over how many positives; 0 where there are none."""

    means: Tensor  # (2, M) forward and backward
    positives: int | Tensor  # (M,) samples that have both; one number where that is all of them, in all modalities

    @property
    def count(self) -> Tensor:
        """(M,) positives"""
        if isinstance(self.positives, Tensor):
            return self.positives
        return torch.full((self.means.shape[1],), self.positives, device=self.means.device)

    @property
    def forward(self) -> Tensor:
        """(M,) each query among all keys"""
        return self.means[0]

    @property
    def backward(self) -> Tensor:
        """(M,) each key among all queries"""
        return self.means[1]


def infonce(
    query: Tensor,
    key: Tensor,
    query_present: Tensor | None,
    key_present: Tensor | None,
    temperature: Tensor,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    groups: Tensor | None = None,
    first: int = 0,
    ranks: Ranks | None = None,
    memory: int | None = None,
    held: int = 0,
) -> InfoNCE:
    """Compare (M, N, D) queries with (M, N, D) keys of the same samples; `present` are (M, N) bool, None where
    nothing is missing.

    A sample is a positive where it has both, a negative for all others with whatever it has; what is absent is
    neither, whatever its row holds. Differentiable in queries, keys and temperature (shape [1]); with
    create_graph=True, so that gradients have gradients, whole (N, N) matrices are held.

    `pairs`: [(2, 0), ...] compares query 2 with key 0, ..., instead of each with its own number; M is then the number
    of pairs, and nothing is copied. `groups`: (N,) integers; samples of one group are no negatives of each other.
    `memory`: bytes that may be held from the forward to the backward pass, besides a few numbers per sample, so that
    less is computed again; by default 48 MiB on a CPU, 1 GiB on a GPU, less the bytes that the caller has `held`.
    `ranks`: with whom the rows are shared. `query` is then (M, n, D), the samples from column `first` on, all else is
    everybody's, and the means are this rank's share, to be summed over ranks (see comparison). Without `ranks`, inside
    Team.dividing, all is everybody's, before and after. DataError where shapes do not fit; RunError from a backward
    pass with create_graph=True where ranks share the rows.
    """
    team = dividing()
    if ranks is None and team.size > 1:
        mine = team.part(key.shape[1])
        share = infonce(
            query[:, mine],
            key,
            query_present,
            key_present,
            temperature,
            pairs=pairs,
            groups=groups,
            first=mine.start,
            ranks=team,
            memory=memory,
            held=held,
        )
        return InfoNCE(team.sum(share.means), share.positives)
    if pairs is None:
        if len(query) != len(key):
            raise DataError(f"expected as many queries as keys, got {len(query)} and {len(key)}; or name the pairs=")
        pairs = [(m, m) for m in range(len(query))]
    if (query_present is None) != (key_present is None):
        query_present, key_present = (
            x.new_ones((), dtype=torch.bool).expand(len(x), key.shape[1]) if present is None else present
            for x, present in ((query, query_present), (key, key_present))
        )
    _check_shapes(query, key, query_present, key_present, groups, first)
    if memory is None:
        memory = default_memory(query, key, len(pairs), held)
    comparison = Comparison(
        query_present,
        key_present,
        tuple(pairs),
        key.shape[1],
        groups,
        first,
        ranks or ALONE,
        memory=memory if torch.is_grad_enabled() else 0,
    )
    means = None
    if len(pairs) * key.shape[1] ** 2 <= WHOLE:
        means = batched_infonce(query, key, temperature, comparison)
    if means is None:
        means = tiled_infonce(query, key, temperature, comparison)
    return InfoNCE(means, comparison.positives)


def default_memory(query: Tensor, key: Tensor, pairs: int, held: int = 0) -> int:
    """Bytes of exponentials to keep where nobody has said how many: none, if that would be few of them."""
    room = max(0, MEMORY.get(query.device.type, MEMORY["other"]) - held)
    return room if room >= WORTH_KEEPING * 4 * pairs * query.shape[1] * key.shape[1] else 0


def _check_shapes(
    query: Tensor,
    key: Tensor,
    query_present: Tensor | None,
    key_present: Tensor | None,
    groups: Tensor | None,
    first: int,
) -> None:
    samples, fits = key.shape[1], query.shape[0] > 0 and query.shape[2] == key.shape[2]
    for x, present in ((query, query_present), (key, key_present)):
        fits = fits and (present is None or present.shape == (len(x), samples))
    if not fits or not 0 <= first <= samples - query.shape[1]:
        shapes = [None if x is None else tuple(x.shape) for x in (query, key, query_present, key_present)]
        raise DataError(
            f"expected (M, n, D) queries, (K, N, D) keys, (M, N) and (K, N) present and n samples from {first} on, got "
            + ", ".join(map(str, shapes))
        )
    if groups is not None and (groups.shape != (samples,) or groups.is_floating_point()):
        raise DataError(f"groups: expected ({samples},) integers, got {groups.dtype} of shape {tuple(groups.shape)}")
