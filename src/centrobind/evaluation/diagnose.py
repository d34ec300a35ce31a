"""Diagnose a trained binder: measure what the theory has numbers for, and hand them to the findings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch

from centrobind.binder.binder import Binder
from centrobind.binder.embedding import embed_views
from centrobind.data import Samples
from centrobind.errors import DataError
from centrobind.evaluation import bounds
from centrobind.evaluation.findings import Diagnosis
from centrobind.evaluation.realignment import realigned
from centrobind.objectives import anchors
from centrobind.objectives.anchored import AllPairs, AnchorInfoNCE
from centrobind.objectives.anchors import Anchor
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, silent
from centrobind.types import Embeddings


def diagnose(
    binder: Binder,
    data: Samples,
    *,
    objective: Objective | None = None,
    train: Samples | None = None,
    resamples: int = 1000,
    seed: int = 0,
    watch: Watch = silent,
) -> Diagnosis:
    """Measure a binder on held-out samples and say what is wrong with it and what to try.

    `objective` is what it was trained with: its own anchor and temperature are then judged, else the centroid. With
    `train`, its training samples, new heads are tried to see whether a pair was lost (seconds). Diagnosis.findings are
    sentences, .bounds the three numbers of the paper's claims. Raises DataError.
    """
    names = [name for name in binder.modalities if name in data.modalities]
    if len(names) < 2:
        raise DataError(f"a diagnosis needs two modalities of the binder's {list(binder.modalities)}, got {names}")
    data = data.only(names)
    z, views = binder.embed(data), embed_views(binder, data, seed=seed)
    reachable = None if train is None else realigned(binder, train, data, seed=seed, watch=watch)
    return examine(z, views, objective=objective, reachable=reachable, resamples=resamples, seed=seed)


def examine(
    z: Embeddings,
    views: Embeddings,
    *,
    objective: Objective | None = None,
    reachable: Embeddings | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Diagnosis:
    """The same for embeddings that are there already: of held-out samples, of their views, under other heads."""
    z, views = z.detach(), views.detach()
    kind, anchor = _trained_on(objective)
    measure = partial(bounds.bounds, z, views, anchor=anchor, resamples=resamples, seed=seed)
    found = measure()
    if objective is None or kind is None:
        temperature = found.mean["anchor"].temperature
    else:
        temperature = float(objective.temperature())
    seen = None if kind is None else measure(temperatures=(temperature,)).mean[kind]
    own = [name for name in z.modalities if name not in found.anchor]
    complete = int(z.present.all(0).sum()) >= 2
    return Diagnosis(
        samples=len(z),
        temperature=temperature,
        trained_on=kind,
        anchor_modality=own[0] if kind == "anchor" and len(own) == 1 else None,
        bounds=found,
        seen=seen,
        reachable={} if reachable is None else dict(bounds.bounds(reachable, resamples=resamples, seed=seed).inter),
        slack=bounds.slack(z, views, temperature) if complete else {},
        leak=bounds.leaks(anchor, z, views),
        dominance=bounds.dominance(anchor, z, views, temperature),
        **_shape(z),
    )


def _trained_on(objective: Objective | None) -> tuple[Literal["anchor", "inter", "intra"] | None, Anchor]:
    """Which bounds its loss is one of, and the anchor to look at: the objective's own, or the plain centroid."""
    if isinstance(objective, AllPairs):
        return "inter", anchors.centroid
    if not isinstance(objective, AnchorInfoNCE):
        return None, anchors.centroid
    if objective.anchor is anchors.own_view:
        return "intra", anchors.centroid
    if objective.anchor is anchors.random_modality:  # every pair in turn
        return "inter", anchors.centroid
    return "anchor", objective.anchor


def _shape(z: Embeddings) -> dict[str, Mapping[Any, float]]:
    """How far the embeddings of each modality spread, in how many directions, and how far apart modalities lie."""
    spread, rank, centre = {}, {}, {}
    for m, name in enumerate(z.modalities):
        x = z.z[m][z.present[m]].double()
        centre[name] = x.mean(0)
        spread[name] = float(1 - centre[name].square().sum())
        share = torch.linalg.eigvalsh((x - centre[name]).T @ (x - centre[name])).clamp(min=0)
        share = share / share.sum().clamp(min=1e-12)
        rank[name] = float(torch.special.entr(share).sum().exp())
    named = [(z.modalities[a], z.modalities[b]) for a, b in bounds.pairs(z)]
    return {"spread": spread, "rank": rank, "gap": {(a, b): float((centre[a] - centre[b]).norm()) for a, b in named}}
