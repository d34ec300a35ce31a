"""Which features each kind of modality gives the closed form.

vector     the numbers, standardised
sequence   every step, and how much of the time each of many random patterns is there
image      the pixels of a small picture, the directions of its edges, and which small patterns are where
text       hashed character n-grams and words, weighted by rarity (TF-IDF)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from centrobind.closed_form.components import Kernel
from centrobind.closed_form.features import Features, VectorFeatures, some_values
from centrobind.closed_form.pictures import ImageFeatures
from centrobind.closed_form.sequences import SequenceFeatures
from centrobind.closed_form.texts import TextFeatures
from centrobind.data import Column

KINDS: dict[str, type[Features]] = {
    "vector": VectorFeatures,
    "sequence": SequenceFeatures,
    "image": ImageFeatures,
    "text": TextFeatures,
}


def learned_features(column: Column, *, most: int = 512, seed: int = 0) -> Features:
    """The features of one modality, learned from its present values."""
    features = KINDS[column.kind](column.kind, column.shape)
    features.learn(column, most, seed)
    if column.kind != "text":  # n-grams are many and rare as they are: bending them lost on every set
        features.kernel = Kernel.learned(features.linear(some_values(column, int(np.prod(column.shape)))), most)
    return features


def rebuilt_features(description: Mapping[str, Any]) -> Features:
    """A module of the described shape, its tensors still to be loaded with load_state_dict."""
    features = KINDS[description["kind"]](description["kind"], tuple(description["shape"]))
    features.rebuild(description)
    return features
