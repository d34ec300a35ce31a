"""A modality's values as stored -> (n, width) numbers for a linear map: what all kinds share, and plain vectors.

All kinds end in at most `most` principal components, in the scale of the standardised features, learned on up to
MOST_ROWS samples; then perhaps a kernel. A module is saved as its state_dict and its `describe()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.closed_form.components import Components, Kernel
from centrobind.data import Column
from centrobind.errors import DataError

MOST_ROWS = 10_000  # rows that components are learned on: enough to know a mean to 1 %
MOST_NUMBERS = 2**27  # numbers held while learning, half a gigabyte: fewer rows of wider values
SLICE = 256  # values that are expanded at a time


class Features(nn.Module):
    """A modality's values -> (n, width) features, zero on average over the samples it was learned on."""

    components: Components
    kernel: Kernel | None

    def __init__(self, kind: str, shape: tuple[int, ...]):
        super().__init__()
        self.kernel = None
        self.kind, self.raw_shape = kind, tuple(shape)

    @property
    def width(self) -> int:
        """Number of features."""
        return (self.components if self.kernel is None else self.kernel).width

    def learn(self, column: Column, most: int, seed: int = 0) -> None:
        """From up to MOST_ROWS present values, evenly spread; at most `most` features."""
        values = some_values(column, int(np.prod(self.raw_shape)))
        self.prepare(self.numbers(values), torch.Generator().manual_seed(seed))
        blocks = self.sliced(values)
        widths = [block.shape[1] for block in blocks]
        self.components = Components.learned(torch.cat(blocks, 1), widths, most, seed=seed)

    def forward(self, values: Any) -> Tensor:
        """Values as stored, (n, ...) -> (n, width) on the module's device."""
        x = self.linear(values)
        return x if self.kernel is None else self.kernel(x)

    def linear(self, values: Any) -> Tensor:
        """The principal components that the kernel, if there is one, starts from."""
        return self.components(torch.cat(self.sliced(values), 1))

    def sliced(self, values: Any) -> list[Tensor]:
        """`blocks` of any number of values, SLICE at a time: raw features may be many times wider than the values."""
        x = self.numbers(values).to(next(iter(self.buffers()), torch.empty(0)).device)
        if len(x) == 0:
            return [block[:0] for block in self.blocks(x.new_zeros(1, *x.shape[1:]))]
        return [torch.cat(parts) for parts in zip(*(self.blocks(part) for part in x.split(SLICE)))]

    def prepare(self, x: Tensor, draw: torch.Generator) -> None:
        """Learn or draw what `blocks` needs, from numbers as they are stored."""

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Raw features (n, ...) in blocks that get an equal share of the variance."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """All but the tensors, as JSON: enough to build the module again."""
        kernel = None if self.kernel is None else list(self.kernel.basis.shape)
        shape, (raw, width) = list(self.raw_shape), self.components.basis.shape
        return {"kind": self.kind, "shape": shape, "raw": raw, "width": width, "kernel": kernel}

    def rebuild(self, description: Mapping[str, Any]) -> None:
        """Room for the tensors that the description speaks of."""
        self.components = Components(description["raw"], description["width"])
        if description["kernel"] is not None:
            self.kernel = Kernel(description["width"], *description["kernel"])

    def numbers(self, values: Any) -> Tensor:
        """Stored values as a float tensor; DataError if they have another shape than in training."""
        array = torch.as_tensor(np.asarray(values)) if not isinstance(values, Tensor) else values
        if tuple(array.shape[1:]) != self.raw_shape:
            raise DataError(f"expected samples of shape {self.raw_shape}, as in training, got {tuple(array.shape[1:])}")
        return array.float()


class VectorFeatures(Features):
    """The numbers themselves."""

    def blocks(self, x: Tensor) -> list[Tensor]:
        return [x.flatten(1)]


def some_values(column: Column, numbers: int) -> Any:
    """Up to MOST_ROWS present values, evenly spread over the samples, fewer where each has very many numbers."""
    rows = column.rows[column.present]
    most = max(min(MOST_ROWS, MOST_NUMBERS // max(numbers, 1)), 2)
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
    return column.values[picked]
