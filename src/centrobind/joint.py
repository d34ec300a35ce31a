"""Joint objectives: the score of a whole tuple of modalities, instead of pairs with an anchor. The peers.

All of them need complete tuples, so they learn from the samples in which every modality is present. Each compares
one modality of z with the tuple of the others' views, in turn, and averages over which one it is, so that none is
an anchor; the released code of GRAM and TRIANGLE fixes it to text. Everything is O(N^2) in memory, nothing O(N^2 D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from centrobind.anchors import leave_one_out, projection_on_others
from centrobind.errors import DataError
from centrobind.losses import AnchorInfoNCE, Loss, Objective, intra_and_inter
from centrobind.types import Embeddings

# Added under square roots and to the diagonal of Gram matrices. At perfect alignment a volume is 0 and its root has
# no slope (GRAM's released code gives NaN there); with 1e-6 the slope is at most 500.
EPS = 1e-6


class TupleInfoNCE(Objective):
    """InfoNCE both ways between one modality and the tuple of the others, averaged over which one it is."""

    def __init__(self, *, temperature: float, learn_temperature: bool, label_smoothing: float = 0.0):
        super().__init__(temperature, learn_temperature)
        self.label_smoothing = label_smoothing

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        """(N, K) scores of N candidates (N, D) against K tuples (M - 1, K, D)."""
        raise NotImplementedError

    def compare(self, z: Embeddings, views: Embeddings | None) -> Loss:
        views = z if views is None else views
        complete = complete_samples(z)
        one, other = z.z[:, complete], views.z[:, complete]
        temperature = self.temperature()
        terms = {}
        for m, name in enumerate(z.modalities):
            logits = self.logits(one[m], torch.cat([other[:m], other[m + 1 :]])) / temperature
            target = torch.arange(len(logits), device=logits.device)
            terms[f"{name}/to_tuple"] = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
            if self.both_ways:
                terms[f"{name}/from_tuple"] = F.cross_entropy(logits.T, target, label_smoothing=self.label_smoothing)
        return Loss(torch.stack(list(terms.values())).mean(), lambda: measure(z, views, temperature, terms))

    both_ways = True

    def logits(self, one: Tensor, others: Tensor) -> Tensor:
        """(N, N) scores while training; the positives are on the diagonal."""
        return self.similarity(one, others)


class Symile(TupleInfoNCE):
    """InfoNCE on the multilinear inner product sum_d prod_m z_m,d (Saporta et al. 2024, arXiv 2411.01053).

    Negatives are as in their package: each of the other modalities is shuffled on its own, one way only. Products of
    unit vectors shrink with D; we multiply by D^((M-2)/2), so that a temperature means the same as for a cosine.
    """

    both_ways = False

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False):
        super().__init__(temperature=temperature, learn_temperature=learn_temperature)

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        return multilinear_scale(one, others) * one @ others.prod(0).T

    def logits(self, one: Tensor, others: Tensor) -> Tensor:
        shuffled = [other[torch.randperm(len(other), device=other.device)] for other in others]
        negative = one @ torch.stack(shuffled).prod(0).T
        positive = (one * others.prod(0)).sum(1)
        return multilinear_scale(one, others) * torch.where(
            torch.eye(len(one), dtype=torch.bool, device=one.device), positive[:, None], negative
        )


class GRAM(TupleInfoNCE):
    """Minus the volume that a tuple spans, sqrt(det of its Gram matrix) (Cicchetti et al. 2025, arXiv 2412.11959).

    The determinant comes from the small matrix of the others: det G = det K (1 - g' K^-1 g), in float64 with EPS on
    the diagonal. We leave out their matching loss on a cross-encoder, gather with gradients, and average over which
    modality faces the tuple (theirs: text). Degenerate where two of the others coincide: every volume is 0.
    """

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False, label_smoothing: float = 0.1):
        super().__init__(temperature=temperature, learn_temperature=learn_temperature, label_smoothing=label_smoothing)

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        lower = torch.linalg.cholesky(_gram(others))  # (K, M-1, M-1)
        inner = torch.einsum("nd,mkd->kmn", one, others).double()
        inside = torch.linalg.solve_triangular(lower, inner, upper=False).square().sum(1)  # (K, N)
        rest = (one.square().sum(1).double() + EPS - inside).clamp(min=0)
        det = lower.diagonal(dim1=1, dim2=2).square().prod(1)[:, None] * rest
        return -(det + EPS).sqrt().T.to(one.dtype)


class TRIANGLE(TupleInfoNCE):
    """Minus the area of the triangle of three modalities (Grassucci et al., NeurIPS 2025). Exactly three.

    Area = sqrt(|u|^2 |w|^2 - (u.w)^2) / 2 with u = x - y, w = x - y', as in the paper; their code drops the root and
    squares the area. From dot products alone, (u.w)_ij = 1 - x_i.y_j - x_i.y'_j + y_j.y'_j. Degenerate where the
    other two coincide: every area is 0.
    """

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False, label_smoothing: float = 0.1):
        super().__init__(temperature=temperature, learn_temperature=learn_temperature, label_smoothing=label_smoothing)

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        if len(others) != 2:
            raise DataError(f"triangle needs exactly three modalities, got {len(others) + 1}")
        first, second = (one @ other.T for other in others)  # (N, K)
        own = one.square().sum(1, keepdim=True)
        sides = [other.square().sum(1) for other in others]
        u = own + sides[0] - 2 * first
        w = own + sides[1] - 2 * second
        both = own - first - second + (others[0] * others[1]).sum(1)
        return -((u * w - both.square()).clamp(min=0) + EPS).sqrt() / 2


class OVAIB(AnchorInfoNCE):
    """One versus all: InfoNCE with the projection on the others' span + beta |z_m - mean of the others|^2.

    Li et al. 2026, arXiv 2605.29900, eq. for OVA-IB; both ways and from views, as all our anchors.
    """

    def __init__(self, *, beta: float = 1.0, temperature: float = 0.1, learn_temperature: bool = False):
        super().__init__(projection_on_others, temperature=temperature, learn_temperature=learn_temperature)
        self.beta = beta

    def compare(self, z: Embeddings, views: Embeddings | None, groups: Tensor | None = None) -> Loss:
        aligned = super().compare(z, views, groups)
        others = leave_one_out(z if views is None else views)
        both = z.present & others.present
        distance = (z.z - others.z).square().sum(2)
        closeness = torch.where(both, distance, 0).sum() / both.sum().clamp(min=1)
        total = aligned.total + self.beta * closeness
        return Loss(total, lambda: {**aligned.measure(), "closeness": float(closeness)})

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        """|projection of the candidate on the tuple's span|^2, (N, K)."""
        lower = torch.linalg.cholesky(_gram(others))
        inner = torch.einsum("nd,mkd->kmn", one, others).double()
        return torch.linalg.solve_triangular(lower, inner, upper=False).square().sum(1).T.to(one.dtype)


class PMRL(Objective):
    """The leading singular value of [z_1 .. z_M] above the rest, and leading directions apart (arXiv 2507.17343).

    Cross entropy of the singular values (class: the largest) and of u_i . u_j over samples, at one temperature. Both
    come from the M x M Gram matrix, in float64; u_i is turned towards the mean of its sample, because an eigenvector
    has no sign (44 % of them point away in the released code). We leave out their matching loss.
    """

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False):
        super().__init__(temperature, learn_temperature)

    def compare(self, z: Embeddings, views: Embeddings | None) -> Loss:
        complete = complete_samples(z)
        temperature = self.temperature()
        terms = {}
        for label, part in (("z", z), ("views", views)):
            if part is not None:
                values, leading = leading_direction(part.z[:, complete])
                target = torch.arange(len(leading), device=leading.device)
                terms[f"{label}/spectrum"] = F.cross_entropy(values / temperature, torch.zeros_like(target))
                terms[f"{label}/instances"] = F.cross_entropy(leading @ leading.T / temperature, target)
        total = 2 * torch.stack(list(terms.values())).mean()  # the sum of the two losses, averaged over views
        return Loss(total, lambda: measure(z, z if views is None else views, temperature, terms))

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        """The leading singular value of candidate and tuple together, (N, K)."""
        rows = []
        for candidate in one:
            together = torch.cat([candidate.expand_as(others[:1]), others])
            rows.append(torch.linalg.eigvalsh(_gram(together))[:, -1])
        return torch.stack(rows).clamp(min=0).sqrt().to(one.dtype)


