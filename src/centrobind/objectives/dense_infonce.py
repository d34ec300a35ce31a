"""InfoNCE by way of its whole matrix, left to autograd: for small batches, and for gradients that have gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_infonce(
    query: Tensor,
    key: Tensor,
    query_present: Tensor,
    key_present: Tensor,
    temperature: Tensor,
    *,
    pairs: Sequence[tuple[int, int]],
    groups: Tensor | None = None,
) -> Tensor:
    """The sums over positives of -log softmax, (2, T), each way, by way of the whole (T, N, N) matrix."""
    one, other = (list(side) for side in zip(*pairs))
    # fp32 where exponentials live: in bfloat16 exp(1/0.05) is known to 2 digits.
    with torch.autocast(query.device.type, enabled=False):
        # Select, never multiply: an absent row may be NaN, and 0 * NaN is NaN.
        query, key = (
            torch.where(present[..., None], x if x.dtype == torch.float64 else x.float(), 0)
            for x, present in ((query, query_present), (key, key_present))
        )
        has_query, has_key = query_present[one], key_present[other]
        logits = query[one] @ key[other].mT / temperature  # (T, N, N)
        if groups is not None:
            kin = (groups[:, None] == groups) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
            logits = logits.masked_fill(kin, -torch.inf)
        ahead = logits.masked_fill(~has_key[:, None, :], -torch.inf).logsumexp(2)
        back = logits.masked_fill(~has_query[:, :, None], -torch.inf).logsumexp(1)
        match = logits.diagonal(dim1=1, dim2=2)
        both = has_query & has_key
        # Again: a row without candidates is -inf, and 0 * inf is NaN.
        return torch.where(both, torch.stack([ahead, back]) - match, 0).sum(2)


def dense_gradients(
    query: Tensor,
    key: Tensor,
    query_present: Tensor,
    key_present: Tensor,
    temperature: Tensor,
    d_sums: Tensor,
    *,
    pairs: Sequence[tuple[int, int]],
    groups: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients of d_sums . dense_infonce(...) by query, key and temperature, differentiable themselves.

    Where tiles are what the loss was made of, this is what a backward pass with create_graph=True takes: it remembers
    every step of the matrix, so its memory is that of dense_infonce. Formulas for second derivatives tile by tile would
    spare that, but a third derivative would again be wrong without a word, and few batches need them.
    """
    # Aliases: a key that was made of the query must not carry the query's gradient a second time.
    aliases = [x.view_as(x) for x in (query, key, temperature)]
    sums = dense_infonce(aliases[0], aliases[1], query_present, key_present, aliases[2], pairs=pairs, groups=groups)
    return differentiable_gradients([sums], aliases, [d_sums])


def differentiable_gradients(
    values: Sequence[Tensor], inputs: Sequence[Tensor | None], d_values: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of d_values . values by each of the inputs, with a graph; None for those that need none."""
    needed = [x for x in inputs if x is not None and x.requires_grad]
    gradients = iter(torch.autograd.grad(values, needed, d_values, create_graph=True))
    return [next(gradients) if x is not None and x.requires_grad else None for x in inputs]
