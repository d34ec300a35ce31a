"""Joint objectives: the score of a whole tuple of modalities, instead of pairs with an anchor. The peers.

All of them need complete tuples, so they learn from the samples in which every modality is present. Each compares
one modality of z with the tuple of the others' views, in turn, and averages over which one it is, so that none is
an anchor; the released code of GRAM and TRIANGLE fixes it to text. Scores of N candidates against N tuples are made in
tiles (see tuples), and divided among ranks; PMRL and OVA-IB compare one vector with one vector, by infonce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from centrobind.errors import DataError
from centrobind.objectives.anchored import AnchorInfoNCE, intra_and_inter
from centrobind.objectives.anchors import leave_one_out, projection_on_others
from centrobind.objectives.base import Loss, Objective
from centrobind.objectives.infonce import infonce
from centrobind.objectives.tiled_tuples import tuple_infonce
from centrobind.types import Embeddings

# Added under square roots and to the diagonal of Gram matrices. At perfect alignment a volume is 0 and its root has
# no slope (GRAM's released code gives NaN there); with 1e-6 the slope is at most 500.
EPS = 1e-6


class TupleInfoNCE(Objective):
    """InfoNCE both ways between one modality and the tuple of the others, averaged over which one it is."""

    def __init__(self, *, temperature: float, learn_temperature: bool, label_smoothing: float = 0.0):
        super().__init__(temperature, learn_temperature)
        self.label_smoothing = label_smoothing

    takes_groups = True
    both_ways = True
    least = 2
    positive = "all modalities"

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        return present.all(0)

    def tuples(self, others: Tensor) -> tuple[Tensor, ...]:
        """What `score` wants to know of K tuples (M - 1, K, D)."""
        raise NotImplementedError

    def score(self, one: Tensor, *tuples: Tensor) -> Tensor:
        """(N, K) scores of N candidates (N, D) against the K tuples."""
        raise NotImplementedError

    def similarity(self, one: Tensor, others: Tensor) -> Tensor:
        return self.score(one, *self.tuples(others))

    def compare(self, z: Embeddings, views: Embeddings | None, groups: Tensor | None = None) -> Loss:
        views = z if views is None else views
        complete = complete_samples(z)
        temperature = self.temperature(z.z.dtype)
        kin = None if groups is None else groups[complete]
        forward, backward = self.losses(z.z[:, complete], views.z[:, complete], temperature, kin)
        terms = {f"{name}/to_tuple": term for name, term in zip(z.modalities, forward)}
        if self.both_ways:
            terms |= {f"{name}/from_tuple": term for name, term in zip(z.modalities, backward)}
        return Loss(
            torch.stack(list(terms.values())).mean(),
            partial(measure, z.later(), views.later(), temperature, terms, groups),
        )

    def losses(self, one: Tensor, other: Tensor, temperature: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of each modality, (M,) each way, of samples that are complete."""
        return tuple_infonce(self, one, other, temperature, smoothing=self.label_smoothing, groups=groups)


class Symile(TupleInfoNCE):
    """InfoNCE on the multilinear inner product sum_d prod_m z_m,d (Saporta et al. 2024, arXiv 2411.01053).

    Negatives are as in their package: each of the other modalities is shuffled on its own, one way only. Products of
    unit vectors shrink with D; we multiply by D^((M-2)/2), so that a temperature means the same as for a cosine.
    """

    both_ways = False

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False):
        super().__init__(temperature=temperature, learn_temperature=learn_temperature)

    def tuples(self, others: Tensor) -> tuple[Tensor, ...]:
        return (multilinear_scale(others) * others.prod(0),)

    def score(self, one: Tensor, *tuples: Tensor) -> Tensor:
        return one @ tuples[0].T

    def losses(self, one: Tensor, other: Tensor, temperature: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        places = range(len(one))
        shuffled = [torch.randperm(one.shape[1], device=one.device) for m in places for _ in places[1:]]
        positive = []
        for m in places:
            (product,) = self.tuples(torch.cat([other[:m], other[m + 1 :]]))
            positive.append((one[m] * product).sum(1))
        order = torch.stack(shuffled).unflatten(0, (len(one), -1))
        match = torch.stack(positive)
        return tuple_infonce(self, one, other, temperature, both_ways=False, order=order, match=match, groups=groups)


class GRAM(TupleInfoNCE):
    """Minus the volume that a tuple spans, sqrt(det of its Gram matrix) (Cicchetti et al. 2025, arXiv 2412.11959).

    The determinant comes from the small matrix of the others: det G = det K (1 - g' K^-1 g), in float64 with EPS on
    the diagonal. We leave out their matching loss on a cross-encoder, gather with gradients, and average over which
    modality faces the tuple (theirs: text). Degenerate where two of the others coincide: every volume is 0.
    """

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False, label_smoothing: float = 0.1):
        super().__init__(temperature=temperature, learn_temperature=learn_temperature, label_smoothing=label_smoothing)

    def tuples(self, others: Tensor) -> tuple[Tensor, ...]:
        lower, basis = _span(others)
        return basis, lower.diagonal(dim1=1, dim2=2).square().prod(1).to(others.dtype)

    def score(self, one: Tensor, *tuples: Tensor) -> Tensor:
        basis, det = tuples
        rest = (one.square().sum(1, keepdim=True) + EPS - _inside(one, basis)).clamp(min=0)
        return -(det * rest + EPS).sqrt()


