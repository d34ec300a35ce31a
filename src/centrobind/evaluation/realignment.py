"""What each pair could have had: the same encoders, frozen, under new linear heads that use every pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.binder.binder import Binder
from centrobind.data import Samples, sameness
from centrobind.errors import DataError
from centrobind.objectives.anchored import AllPairs
from centrobind.progress import Watch, silent
from centrobind.seeds import mix_seed, seeded
from centrobind.types import Embeddings

STEPS, BATCH, LR, DECAY = 200, 256, 3e-3, 0.05
TEMPERATURE = 0.1  # the middle of what all pairs was best at on every data set tried; bounds choose their own anyway
MOST_SAMPLES = 8192  # to learn 2 D numbers per feature from; a store may hold millions
CHUNK = 1024
LEAST_STD = 1e-4  # a feature that hardly moves is noise: do not blow it up


def realigned(
    binder: Binder, train: Samples, test: Samples, *, steps: int = STEPS, seed: int = 0, watch: Watch = silent
) -> Embeddings:
    """Embeddings of `test` under heads trained anew on `train` with all pairs, everything before the heads kept.

    An objective that leaves a pair to its anchor can drop what only that pair shares. Where these embeddings share more
    than the binder's own, the encoders know it and the objective did not ask. Costs seconds. Raises DataError.
    """
    if (together := int((train.present.sum(0) >= 2).sum())) < 2:
        raise DataError(f"{together} of {len(train)} training samples have two modalities; new heads need two")
    learn = train.take(np.linspace(0, len(train) - 1, min(MOST_SAMPLES, len(train))).astype(np.int64))
    names = [name for name in binder.modalities if name in test.modalities]
    known, asked = _features(binder, learn.only(names)), _features(binder, test.only(names))
    here = {name: torch.from_numpy(learn.columns[name].present) for name in names}
    for name in names:
        seen = known[name][here[name]]
        mean, std = seen.mean(0), seen.std(0, correction=0).clamp(min=LEAST_STD)
        known[name], asked[name] = (known[name] - mean) / std, (asked[name] - mean) / std
    with seeded(seed):
        heads = nn.ModuleList(nn.Linear(known[name].shape[1], binder.dim, bias=False) for name in names)
    loss, optimizer = AllPairs(temperature=TEMPERATURE), torch.optim.AdamW(heads.parameters(), LR, weight_decay=DECAY)
    for step in range(steps):
        draw = torch.Generator().manual_seed(mix_seed(seed, step))
        rows = torch.randperm(len(learn), generator=draw)[:BATCH]
        if (torch.stack([here[name][rows] for name in names]).sum(0) >= 2).sum() < 2:
            continue  # a batch of samples that are all alone teaches nothing
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        z = {name: head(known[name][rows]) for name, head in zip(names, heads)}
        optimizer.zero_grad()
        loss(z, present={name: here[name][rows] for name in names}).total.backward()
        optimizer.step()
        watch(step + 1)
    with torch.no_grad():
        z = {name: head(asked[name]) for name, head in zip(names, heads)}
    present = {name: torch.from_numpy(test.columns[name].present) for name in names}
    groups, values = sameness(test.only(names))
    return replace(Embeddings.of(z, present, test.ids[:]), groups=groups, values=values)


@torch.no_grad()
def _features(binder: Binder, samples: Samples) -> dict[str, Tensor]:
    """By modality (N, width): everything before the head, zeros where the modality is missing."""
    found: dict[str, Tensor] = {}
    binder.eval()
    for start in range(0, len(samples), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(samples)))
        batch = binder.prepare(samples.batch(rows))
        for name, here in zip(batch.modalities, batch.present.cpu()):
            own = (batch.features or {}).get(name)
            features = binder.towers[name].before_head(batch.inputs[name], own).float().cpu()
            found.setdefault(name, torch.zeros(len(samples), features.shape[1]))
            found[name][torch.from_numpy(rows)[here]] = features
    return found
