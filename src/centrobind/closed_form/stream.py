"""One pass over any amount of data: features, chunk by chunk, and the sums of their products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.closed_form.features import Features
from centrobind.closed_form.moments import Moments
from centrobind.data import Column, Samples
from centrobind.distributed import team as our_team

CHUNK = 4096  # samples read at a time


@torch.no_grad()
def stream(features: Mapping[str, Features], samples: Samples) -> Moments:
    """Moments of all samples; each rank reads its share, and all get the sum."""
    team = our_team()
    device = next(iter(features.values())).components.mean.device
    moments = Moments.zero([module.width for module in features.values()], device)
    own = team.part(len(samples))
    for start in range(own.start, own.stop, CHUNK):
        chunk = samples.take(slice(start, min(start + CHUNK, own.stop)))
        present = torch.from_numpy(chunk.present).to(device)
        rows = [
            chunk_features(module, chunk.columns[name], here, module.width)
            for (name, module), here in zip(features.items(), present)
        ]
        moments += Moments.of(rows, present)
    return Moments(team.sum(moments.products), moments.widths)


@torch.no_grad()
def chunk_features(extract: Callable[[Any], Tensor], column: Column, present: Tensor, width: int) -> Tensor:
    """(n, width) features of all samples of a column, zeros where it is missing."""
    x = torch.zeros(len(present), width, device=present.device)
    if present.any():
        x[present] = extract(column.take(np.arange(len(present))))
    return x
