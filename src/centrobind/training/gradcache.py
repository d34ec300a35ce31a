"""Batches larger than the towers' memory, with the exact gradient (GradCache, Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs all embeddings at once, but a tower only its own samples. So embed chunk by chunk without a
graph, differentiate the loss by the embeddings, then embed each chunk again, with a graph, and hand it its share of
that gradient. One more forward pass, and activations of one chunk instead of the batch:

    cache = GradCache(binder, 256, seed, step)
    loss = objective(cache(batch), views=cache(augmented))
    loss.total.backward()
    cache.backward()

Exact for towers in which samples do not see each other; ours have no batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from centrobind.seeds import seeded
from centrobind.types import Batch, Embeddings


class GradCache:
    """Stands in for a binder, `chunk` samples at a time; call `backward()` after the loss's own.

    Draws inside the towers (dropout) depend on the seed, the call and the chunk, so that both passes make the same.
    """

    def __init__(self, towers: Callable[[Batch], Embeddings], chunk: int, *seed: int, most: int = 0):
        """`most`: samples of the rank that has most, when towers are called by all ranks together or not at all."""
        self.towers, self.chunk, self.seed, self.most = towers, chunk, seed, most
        self._calls: list[tuple[Batch, Tensor]] = []

    def __call__(self, batch: Batch) -> Embeddings:
        """A prepared batch -> its embeddings, as leaves that collect their gradient."""
        with torch.no_grad():
            parts = [made for _, made in self._embed(batch, len(self._calls))]
        z = torch.cat([part.z for part in parts], dim=1).requires_grad_()
        self._calls.append((batch, z))
        present = batch.present.to(z.device, non_blocking=True)
        whole = replace(parts[0], z=z, present=present, ids=batch.ids)
        return whole.knowing(complete=all(part.complete for part in parts))

    def backward(self) -> None:
        """Carry the gradients that the embeddings have collected on into the towers."""
        for call, (batch, z) in enumerate(self._calls):
            if z.grad is None:
                continue
            for rows, made in self._embed(batch, call):
                if made.z.requires_grad:  # not if all towers are frozen
                    made.z.backward(z.grad[:, rows].to(made.z.dtype))

    def _embed(self, batch: Batch, call: int) -> Iterator[tuple[slice, Embeddings]]:
        for place, (rows, part) in enumerate(chunks(batch, self.chunk, self.most)):
            with seeded(*self.seed, call, place):
                made = self.towers(part)
            yield rows, made


def chunks(batch: Batch, size: int, most: int = 0) -> Iterator[tuple[slice, Batch]]:
    """The batch in order, `size` samples at a time; then empty ones, until `most` samples could have gone by."""
    before = np.pad(batch.present.cpu().numpy().cumsum(1), ((0, 0), (1, 0))).tolist()
    for start in range(0, max(len(batch), most, 1), size):  # an empty one too: a rank may have no sample at all
        rows = slice(min(start, len(batch)), min(start + size, len(batch)))
        # Inputs hold only the samples that are there, so their places are counts of those before.
        places = {name: slice(count[rows.start], count[rows.stop]) for name, count in zip(batch.modalities, before)}
        inputs, features = (
            {name: values[places[name]] for name, values in (each or {}).items()}
            for each in (batch.inputs, batch.features)
        )
        yield rows, Batch(inputs, batch.present[:, rows], batch.ids[rows], features=features)
