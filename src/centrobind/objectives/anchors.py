"""Anchors: the point each modality of a sample is drawn to. Embeddings -> Embeddings.

Row m of the result is the anchor of modality m, and `present[m, i]` says whether sample i has one. Whatever an
objective aligns with it, the anchor is made from the *views* (augmented embeddings where there are any), so
that a modality never meets the very vector it is compared with. Absent embeddings are zeros, so sums skip them.

A new anchor is a function like these, and a row in `objectives.OBJECTIVES` (see table).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from centrobind.errors import DataError
from centrobind.types import Embeddings

Anchor = Callable[[Embeddings], Embeddings]

# On the diagonal of the Gram matrix of a projection. Where the others coincide the projection has a kink; the paper's
# 1e-8 lets the gradient there reach 1e4, 1e-6 keeps it below 1e3 and changes a projection by less than 1e-6.
RIDGE = 1e-6


def centroid(views: Embeddings) -> Embeddings:
    """The mean of the modalities that are present: CentroBind's dynamic anchor, the same for all of them.

    Not brought back to unit length, and gradients flow into it (Jeong et al., arXiv 2410.02086). A sample seen in
    one modality only has no anchor: its mean would be itself.
    """
    if views.complete and len(views.modalities) > 1:
        return views.with_z(views.z.mean(0).expand_as(views.z))
    return _mean(views, views.present.to(views.z.dtype))


def leave_one_out(views: Embeddings) -> Embeddings:
    """For each modality the mean of the *others* that are present: a centroid that never contains the target.

    Ours; OVA-IB (arXiv 2605.29900) projects on the span of the others instead. Cures self-leakage, see docs.
    """
    if views.complete and len(views.modalities) > 1:
        return views.with_z((views.z.sum(0) - views.z) / (len(views.modalities) - 1))
    others = views.present.sum(0) - views.present.long()
    mean = (views.z.sum(0) - views.z) / others.clamp(min=1)[..., None]
    return views.with_z(mean, others > 0)


def own_view(views: Embeddings) -> Embeddings:
    """Each modality's own augmented view: no other modality is heard (as in SimCLR, Chen et al. 2020)."""
    return views


def projection_on_others(views: Embeddings) -> Embeddings:
    """Each modality's own view, projected on the span of the others that are present (OVA-IB, arXiv 2605.29900).

    A (A'A + RIDGE)^-1 A' z_m with the others as the columns of A, through the small Gram matrix, in float64. Unlike
    leave_one_out it needs z_m itself, so it leaks: its positive similarity is how much of z_m the others can rebuild.
    """
    z = views.z.double()
    gram = torch.einsum("mnd,knd->nmk", z, z)
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    rows = []
    for m in range(len(z)):
        others = [k for k in range(len(z)) if k != m]
        inside = gram[:, others][:, :, others] + RIDGE * eye[: len(others), : len(others)]
        weights = torch.linalg.solve(inside, gram[:, others, m, None])  # an absent one is a zero row and gets 0
        rows.append(torch.einsum("nk,knd->nd", weights[..., 0], z[others]))
    present = views.present & (views.present.sum(0) >= 2)
    return views.with_z(torch.stack(rows).to(views.z.dtype), present)


def fixed(modality: str, *, frozen: bool = False) -> Anchor:
    """One modality for all the others, as ImageBind does with images (Girdhar et al. 2023); itself it has none.

    `frozen` lets no gradient into the anchor: its encoder stays what it was.
    """

    def anchor(views: Embeddings) -> Embeddings:
        return _one_for_all(views, views.index(modality), frozen)

    return anchor


def random_modality(views: Embeddings) -> Embeddings:
    """One modality for all the others, drawn anew at every call from torch's global generator.

    Of those that some sample has beside another, as far as there are any: another anchor would teach nothing.
    """
    able = (views.present & (views.present.sum(0) >= 2)).any(1).nonzero()[:, 0].tolist()
    able = able or list(range(len(views.modalities)))
    return _one_for_all(views, able[int(torch.randint(len(able), ()))], frozen=False)


def weighted(weights: Mapping[str, float]) -> Anchor:
    """A centroid in which modalities count differently; a modality that is not named counts 1.

    The weights of the present ones are brought to sum 1. DataError if one is negative or none is positive.
    """
    if any(weight < 0 for weight in weights.values()):
        raise DataError(f"weights must not be negative, got {dict(weights)}")

    def anchor(views: Embeddings) -> Embeddings:
        if unknown := set(weights) - set(views.modalities):
            raise DataError(f"weights name {sorted(unknown)}, expected some of {list(views.modalities)}")
        row = views.z.new_tensor([weights.get(name, 1.0) for name in views.modalities])
        if not (row > 0).any():
            raise DataError(f"at least one modality needs a weight above 0, got {dict(weights)}")
        return _mean(views, row[:, None] * views.present)

    return anchor


class LearnedWeights(nn.Module):
    """A centroid whose weights are learned with the encoders: softmax of one number per modality, 0 at the start."""

    def __init__(self, modalities: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(modalities))

    def forward(self, views: Embeddings) -> Embeddings:
        # Subtract the largest before exp: a plain exp of a large score overflows.
        weights = (self.scores - self.scores.detach().max()).exp()
        return _mean(views, weights[:, None] * views.present)


def _mean(views: Embeddings, weights: Tensor) -> Embeddings:
    """One weighted mean for all modalities, (M, N) weights, where two of them are present."""
    total = weights.sum(0)
    mean = torch.einsum("mn,mnd->nd", weights.to(views.z.dtype), views.z)
    mean = mean / torch.where(total > 0, total, 1)[:, None]
    known = (views.present.sum(0) >= 2) & (total > 0)
    return views.with_z(mean.expand_as(views.z), known.expand_as(views.present))


def _one_for_all(views: Embeddings, anchor: int, frozen: bool) -> Embeddings:
    z = views.z[anchor].detach() if frozen else views.z[anchor]
    others = torch.arange(len(views.modalities), device=z.device) != anchor
    return views.with_z(z.expand_as(views.z), views.present[anchor] & others[:, None])
