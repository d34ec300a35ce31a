"""Which features each kind of modality gives the closed form.

vector     the numbers, standardised
sequence   every step, and how much of the time each of many random patterns is there
image      the pixels of a small picture, the directions of its edges, and which small patterns are where
text       hashed character n-grams and words, weighted by rarity (TF-IDF)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from centrobind.closed_form.components import Kernel
from centrobind.closed_form.features import Features, VectorFeatures
from centrobind.closed_form.pictures import ImageFeatures
from centrobind.closed_form.sequences import SequenceFeatures
from centrobind.closed_form.texts import TextFeatures

KINDS: dict[str, type[Features]] = {
    "vector": VectorFeatures,
    "sequence": SequenceFeatures,
    "image": ImageFeatures,
    "text": TextFeatures,
}


def learned_features(kind: str, values: Any, *, most: int = 512, seed: int = 0) -> tuple[Features, list[Tensor]]:
    """The features of one modality from (n, ...) values of its kind; and theirs: linear, and with a kernel if any."""
    features = KINDS[kind](kind, () if kind == "text" else tuple(values.shape[1:]))
    linear = features.learn(values, most, seed)
    if kind == "text":  # n-grams are many and rare as they are: bending them lost on every set
        return features, [linear]
    features.kernel = Kernel.learned(linear, most)
    return features, [linear, features.kernel(linear)]


def rebuilt_features(description: Mapping[str, Any]) -> Features:
    """A module of the described shape, its tensors still to be loaded with load_state_dict."""
    features = KINDS[description["kind"]](description["kind"], tuple(description["shape"]))
    features.rebuild(description)
    return features
