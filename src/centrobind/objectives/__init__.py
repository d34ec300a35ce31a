"""Objectives: anchors, the contrastive loss they share, and the joint objectives of others."""

from centrobind.objectives import anchors
from centrobind.objectives.anchored import AllPairs, AnchorInfoNCE
from centrobind.objectives.base import Loss, Objective
from centrobind.objectives.joint import GRAM, OVAIB, PMRL, TRIANGLE, Symile
from centrobind.objectives.table import (
    OBJECTIVES,
    CentroBind,
    FABind,
    LearnedCentroid,
    LeaveOneOut,
    RandomAnchor,
    Unimodal,
    WeightedCentroid,
)

__all__ = [
    "GRAM",
    "OBJECTIVES",
    "OVAIB",
    "PMRL",
    "TRIANGLE",
    "AllPairs",
    "AnchorInfoNCE",
    "CentroBind",
    "FABind",
    "LearnedCentroid",
    "LeaveOneOut",
    "Loss",
    "Objective",
    "RandomAnchor",
    "Symile",
    "Unimodal",
    "WeightedCentroid",
    "anchors",
]
