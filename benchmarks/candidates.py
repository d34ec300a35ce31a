"""Candidates for the default objective, each an idea of issue and experiments log: docs/experiments.md.

Every function takes temperature= and learn_temperature= and returns an objective, so that `centrobind compare
--objectives benchmarks/candidates.py:NAME` can run it. None of these is part of the package unless it won.
"""

from __future__ import annotations

import torch
from torch import Tensor

from centrobind.objectives import anchors
from centrobind.objectives.anchored import AnchorInfoNCE
from centrobind.objectives.base import Loss, Objective
from centrobind.objectives.infonce import infonce
from centrobind.types import Embeddings


def partner(views: Embeddings) -> Embeddings:
    """For each modality and each sample, one of its other present modalities, drawn anew: all pairs in expectation."""
    chance = torch.rand(len(views.z), *views.present.shape)  # (M, M, N): for m, one number for each k and sample
    chance = chance.masked_fill(~views.present | torch.eye(len(views.z), dtype=torch.bool)[..., None], -1)
    best, drawn = chance.max(1)  # (M, N)
    z = views.z[drawn, torch.arange(views.z.shape[1])]
    return views.with_z(z, best >= 0)


def subset(views: Embeddings) -> Embeddings:
    """For each modality and each sample, the centroid of a random non-empty subset of its other modalities."""
    count = len(views.z)
    there = views.present & ~torch.eye(count, dtype=torch.bool)[..., None]  # (M, M, N)
    chance = torch.rand(there.shape).masked_fill(~there, -1)
    kept = there & ((chance > 0.5) | (chance == chance.max(1, keepdim=True).values))  # one is always kept
    total = kept.sum(1)
    z = torch.einsum("mkn,knd->mnd", kept.to(views.z.dtype), views.z) / total.clamp(min=1)[..., None]
    return views.with_z(z, total > 0)


def loo_unit(views: Embeddings) -> Embeddings:
    """leave-one-out, brought back to unit length."""
    made = anchors.leave_one_out(views)
    return views.with_z(torch.nn.functional.normalize(made.z, dim=-1, eps=1e-6), made.present)


def loo_sum(views: Embeddings) -> Embeddings:
    """leave-one-out, divided by the square root of how many others there are: agreement lengthens it."""
    others = views.present.sum(0) - views.present.long()
    total = views.z.sum(0) - views.z
    return views.with_z(total / others.clamp(min=1).sqrt()[..., None], others > 0)


class Mixed(Objective):
    """Several AnchorInfoNCE terms with weights, and what else a candidate asks for."""

    def __init__(self, terms, *, temperature, learn_temperature, both=False, emphasis=0.0):
        super().__init__(temperature, learn_temperature)
        self.terms, self.both, self.emphasis = terms, both, emphasis
        self.needs_views = True

    def compare(self, z, views):
        total = 0.0
        temperature = self.temperature()
        for weight, anchor in self.terms:
            for one, other in ((z, views), (views, z)) if self.both else ((z, views),):
                made = anchor(other)
                found = infonce(one.z, made.z, one.present, made.present, temperature)
                there = found.count > 0
                each = ((found.forward + found.backward) / 2)[there]
                share = (self.emphasis * each.detach()).softmax(0) if self.emphasis else 1 / len(each)
                total = total + weight * (share * each).sum() / (2 if self.both else 1)
        return Loss(total, dict)


