"""One pass over the data: the moments of every fold, and the features of the samples that will be scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from centrobind.closed_form.choose import HeldOut
from centrobind.closed_form.features import Features
from centrobind.closed_form.gcca import Principal, principal
from centrobind.closed_form.moments import Moments
from centrobind.data import Samples

CHUNK = 4096  # samples read at a time
KEPT = 5000  # samples whose features are kept, of all folds together


@dataclass(frozen=True)
class Streamed:
    """What is known of the data after one pass."""

    folds: list[Moments]
    features: list[Tensor]  # (n, features) of the samples kept, evenly spread; all samples where these are few
    present: Tensor  # (M, n) bool
    fold_of: Tensor  # (n,) fold of the samples kept
    whole: bool  # whether all samples were kept

    @property
    def widths(self) -> tuple[int, ...]:
        return self.folds[0].widths

    @property
    def count(self) -> int:
        """Number of folds."""
        return len(self.folds)

    def held_out(self, fold: int) -> HeldOut:
        """One fold to be scored by what all others say, in single precision: only ranks are looked at."""
        inside = self.fold_of == fold
        others = [part for number, part in enumerate(self.folds) if number != fold]
        train = single_precision(self._principal(sum(others[1:], start=others[0]), ~inside))
        return HeldOut(train, [x[inside] for x in self.features], self.present[:, inside])

    def everything(self) -> Principal:
        """All samples together."""
        return self._principal(
            sum(self.folds[1:], start=self.folds[0]), torch.ones_like(self.fold_of, dtype=torch.bool)
        )

    def _principal(self, moments: Moments, rows: Tensor) -> Principal:
        if not self.whole:
            return principal(moments)
        return principal(moments, [x[rows].double() for x in self.features], self.present[:, rows])


def single_precision(at: Principal) -> Principal:
    """The same in float32."""
    lists = ([x.float() for x in each] for each in (at.directions, at.variances, at.means))
    pair = (None if x is None else x.float() for x in (at.covariances, at.rows))
    return Principal(*lists, *pair)


@torch.no_grad()
def stream(features: Mapping[str, Features], samples: Samples, fold_of: np.ndarray) -> Streamed:
    """Read the samples once, CHUNK by CHUNK."""
    device = next(iter(features.values())).components.mean.device
    folds = [Moments.zero([module.width for module in features.values()], device) for _ in range(fold_of.max() + 1)]
    picked = np.zeros(len(samples), bool)
    picked[np.linspace(0, len(samples) - 1, min(len(samples), KEPT)).astype(np.int64)] = True
    kept: list[tuple[list[Tensor], Tensor]] = []
    for start in range(0, len(samples), CHUNK):
        place = slice(start, start + CHUNK)
        x, present = chunk_features(features, samples.take(place), device)
        for fold in range(len(folds)):
            inside = torch.from_numpy(fold_of[place] == fold).to(device)
            folds[fold] += Moments.of([values[inside] for values in x], present[:, inside])
        keep = torch.from_numpy(picked[place]).to(device)
        kept.append(([values[keep] for values in x], present[:, keep]))
    columns = [torch.cat(parts) for parts in zip(*(x for x, _ in kept))]
    present = torch.cat([here for _, here in kept], dim=1)
    return Streamed(folds, columns, present, torch.from_numpy(fold_of[picked]).to(device), bool(picked.all()))


def chunk_features(
    features: Mapping[str, Features], chunk: Samples, device: torch.device
) -> tuple[Sequence[Tensor], Tensor]:
    """(n, width) features per modality, zeros where missing, and (M, n) which are present."""
    present = torch.from_numpy(chunk.present).to(device)
    rows = []
    for (name, module), here in zip(features.items(), present):
        x = torch.zeros(len(chunk), module.width, device=device)
        if here.any():
            x[here] = module(chunk.columns[name].take(np.arange(len(chunk))))
        rows.append(x)
    return rows, present