def complete_samples(z: Embeddings) -> Tensor:
    """(N,) bool: the samples with every modality; DataError if there are not two."""
    complete = z.present.all(0)
    if complete.sum() < 2:
        raise DataError(
            f"nothing to learn from in this batch: joint objectives need at least two samples with all "
            f"{len(z.modalities)} modalities, got {int(complete.sum())}"
        )
    return complete


def measure(z: Embeddings, views: Embeddings, temperature: Tensor, terms: dict[str, Tensor]) -> dict[str, float]:
    """The parts of a joint objective: its own terms, and intra and inter as for all objectives."""
    return {
        **{name: float(term) for name, term in terms.items()},
        **intra_and_inter(z, views, temperature),
        "leak": 0.0,
        "temperature": temperature.item(),
    }


def multilinear_scale(one: Tensor, others: Tensor) -> float:
    """D^((M-2)/2): 1 for two modalities, and the largest product of vectors of even entries becomes 1 for any M."""
    return math.pow(one.shape[1], (len(others) - 1) / 2)


def _gram(z: Tensor) -> Tensor:
    """(M, N, D) -> (N, M, M) inner products, float64, EPS on the diagonal."""
    z = z.double()
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    return torch.einsum("mnd,knd->nmk", z, z) + EPS * eye


def leading_direction(z: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M) singular values, largest first, and (N, D) leading left singular vectors of each sample's [z_1 .. z_M]."""
    squares, vectors = SmallEigh.apply(_gram(z))
    values = squares.clamp(min=EPS).sqrt().flip(1)
    weights = vectors[:, :, -1]
    # u . mean has the sign of the sum of the weights. Two opposed modalities give 0: then the first one decides.
    towards_mean = weights.sum(1, keepdim=True)
    towards = torch.where(towards_mean.abs() > EPS, towards_mean, weights[:, :1])
    sign = torch.where(towards < 0, -1.0, 1.0)
    leading = torch.einsum("nm,mnd->nd", (weights * sign).to(z.dtype), z)
    return values.to(z.dtype), F.normalize(leading, dim=1, eps=EPS)


class SmallEigh(torch.autograd.Function):
    """Eigenvalues (N, M) and vectors (N, M, M) of symmetric matrices, ascending, with a gradient that stays finite.

    Equal eigenvalues make torch's gradient infinite; their vectors are arbitrary within their plane, so a loss that
    does not depend on the choice loses nothing when those terms are left out.
    """

    @staticmethod
    def forward(ctx, matrices: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    def backward(ctx, d_values: Tensor, d_vectors: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gaps = values[:, None, :] - values[:, :, None]
        apart = gaps.abs() > EPS
        inverse = torch.where(apart, 1 / torch.where(apart, gaps, 1), 0)
        inner = torch.diag_embed(d_values) + inverse * (vectors.mT @ d_vectors)
        gradient = vectors @ inner @ vectors.mT
        return (gradient + gradient.mT) / 2
