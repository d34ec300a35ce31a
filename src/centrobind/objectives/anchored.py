"""Objectives of pairs: every modality with its anchor, or with every other modality, and what their losses hold."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.objectives import anchors
from centrobind.objectives.anchors import Anchor
from centrobind.objectives.base import Loss, Objective, is_sure
from centrobind.objectives.infonce import InfoNCE, infonce
from centrobind.seeds import seeded
from centrobind.types import Embeddings


class AnchorInfoNCE(Objective):
    """Align every modality with its anchor: mean over m of (InfoNCE(z_m -> a_m) + InfoNCE(a_m -> z_m)) / 2.

    `anchor` maps the views to one anchor per modality; any function or module of that shape will do. `weights` makes
    it a weighted mean, {"audio": 2.0}; modalities that are not named count 1. DataError if one is negative.
    """

    takes_groups = True

    def __init__(
        self,
        anchor: Anchor,
        *,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__(temperature, learn_temperature)
        self.anchor = anchor
        self.needs_views = anchor is anchors.own_view
        self.weights = dict(weights or {})
        if any(weight < 0 for weight in self.weights.values()):
            raise DataError(f"weights must not be negative, got {self.weights}")

    def compare(self, z: Embeddings, views: Embeddings | None, groups: Tensor | None = None) -> Loss:
        if unknown := set(self.weights) - set(z.modalities):
            raise DataError(f"weights name {sorted(unknown)}, expected some of {list(z.modalities)}")
        views = z if views is None else views
        anchor = self.anchor(views)
        temperature = self.temperature(z.z.dtype)
        terms = _compared(z, anchor, temperature, groups=groups, memory=self.memory)
        weights = z.z.new_tensor([self.weights.get(name, 1.0) for name in z.modalities]) if self.weights else None
        z_later, views_later, names = z.later(), views.later(), z.modalities

        def measure() -> dict[str, float]:
            z, views = z_later(), views_later()
            return {
                **_both_ways(names, terms),
                **intra_and_inter(z, views, temperature, groups),
                "leak": leak(self.anchor, z, views),
                "temperature": temperature.item(),
            }

        return Loss(_mean_of_terms(terms, weights), measure)


class AllPairs(Objective):
    """Align every modality with every other: mean over pairs of symmetric InfoNCE (CMC, Tian et al. 2020; AudioCLIP).

    With views, z_m meets the view of m' and z_m' the view of m: M(M-1) terms instead of M(M-1)/2.
    """

    def __init__(self, *, temperature: float = 0.07, learn_temperature: bool = False):
        super().__init__(temperature, learn_temperature)

    takes_groups = True

    def compare(self, z: Embeddings, views: Embeddings | None, groups: Tensor | None = None) -> Loss:
        pairs = list(itertools.combinations(range(len(z.modalities)), 2))
        if views is None:
            views = z
        else:
            pairs += [(other, one) for one, other in pairs]
        temperature = self.temperature(z.z.dtype)
        terms = _compared(z, views, temperature, pairs=pairs, groups=groups, memory=self.memory)
        names = tuple(f"{z.modalities[one]}_with_{z.modalities[other]}" for one, other in pairs)
        z_later, views_later = z.later(), views.later()

        def measure() -> dict[str, float]:
            return {
                **_both_ways(names, terms),
                **intra_and_inter(z_later(), views_later(), temperature, groups),
                "leak": 0.0,
                "temperature": temperature.item(),
            }

        return Loss(_mean_of_terms(terms), measure)


def leak(anchor: Anchor, z: Embeddings, views: Embeddings) -> float:
    """The share of the positive similarities z_m . a_m that is gone when modality m's own view is silenced.

    A share of similarity, not of the loss: 1/M for perfectly aligned modalities under a centroid, near 1 for
    unrelated ones, 0 for any anchor that leaves its own modality out.
    """
    silenced = [views.with_z(views.z.index_fill(0, row, 0)) for row in torch.arange(len(z.modalities)).split(1)]
    with seeded(0):
        whole = anchor(views)
    own = total = 0.0
    for m, mute in enumerate(silenced):
        with seeded(0):  # an anchor that draws must draw the same again
            rest = anchor(mute)
        both = z.present[m] & whole.present[m]
        positive, without = ((z.z[m] * made.z[m]).sum(-1)[both].sum() for made in (whole, rest))
        own, total = own + float(positive - without), total + float(positive)
    return own / total if total != 0 else 0.0


def intra_and_inter(
    z: Embeddings, views: Embeddings, temperature: Tensor, groups: Tensor | None = None
) -> dict[str, float]:
    """Mean symmetric InfoNCE, in nats, of each modality with its own view and with every other's."""
    found: dict[str, list[float]] = {"intra": [], "inter": []}
    count = len(z.modalities)
    for shift in range(count):
        pairs = [(m, (m + shift) % count) for m in range(count)]
        terms = _compared(z, views, temperature, pairs=pairs, groups=groups)
        losses = terms.means.mean(0)[terms.count > 0]
        found["inter" if shift else "intra"] += losses.tolist()
    return {name: sum(losses) / len(losses) for name, losses in found.items() if losses}


def _compared(
    z: Embeddings,
    anchor: Embeddings,
    temperature: Tensor,
    *,
    pairs: list[tuple[int, int]] | None = None,
    groups: Tensor | None = None,
    memory: int | None = None,
) -> InfoNCE:
    """Embeddings with anchors, or with each other."""
    has_z, has_anchor = (None, None) if z.complete and anchor.complete else (z.present, anchor.present)
    # A centroid is held once, as the anchor of all; embeddings compared with each other are held once too.
    held = sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in (z.z, anchor.z)}.values())
    return infonce(z.z, anchor.z, has_z, has_anchor, temperature, pairs=pairs, groups=groups, memory=memory, held=held)


def _mean_of_terms(terms: InfoNCE, weights: Tensor | None = None) -> Tensor:
    """The mean over the modalities (or pairs) that have a positive at all, and a weight."""
    if weights is None and isinstance(terms.positives, int) and terms.positives:
        return terms.means.mean()
    learnable = terms.count > 0 if weights is None else (terms.count > 0) & (weights > 0)
    if not is_sure() and not learnable.any():
        raise DataError(
            "nothing to learn from in this batch: no sample has both a modality and an anchor for it; "
            "expected some samples with two modalities present"
        )
    weights = learnable if weights is None else learnable * weights
    return torch.where(learnable, weights * terms.means.mean(0), 0).sum() / weights.sum()


def _both_ways(names: tuple[str, ...], terms: InfoNCE) -> dict[str, float]:
    return {
        f"{name}/{way}": float(values[m])
        for way, values in (("to_anchor", terms.forward), ("from_anchor", terms.backward))
        for m, name in enumerate(names)
        if terms.count[m] > 0
    }
