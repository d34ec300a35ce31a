"""The linear path of a tower: what the closed form says of a modality, kept as it is while the encoder learns the rest.

Not trained: on every development set but one a path that learned too lost up to half of what the closed form had
(utd_mhad: mean reciprocal rank 27.8 -> 13 instead of 23), because it fits the training samples almost perfectly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.closed_form.bind import ClosedForm
from centrobind.closed_form.features import Features
from centrobind.closed_form.stream import CHUNK
from centrobind.data import Column, Samples


class LinearPath(nn.Module):
    """(n, width) features -> (n, dim), of length about 1, so that one step of a head means the same everywhere."""

    matrix: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, features: Features, dim: int):
        super().__init__()
        self.features = features
        self.register_buffer("matrix", torch.zeros(features.width, dim))
        self.register_buffer("bias", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(1))

    @property
    def width(self) -> int:
        """Number of features."""
        return self.features.components.width

    def read(self, values: Any) -> Tensor:
        """Values as stored -> (n, width) features, without the kernel: what an encoder beside the path reads too."""
        return self.features.linear(values)

    def forward(self, features: Tensor) -> Tensor:
        features, kernel = features.float(), self.features.kernel
        return (features if kernel is None else kernel(features)) @ self.matrix + self.bias

    def scaled(self, features: Tensor) -> Tensor:
        """Features of deviation 1 on average, as an encoder likes them; their relative scale stays."""
        return features * self.scale


@torch.no_grad()
def linear_path(closed: ClosedForm, name: str, column: Column, dim: int) -> LinearPath:
    """The closed form of one modality in `dim` dimensions, zeros beyond its own; scaled on up to CHUNK samples."""
    path = LinearPath(closed.features[name], dim)
    own = min(closed.matrix[name].shape[1], dim)
    path.matrix[:, :own], path.bias[:own] = closed.matrix[name][:, :own], closed.bias[name][:own]
    few = column.rows[column.present][:CHUNK]
    features = path.read(column.values[few])
    path.scale.fill_(1 / features.square().mean().sqrt().clamp(min=1e-6))
    length = path(features).norm(dim=1).mean().clamp(min=1e-6)
    path.matrix /= length
    path.bias /= length
    return path


MOST_KEPT = 2**28  # numbers, a gigabyte: beyond, features are computed anew for every batch


class KeptFeatures:
    """The features of all samples, computed once: counting the n-grams of a batch takes longer than a step."""

    def __init__(self, features: Mapping[str, Tensor], present: np.ndarray):
        self.features, self.present = features, present

    @classmethod
    @torch.no_grad()
    def of(cls, paths: Mapping[str, LinearPath], samples: Samples) -> KeptFeatures | None:
        """None where there are no linear paths, or too many numbers."""
        paths = {name: path for name, path in paths.items() if name in samples.columns}
        if not paths or len(samples) * sum(path.width for path in paths.values()) > MOST_KEPT:
            return None
        features = {}
        for name, path in paths.items():
            column = samples.columns[name]
            rows = torch.zeros(len(samples), path.width)
            for start in range(0, len(samples), CHUNK):
                here = start + np.flatnonzero(column.present[start : start + CHUNK])
                if len(here):
                    rows[torch.from_numpy(here)] = path.read(column.take(here)).float().cpu()
            features[name] = rows
        return cls(features, samples.present)

    def batch(self, rows: np.ndarray, modalities: tuple[str, ...]) -> dict[str, Tensor]:
        """Those of the samples at `rows`, as Batch.features has them."""
        present = dict(zip(modalities, self.present))
        return {name: values[torch.from_numpy(rows[present[name][rows]])] for name, values in self.features.items()}
