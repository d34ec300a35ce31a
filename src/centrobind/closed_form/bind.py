"""Samples -> one linear map per modality, all of it chosen by cross-validation: no anchor, or a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from centrobind.closed_form.choose import Choice, choose, fold_numbers
from centrobind.closed_form.features import Features, learned_features
from centrobind.closed_form.gcca import solve
from centrobind.closed_form.stream import CHUNK, stream
from centrobind.data import Samples, sameness
from centrobind.errors import DataError
from centrobind.types import Embeddings, unit

DYNAMIC = "dynamic"
FOLDS = 5
MOST_DIMS = 256
REST = 1e-3  # weight of the modalities that are not the fixed anchor
MOST_FEATURES = 512
MOST_TOGETHER = 4096


@dataclass(frozen=True)
class ClosedForm:
    """z = unit(features[m](x) @ matrix[m] + bias[m]) for every modality m, and how it was chosen."""

    features: dict[str, Features]
    matrix: dict[str, Tensor]  # (width, dim) float32, zero columns beyond the dimension that was chosen
    bias: dict[str, Tensor]  # (dim,)
    spectrum: Tensor  # (chosen dimension,) how much the modalities agree
    choice: Choice
    anchor: str

    @torch.no_grad()
    def embed(self, samples: Samples) -> Embeddings:
        """Unit vectors where present, zeros elsewhere."""
        names = [name for name in self.features if name in samples.columns]
        dim = len(next(iter(self.bias.values())))
        z = torch.zeros(len(names), len(samples), dim)
        for start in range(0, len(samples), CHUNK):
            chunk = samples.take(slice(start, start + CHUNK))
            for row, name in enumerate(names):
                column = chunk.columns[name]
                if column.present.any():
                    x = self.features[name](column.take(np.arange(len(chunk))))
                    here = start + torch.from_numpy(np.flatnonzero(column.present))
                    z[row, here] = unit(x @ self.matrix[name] + self.bias[name]).cpu()
        return Embeddings(
            z,
            torch.from_numpy(samples.only(names).present),
            tuple(names),
            np.array(samples.ids[:]),
            *sameness(samples.only(names)),
        )


def fit_closed_form(
    samples: Samples,
    *,
    dim: int | None = None,
    anchor: str = DYNAMIC,
    groups: np.ndarray | None = None,
    features: Mapping[str, Features] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> ClosedForm:
    """The dynamic anchor (MAXVAR generalised CCA) of these samples, or ridge regression to a fixed `anchor` modality.

    All `samples` are learned from; none is held back in the end. `dim`: columns of the matrices; the dimension used is
    chosen up to it. `groups`: (N,) integers, samples of one group stay in one fold (default: the samples' own groups).
    `features`: learned ones, to be used again. Raises DataError for an unknown anchor or when no two modalities share
    a sample.
    """
    names = samples.modalities
    if anchor != DYNAMIC and anchor not in names:
        raise DataError(f"anchor {anchor!r}: expected {DYNAMIC!r} or one of {list(names)}")
    check_pairs(samples)
    most = min(MOST_FEATURES, max(MOST_TOGETHER // len(names), 16))
    if features is None:
        features = {name: learned_features(column, most=most, seed=seed) for name, column in samples.columns.items()}
    modules = {name: features[name].to(device) for name in names}
    if groups is None and samples.group is not None:
        groups = samples.group.codes
    fold_of = fold_numbers(len(samples), FOLDS, groups=groups, seed=seed)
    data = stream(modules, samples, fold_of)
    weights = [1.0 if anchor in (DYNAMIC, name) else REST for name in names]
    most_dims = int(min(dim or MOST_DIMS, sum(data.widths), max(len(samples) // 2, 2)))
    choice = choose([data.held_out(fold) for fold in range(data.count)], dim=most_dims, weights=weights)
    settings = choice.settings
    solution = solve(data.everything(), ridge=settings.ridge, weights=settings.weights, dim=settings.dim)
    scale = solution.spectrum**settings.power
    wide = dim or settings.dim
    matrix, bias = {}, {}
    for name, w, mean in zip(names, solution.maps, solution.means):
        full = w.new_zeros(len(w), wide)
        full[:, : w.shape[1]] = w * scale
        matrix[name], bias[name] = full.float(), -(mean @ full).float()
    return ClosedForm(modules, matrix, bias, solution.spectrum, choice, anchor)


def check_pairs(samples: Samples) -> None:
    """DataError unless some sample has two modalities and every modality some sample."""
    present = samples.present
    if empty := [name for name, here in zip(samples.modalities, present) if not here.any()]:
        raise DataError(f"modality {empty[0]!r} is missing from all {len(samples)} samples; leave it out")
    if not (present.sum(0) > 1).any():
        raise DataError(
            f"no sample has two of the modalities {list(samples.modalities)}: nothing says what belongs together"
        )
