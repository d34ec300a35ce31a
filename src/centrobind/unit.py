"""Unit length: one row's, and that of many tensors, straight into the one stack that everything else works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Below this length a vector counts as zero. F.normalize's own 1e-12 would let the gradient of a
# collapsed encoder reach 1e12; 1e-6 bounds it and changes no vector of ordinary size.
UNIT_EPS = 1e-6

# Numbers up to which a copy of all tensors costs less than going through them one after the other.
FEW = 2**16


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in float32 (half precision cannot hold a norm to more than 3 digits)."""
    return F.normalize(x.float() if x.dtype != torch.float64 else x, dim=-1, eps=UNIT_EPS)


def unit_stack(tensors: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
    """(M, N, D): the rows of M tensors (N, D) at unit length, zeros where (M, N) `present` is False.

    What unit(torch.where(present, torch.stack(tensors), 0)) gives, gradients included, with one (M, N, D) where that
    holds four: the tensors are there in any case, so the backward pass reads them again.
    """
    z: Tensor = _UnitStack.apply(present, *tensors)  # type: ignore[no-untyped-call]
    return z


class _UnitStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, present: Tensor | None, *tensors: Tensor) -> Tensor:
        dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
        z = torch.empty((len(tensors), *tensors[0].shape), dtype=dtype, device=tensors[0].device)
        ctx.together = z.numel() <= FEW
        parts, rows = ((torch.stack(tensors),), (z,)) if ctx.together else (tensors, z.unbind())
        lengths = []
        for x, row in zip(parts, rows):
            wide = x if x.is_floating_point() else x.to(dtype)
            lengths.append(torch.linalg.vector_norm(wide, dim=-1, keepdim=True, dtype=dtype).clamp_(min=UNIT_EPS))
            torch.div(wide, lengths[-1], out=row)
        if present is not None:
            z.masked_fill_(~present[..., None], 0)  # select, never multiply: an absent row may be NaN
        ctx.save_for_backward(*tensors, *lengths, *(parts if ctx.together else ()))
        ctx.present = present
        return z

    @staticmethod
    def backward(ctx: Any, d_z: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad) - 1
        tensors, rest = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if torch.is_grad_enabled():  # create_graph=True: in steps that autograd can differentiate again
            return None, *_differentiable(tensors, ctx.present, d_z)
        if ctx.together:
            lengths, stacked = rest
            d_x = _across(stacked, lengths, d_z, ctx.present)
            return None, *(d.to(x.dtype) for d, x in zip(d_x, tensors))
        there = [None] * count if ctx.present is None else ctx.present
        whole = zip(tensors, rest, d_z, there, ctx.needs_input_grad[1:])
        return None, *(
            _across(x, length, d, here).to(x.dtype) if needed else None for x, length, d, here, needed in whole
        )


def _across(x: Tensor, length: Tensor, d: Tensor, present: Tensor | None) -> Tensor:
    """The gradient by x: what of d is across x, over its length; all of d where x counts as zero."""
    row = torch.div(x, length)
    along = (row * d).sum(-1, keepdim=True).masked_fill_(length <= UNIT_EPS, 0)
    across = torch.sub(d, row.mul_(along), out=row).div_(length)
    return across if present is None else across.masked_fill_(~present[..., None], 0)


def _differentiable(tensors: Sequence[Tensor], present: Tensor | None, d_z: Tensor) -> list[Tensor | None]:
    aliases = [x.view_as(x) for x in tensors]
    z = torch.stack(aliases)
    z = unit(z if present is None else torch.where(present[..., None], z, 0))
    needed = [x for x in aliases if x.requires_grad]
    gradients = iter(torch.autograd.grad(z, needed, d_z, create_graph=True))
    return [next(gradients) if x.requires_grad else None for x in aliases]