class TRIANGLE(TupleInfoNCE):
    """Minus the area of the triangle of three modalities (Grassucci et al., NeurIPS 2025). Exactly three.

    Area = sqrt(|u|^2 |w|^2 - (u.w)^2) / 2 with u = x - y, w = x - y', as in the paper; their code drops the root and
    squares the area. From dot products alone, (u.w)_ij = 1 - x_i.y_j - x_i.y'_j + y_j.y'_j. Degenerate where the
    other two coincide: every area is 0.
    """

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False, label_smoothing: float = 0.1):
        super().__init__(temperature=temperature, learn_temperature=learn_temperature, label_smoothing=label_smoothing)

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        _check_three(len(present))
        return super().positives(present, modalities)

    def tuples(self, others: Tensor) -> tuple[Tensor, ...]:
        _check_three(len(others) + 1)
        return *others, *others.square().sum(2), (others[0] * others[1]).sum(1)

    def score(self, one: Tensor, *tuples: Tensor) -> Tensor:
        y, w, y_square, w_square, y_w = tuples
        own = one.square().sum(1, keepdim=True)
        first, second = one @ y.T, one @ w.T  # (N, K)
        sides = (own + y_square - 2 * first) * (own + w_square - 2 * second)
        between = own - first - second + y_w
        return -((sides - between.square()).clamp(min=0) + EPS).sqrt() / 2


def _check_three(modalities: int) -> None:
    if modalities != 3:
        raise DataError(f"triangle needs exactly three modalities, got {modalities}")


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
        return _inside(one, _span(others)[1])


class PMRL(Objective):
    """The leading singular value of [z_1 .. z_M] above the rest, and leading directions apart (arXiv 2507.17343).

    Cross entropy of the singular values (class: the largest) and of u_i . u_j over samples, at one temperature. Both
    come from the M x M Gram matrix, in float64; u_i is turned towards the mean of its sample, because an eigenvector
    has no sign (44 % of them point away in the released code). We leave out their matching loss.
    """

    takes_groups = True
    least = 2
    positive = "all modalities"

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False):
        super().__init__(temperature, learn_temperature)

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        return present.all(0)

    def compare(self, z: Embeddings, views: Embeddings | None, groups: Tensor | None = None) -> Loss:
        complete = complete_samples(z)
        temperature = self.temperature(z.z.dtype)
        parts = {"z": z} if views is None else {"z": z, "views": views}
        values, leading = zip(*(leading_direction(part.z[:, complete]) for part in parts.values()))
        leading = torch.stack(leading)
        kin = None if groups is None else groups[complete]
        instances = infonce(leading, leading, None, None, temperature, groups=kin, memory=self.memory).forward
        first = torch.zeros(len(values[0]), dtype=torch.int64, device=leading.device)
        terms = {}
        for place, label in enumerate(parts):
            terms[f"{label}/spectrum"] = F.cross_entropy(values[place] / temperature, first)
            terms[f"{label}/instances"] = instances[place]
        total = 2 * torch.stack(list(terms.values())).mean()  # the sum of the two losses, averaged over views
        views = z if views is None else views
        return Loss(total, partial(measure, z.later(), views.later(), temperature, terms, groups))

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


def measure(
    z: Callable[[], Embeddings],
    views: Callable[[], Embeddings],
    temperature: Tensor,
    terms: dict[str, Tensor],
    groups: Tensor | None,
) -> dict[str, float]:
    """The parts of a joint objective: its own terms, and intra and inter as for all objectives."""
    return {
        **{name: float(term) for name, term in terms.items()},
        **intra_and_inter(z(), views(), temperature, groups),
        "leak": 0.0,
        "temperature": temperature.item(),
    }


def multilinear_scale(others: Tensor) -> float:
    """D^((M-2)/2): 1 for two modalities, and the largest product of vectors of even entries becomes 1 for any M."""
    return math.pow(others.shape[2], (len(others) - 1) / 2)


def _gram(z: Tensor) -> Tensor:
    """(M, N, D) -> (N, M, M) inner products, float64, EPS on the diagonal."""
    z = z.double()
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    return torch.einsum("mnd,knd->nmk", z, z) + EPS * eye


def _span(others: Tensor) -> tuple[Tensor, Tensor]:
    """Of (M - 1, K, D) tuples, the Cholesky factor of their Gram matrix, in float64, and a basis (K, M - 1, D).

    The basis is orthonormal up to EPS, so that the projection of a candidate takes products with it and nothing else.
    """
    lower = torch.linalg.cholesky(_gram(others))
    return lower, torch.linalg.solve_triangular(lower, others.double().movedim(1, 0), upper=False).to(others.dtype)


def _inside(one: Tensor, basis: Tensor) -> Tensor:
    """(N, K) squared lengths of the projections of N candidates (N, D) on the spans of K tuples."""
    return sum((one @ direction.T).square() for direction in basis.unbind(1))


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
