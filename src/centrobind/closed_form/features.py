"""A modality's values as stored -> (n, width) numbers for a linear map: what all kinds share, and plain vectors.

All kinds end in principal components, in the scale of the standardised features, and then perhaps in a kernel. A module
is saved as its state_dict and its `describe()`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from centrobind.closed_form.components import Components, Kernel
from centrobind.errors import DataError

MOST_NUMBERS = 2**26  # raw features held while learning, a quarter of a gigabyte: of wider ones fewer rows
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

    def learn(self, values: Any, most: int, seed: int = 0) -> Tensor:
        """From values as stored; at most `most` features. Returns those of the values, without a kernel."""
        x = self.numbers(values)
        self.prepare(x, torch.Generator().manual_seed(seed))
        widths = [block.shape[1] for block in self.blocks(x[:1])]
        rows = max(MOST_NUMBERS // sum(widths), 2)
        picked = x if len(x) <= rows else x[torch.linspace(0, len(x) - 1, rows).long()]
        raw = torch.cat(self.sliced(picked), 1)
        self.components = Components.learned(raw, widths, most, seed=seed)
        linear: Tensor = self.components(raw) if picked is x else self.linear(x)
        return linear

    def forward(self, values: Any) -> Tensor:
        """Values as stored, (n, ...) -> (n, width) on the module's device."""
        x = self.linear(values)
        bent: Tensor = x if self.kernel is None else self.kernel(x)
        return bent

    def without_kernel(self) -> Features:
        """The same, sharing all tensors, ending in principal components."""
        other = copy.copy(self)
        other._modules = {name: module for name, module in self._modules.items() if name != "kernel"}
        other.kernel = None
        return other

    def linear(self, values: Any) -> Tensor:
        """The principal components that the kernel, if there is one, starts from."""
        components: Tensor = self.components(torch.cat(self.sliced(values), 1))
        return components

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
