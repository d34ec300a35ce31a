"""The objectives by name: each an anchor and a loss. Plain nn.Modules.

    loss = CentroBind(temperature=0.2)
    out = loss({"image": z1, "audio": z2}, views={"image": v1, "audio": v2}, present={"audio": has_audio})
    out.total.backward()
    out.parts["leak"]

Similarities are divided by `temperature` (ConfigError outside .003 to 10); with `learn_temperature` that is where it
starts. docs/objectives.md has formulas, costs, known failures and sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.objectives import anchors
from centrobind.objectives.anchored import AllPairs, AnchorInfoNCE
from centrobind.objectives.base import Objective
from centrobind.objectives.joint import GRAM, OVAIB, PMRL, TRIANGLE, Symile


class CentroBind(AnchorInfoNCE):
    """The paper's recipe: the anchor is the centroid of all modalities' augmented views (arXiv 2410.02086).

    It contains the embedding it attracts, so at a low or learned temperature it is solved by self-matching
    ("leak"); 0.2 keeps that in bounds.
    """

    def __init__(self, *, temperature: float = 0.2, learn_temperature: bool = False):
        super().__init__(anchors.centroid, temperature=temperature, learn_temperature=learn_temperature)


class LeaveOneOut(AnchorInfoNCE):
    """The anchor of a modality is the centroid of the others' views: dynamic, and without leak."""

    def __init__(self, *, temperature: float = 0.07, learn_temperature: bool = False):
        super().__init__(anchors.leave_one_out, temperature=temperature, learn_temperature=learn_temperature)


class WeightedCentroid(AnchorInfoNCE):
    """A centroid in which modalities count differently, {"image": 2.0}; those not named count 1.

    DataError if a weight is negative or, in use, names a modality that is not there.
    """

    def __init__(
        self, *, weights: dict[str, float] | None = None, temperature: float = 0.2, learn_temperature: bool = False
    ):
        anchor = anchors.weighted(weights or {})
        super().__init__(anchor, temperature=temperature, learn_temperature=learn_temperature)
        self.anchor_weights = dict(weights or {})

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        counts = torch.tensor([self.anchor_weights.get(name, 1.0) > 0 for name in modalities])
        return (present.sum(0) >= 2) & present[counts].any(0)

    def extra_repr(self) -> str:
        return f"weights={self.anchor_weights}"


class LearnedCentroid(AnchorInfoNCE):
    """A centroid whose weights are learned, one per modality (asked for by reviewers of the paper)."""

    def __init__(self, *, modalities: tuple[str, ...], temperature: float = 0.2, learn_temperature: bool = False):
        anchor = anchors.LearnedWeights(len(modalities))
        super().__init__(anchor, temperature=temperature, learn_temperature=learn_temperature)


class RandomAnchor(AnchorInfoNCE):
    """A modality drawn anew for every batch is the anchor of the others."""

    def __init__(self, *, temperature: float = 0.07, learn_temperature: bool = False):
        super().__init__(anchors.random_modality, temperature=temperature, learn_temperature=learn_temperature)


class FABind(AnchorInfoNCE):
    """A fixed anchor modality, its encoder trained along or frozen as it came (ImageBind, Girdhar et al. 2023)."""

    def __init__(
        self, *, anchor: str, frozen: bool = False, temperature: float = 0.07, learn_temperature: bool = False
    ):
        function = anchors.fixed(anchor, frozen=frozen)
        super().__init__(function, temperature=temperature, learn_temperature=learn_temperature)
        self.anchor_modality = anchor
        self.frozen = (anchor,) if frozen else ()
        self.positive = f"{anchor!r} and another modality"

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        if self.anchor_modality not in modalities:
            raise DataError(f"no modality {self.anchor_modality!r} here, expected one of {list(modalities)}")
        return (present.sum(0) >= 2) & present[list(modalities).index(self.anchor_modality)]

    def extra_repr(self) -> str:
        return f"anchor={self.anchor_modality!r}, frozen={bool(self.frozen)}"


class Unimodal(AnchorInfoNCE):
    """Each modality with its own augmented view and nothing across; the floor for retrieval.

    InfoNCE both ways between embeddings and views, N candidates each. That is a relative of SimCLR (Chen et al. 2020),
    not SimCLR: its NT-Xent also has the other embeddings of the same side as negatives, 2N - 1 candidates.
    """

    positive = "any modality"

    def __init__(self, *, temperature: float = 0.1, learn_temperature: bool = False):
        super().__init__(anchors.own_view, temperature=temperature, learn_temperature=learn_temperature)

    def positives(self, present: Tensor, modalities: Sequence[str]) -> Tensor:
        return present.any(0)


# A new anchor is a function in anchors.py and a row here, `"median": partial(AnchorInfoNCE, anchors.median)`; or a
# class, where it has options or a default temperature of its own. What a constructor takes is what a run.yaml takes.
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
