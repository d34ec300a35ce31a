"""InfoNCE between modalities and their anchors, both ways, over whatever is present.

    InfoNCE(u -> v) = -mean_i log( exp(u_i . v_i / temperature) / sum_k exp(u_i . v_k / temperature) )

(van den Oord et al. 2018; both directions: Radford et al. 2021). Small batches are one matrix, larger ones are fused
(see tiled_infonce); the result is the same to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from centrobind.distributed import dividing
from centrobind.errors import DataError
from centrobind.objectives.dense_infonce import dense_infonce
from centrobind.objectives.tiled_infonce import ALONE, Ranks, fused_infonce

# Samples up to which one matrix is as fast as tiles, measured with 3, 4 and 12 pairs of 64 and 256 dimensions on a CPU:
# level at 128, from 256 on tiles are faster (up to 3 times there), because autograd's five matrices leave the caches.
DENSE_UP_TO = 128


class InfoNCE(NamedTuple):
    """Mean loss per row of queries, in nats, and over how many positives; 0 where there are none."""

    forward: Tensor  # (M,) each query among all keys
    backward: Tensor  # (M,) each key among all queries
    count: Tensor  # (M,) positives: samples that have both


def infonce(
    query: Tensor,
    key: Tensor,
    query_present: Tensor,
    key_present: Tensor,
    temperature: Tensor,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    groups: Tensor | None = None,
    first: int = 0,
    ranks: Ranks | None = None,
) -> InfoNCE:
    """Compare (M, N, D) queries with (M, N, D) keys of the same samples; `present` are (M, N) bool.

    A sample is a positive where it has both, a negative for all others with whatever it has; what is absent is
    neither, whatever its row holds. Differentiable in queries, keys and temperature (shape [1]); with
    create_graph=True, so that gradients have gradients, whole (N, N) matrices are held.

    `pairs`: [(2, 0), ...] compares query 2 with key 0, ..., instead of each with its own number; M is then the number
    of pairs, and nothing is copied. `groups`: (N,) integers; samples of one group are no negatives of each other.
    `ranks`: with whom the rows are shared. `query` is then (M, n, D), the samples from column `first` on, all else is
    everybody's, and `forward` and `backward` are this rank's share of the means, to be summed over ranks (see
    tiled_infonce). Without `ranks`, inside Team.dividing, all is everybody's, before and after. DataError where shapes
    do not fit; RunError from a backward pass with create_graph=True where ranks share the rows.
    """
    team = dividing()
    if ranks is None and team.size > 1:
        mine, how = team.part(key.shape[1]), {"pairs": pairs, "groups": groups, "ranks": team}
        share = infonce(query[:, mine], key, query_present, key_present, temperature, first=mine.start, **how)
        return InfoNCE(*team.sum(torch.stack([share.forward, share.backward])), share.count)
    if pairs is None:
        if len(query) != len(key):
            raise DataError(f"expected as many queries as keys, got {len(query)} and {len(key)}; or name the pairs=")
        pairs = [(m, m) for m in range(len(query))]
    _check_shapes(query, key, query_present, key_present, groups, first)
    one, other = (list(side) for side in zip(*pairs))
    count = (query_present[one] & key_present[other]).sum(1)
    if ranks is None and key.shape[1] <= DENSE_UP_TO:
        sums = dense_infonce(query, key, query_present, key_present, temperature, pairs=pairs, groups=groups)
    else:
        sums = fused_infonce(
            query,
            key,
            query_present,
            key_present,
            temperature,
            pairs=pairs,
            groups=groups,
            first=first,
            ranks=ranks or ALONE,
        )
    forward, backward = (total / count.clamp(min=1) for total in sums)
    return InfoNCE(forward, backward, count)


def _check_shapes(
    query: Tensor, key: Tensor, query_present: Tensor, key_present: Tensor, groups: Tensor | None, first: int
) -> None:
    samples, fits = key.shape[1], query.shape[0] > 0 and query.shape[2] == key.shape[2]
    fits = fits and query_present.shape == (len(query), samples) and key_present.shape == (len(key), samples)
    if not fits or not 0 <= first <= samples - query.shape[1]:
        raise DataError(
            f"expected (M, n, D) queries, (K, N, D) keys, (M, N) and (K, N) present and n samples from {first} on, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(query_present.shape)}, {tuple(key_present.shape)}"
        )
    if groups is not None and (groups.shape != (samples,) or groups.is_floating_point()):
        raise DataError(f"groups: expected ({samples},) integers, got {groups.dtype} of shape {tuple(groups.shape)}")