def _mixed(*terms, **options):
    def make(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
        return Mixed(terms, temperature=temperature, learn_temperature=learn_temperature, **options)

    return make


loo_intra = _mixed((1.0, anchors.leave_one_out), (0.25, anchors.own_view))
loo_intra_less = _mixed((1.0, anchors.leave_one_out), (0.1, anchors.own_view))
loo_both = _mixed((1.0, anchors.leave_one_out), both=True)
loo_worst = _mixed((1.0, anchors.leave_one_out), emphasis=1.0)
loo_and_partner = _mixed((0.5, anchors.leave_one_out), (0.5, partner))
subset_both = _mixed((1.0, subset), both=True)


class Pooled(Objective):
    """Negatives shared across modalities: one denominator over all other samples' views of every modality."""

    def __init__(self, *, temperature, learn_temperature, positive: str, own: bool):
        super().__init__(temperature, learn_temperature)
        self.positive, self.own = positive, own
        self.needs_views = True

    def compare(self, z: Embeddings, views: Embeddings) -> Loss:
        tau = self.temperature()
        m, n, _ = z.z.shape
        total: list[Tensor] = []
        eye = torch.eye(n, dtype=torch.bool)
        loo = anchors.leave_one_out(views)
        for a in range(m):
            others = [k for k in range(m) if self.own or k != a]
            rest = [k for k in range(m) if k != a]
            for query, key in ((z.z, views.z),):
                logits = torch.stack([query[a] @ key[k].T for k in others]) / tau  # (K, N, N)
                logits = logits.masked_fill(~views.present[others][:, None, :] | eye, -torch.inf)
                negatives = logits.logsumexp((0, 2))
                if self.positive == "anchor":
                    match = ((query[a] * loo.z[a]).sum(-1) / tau)[None]
                    there = (z.present[a] & loo.present[a])[None]
                else:
                    match = torch.stack([(query[a] * key[k]).sum(-1) for k in rest]) / tau
                    there = z.present[a] & views.present[rest]
                each = torch.logaddexp(negatives, match) - match
                total.append(each[there].mean())
        return Loss(sum(total) / len(total), dict)


def pooled(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
    return Pooled(temperature=temperature, learn_temperature=learn_temperature, positive="each", own=False)


def pooled_own(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
    return Pooled(temperature=temperature, learn_temperature=learn_temperature, positive="each", own=True)


def pooled_anchor(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
    return Pooled(temperature=temperature, learn_temperature=learn_temperature, positive="anchor", own=False)


class SharedAnchors(Objective):
    """leave-one-out against the anchors of all modalities: z_m meets every sample's a_1..a_M, its own a_m matches.

    `share` of the loss is that; the rest is plain leave-one-out. `ahead`, `back`: which directions share.
    """

    def __init__(self, temperature, learn_temperature, share=1.0, ahead=True, back=True):
        super().__init__(temperature, learn_temperature)
        self.share, self.ahead, self.back = share, ahead, back
        self.needs_views = True

    def compare(self, z: Embeddings, views: Embeddings) -> Loss:
        made = anchors.leave_one_out(views)
        logits = torch.einsum("mnd,kjd->mnkj", z.z, made.z) / self.temperature()
        n = z.present.shape[1]
        logits = logits.masked_fill(~made.present | torch.eye(n, dtype=torch.bool)[:, None, :], -torch.inf)
        logits = logits.masked_fill(~z.present[:, :, None, None], -torch.inf)
        own = logits.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (M, n, j): each modality with its own anchors
        match = (z.z * made.z).sum(-1) / self.temperature()
        there = z.present & made.present
        plain = self._mean(own.logsumexp(2), own.logsumexp(1), match, there)
        ahead = logits.logsumexp((2, 3)) if self.ahead else own.logsumexp(2)
        back = logits.logsumexp((0, 1)) if self.back else own.logsumexp(1)
        return Loss(self.share * self._mean(ahead, back, match, there) + (1 - self.share) * plain, dict)

    @staticmethod
    def _mean(ahead: Tensor, back: Tensor, match: Tensor, there: Tensor) -> Tensor:
        each = (torch.logaddexp(ahead, match) + torch.logaddexp(back, match)) / 2 - match
        return each[there].mean()


def _shared(**options):
    def make(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
        return SharedAnchors(temperature, learn_temperature, **options)

    return make


shared_anchors = _shared()
shared_half = _shared(share=0.5)
shared_ahead = _shared(back=False)
shared_back = _shared(ahead=False)


class LearnedOthers(torch.nn.Module):
    """leave-one-out with learned weights."""

    def __init__(self, most: int = 8):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(most))

    def forward(self, views: Embeddings) -> Embeddings:
        weights = self.scores[: len(views.z)].exp()[:, None] * views.present
        weighted = weights[..., None] * views.z
        rest = weights.sum(0) - weights
        z = (weighted.sum(0) - weighted) / rest.clamp(min=1e-6)[..., None]
        return views.with_z(z, (views.present.sum(0) - views.present.long()) > 0)


def loo_learned(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
    return AnchorInfoNCE(LearnedOthers(), temperature=temperature, learn_temperature=learn_temperature)


def confident(views: Embeddings) -> Embeddings:
    """leave-one-out, weighted by how well each modality of a sample agrees with the mean of all others but m.

    Softmax over k of 5 z_k . c, without gradient: a modality that says something else counts less.
    """
    with torch.no_grad():
        c = anchors.leave_one_out(views).z
        agree = torch.einsum("knd,mnd->mkn", views.z, c) * 5
        out = ~views.present | torch.eye(len(views.z), dtype=torch.bool)[..., None]
        weights = torch.nan_to_num(agree.masked_fill(out, -torch.inf).softmax(1))
    z = torch.einsum("mkn,knd->mnd", weights, views.z)
    return views.with_z(z, (views.present.sum(0) - views.present.long()) > 0)
