"""The objectives by name: each a recipe of an anchor and a loss, and a row in the table. Plain nn.Modules.

    loss = CentroBind(temperature=0.2)
    out = loss({"image": z1, "audio": z2}, views={"image": v1, "audio": v2}, present={"audio": has_audio})
    out.total.backward()
    out.parts["leak"]

docs/objectives.md has their formulas, costs, known failures and sources.
"""

from __future__ import annotations

from collections.abc import Callable

from centrobind.objectives import anchors
from centrobind.objectives.anchored import AllPairs, AnchorInfoNCE
from centrobind.objectives.base import Objective
from centrobind.objectives.joint import GRAM, OVAIB, PMRL, TRIANGLE, Symile


def CentroBind(*, temperature: float = 0.2, learn_temperature: bool = False) -> Objective:
    """The paper's recipe: the anchor is the centroid of all modalities' augmented views (arXiv 2410.02086).

    It contains the embedding it attracts, so at a low or learned temperature it is solved by self-matching
    ("leak"); 0.2 keeps that in bounds.
    """
    return AnchorInfoNCE(anchors.centroid, temperature=temperature, learn_temperature=learn_temperature)


def LeaveOneOut(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
    """The anchor of a modality is the centroid of the others' views: dynamic, and without leak."""
    return AnchorInfoNCE(anchors.leave_one_out, temperature=temperature, learn_temperature=learn_temperature)


def WeightedCentroid(
    *, weights: dict[str, float] | None = None, temperature: float = 0.2, learn_temperature: bool = False
) -> Objective:
    """A centroid in which modalities count differently, {"image": 2.0}; those not named count 1."""
    return AnchorInfoNCE(anchors.weighted(weights or {}), temperature=temperature, learn_temperature=learn_temperature)


def LearnedCentroid(
    *, modalities: tuple[str, ...], temperature: float = 0.2, learn_temperature: bool = False
) -> Objective:
    """A centroid whose weights are learned, one per modality (asked for by reviewers of the paper)."""
    weights = anchors.LearnedWeights(len(modalities))
    return AnchorInfoNCE(weights, temperature=temperature, learn_temperature=learn_temperature)


def RandomAnchor(*, temperature: float = 0.07, learn_temperature: bool = False) -> Objective:
    """A modality drawn anew for every batch is the anchor of the others."""
    return AnchorInfoNCE(anchors.random_modality, temperature=temperature, learn_temperature=learn_temperature)


def FABind(
    *, anchor: str, frozen: bool = False, temperature: float = 0.07, learn_temperature: bool = False
) -> Objective:
    """A fixed anchor modality, its encoder trained along or frozen as it came (ImageBind, Girdhar et al. 2023)."""
    objective = AnchorInfoNCE(
        anchors.fixed(anchor, frozen=frozen), temperature=temperature, learn_temperature=learn_temperature
    )
    objective.frozen = (anchor,) if frozen else ()
    return objective


def Unimodal(*, temperature: float = 0.1, learn_temperature: bool = False) -> Objective:
    """Each modality with its own augmented view and nothing across (SimCLR); the floor for retrieval."""
    return AnchorInfoNCE(anchors.own_view, temperature=temperature, learn_temperature=learn_temperature)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "centrobind": CentroBind,
    "leave_one_out": LeaveOneOut,
    "weighted": WeightedCentroid,
    "learned": LearnedCentroid,
    "random": RandomAnchor,
    "fabind": FABind,
    "all_pairs": AllPairs,
    "unimodal": Unimodal,
    "symile": Symile,
    "gram": GRAM,
    "triangle": TRIANGLE,
    "pmrl": PMRL,
    "ova_ib": OVAIB,
}
