"""All that the closed form needs of any amount of data: sums of products of features, added up chunk by chunk.

D is the number of features of all modalities together. Memory is in D squared, whatever the number of samples; sums
of parts add up, so folds are subtracted and ranks are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over samples of [x, p]^T [x, p]: x all features of a sample, zero where missing, p which are present.

    With the indicators p among the columns, the same matrix holds the sums of a modality's features over the samples
    in which another one is present too, and how many these are: all that centring needs when anything may be missing.
    """

    products: Tensor  # (D + M, D + M) float64
    widths: tuple[int, ...]  # features of each modality

    @classmethod
    def zero(cls, widths: Sequence[int], device: torch.device | None = None) -> Moments:
        """Of no samples."""
        size = sum(widths) + len(widths)
        return cls(torch.zeros(size, size, dtype=torch.float64, device=device), tuple(widths))

    @classmethod
    def of(cls, features: Sequence[Tensor], present: Tensor) -> Moments:
        """Of one chunk: features[m] is (n, widths[m]), whatever where missing; present is (M, n) bool."""
        x = [torch.where(here[:, None], values.double(), 0) for values, here in zip(features, present)]
        columns = torch.cat([*x, present.T.double()], dim=1)
        return cls(columns.T @ columns, tuple(values.shape[1] for values in features))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.products + other.products, self.widths)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.products - other.products, self.widths)

    @property
    def blocks(self) -> list[slice]:
        """Where each modality's features lie."""
        ends = [sum(self.widths[: m + 1]) for m in range(len(self.widths))]
        return [slice(end - width, end) for end, width in zip(ends, self.widths)]

    @property
    def counts(self) -> Tensor:
        """(M, M) samples in which both modalities are present, on the diagonal one."""
        size = sum(self.widths)
        return self.products[size:, size:]

    @property
    def means(self) -> Tensor:
        """(M, D) each modality's mean over the samples in which it is present, zero in the columns of the others."""
        size = sum(self.widths)
        means = self.products.new_zeros(len(self.widths), size)
        for m, block in enumerate(self.blocks):
            means[m, block] = self.products[block, size + m] / self.counts[m, m].clamp(min=1)
        return means

    def centred(self) -> Tensor:
        """(D, D) sums of (x - mean)^T (x - mean), each block over the samples in which both modalities are present."""
        size = sum(self.widths)
        means, crossed = self.means, self.products[size:, :size]
        # (x - p E)^T (x - p E) with E the means: nothing of the data is needed a second time.
        return self.products[:size, :size] - means.T @ crossed - crossed.T @ means + means.T @ self.counts @ means
