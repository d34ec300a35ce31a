"""InfoNCE between modalities and their anchors, both ways, over whatever is present.

    InfoNCE(u -> v) = -mean_i log( exp(u_i . v_i / temperature) / sum_k exp(u_i . v_k / temperature) )

(van den Oord et al. 2018; both directions: Radford et al. 2021).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from centrobind.ranks import dividing


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
) -> InfoNCE:
    """Compare (M, N, D) queries with (M, N, D) keys of the same samples; `present` are (M, N) bool.

    A sample is a positive where it has both, a negative for all others with whatever it has; what is absent is
    neither, whatever its row holds. Differentiable in queries, keys and temperature (shape [1]). Inside
    `Team.dividing` each rank compares its rows with all columns; what comes back is of all rows.
    """
    team = dividing()
    mine = team.part(query.shape[1])
    # fp32 where exponentials live: in bfloat16 exp(1/0.05) is known to 2 digits.
    with torch.autocast(query.device.type, enabled=False):
        query, key = (x if x.dtype == torch.float64 else x.float() for x in (query, key))
        logits = query[:, mine] @ key.mT / temperature  # (M, n, N), n = N on a single rank
        ahead = logits.masked_fill(~key_present[:, None, :], -torch.inf).logsumexp(2)
        back = logits.masked_fill(~query_present[:, mine, None], -torch.inf).logsumexp(1)
        back = team.logsumexp(back)[:, mine]
        match = logits[:, :, mine].diagonal(dim1=1, dim2=2)
        both = query_present & key_present
        count = both.sum(1)
        # Select, never multiply: a row without candidates is -inf, and 0 * inf is NaN.
        sums = torch.stack([torch.where(both[:, mine], lse - match, 0).sum(1) for lse in (ahead, back)])
        forward, backward = team.sum(sums) / count.clamp(min=1)
    return InfoNCE(forward, backward, count)
