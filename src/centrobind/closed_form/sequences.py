"""Sequences for the closed form: their steps, and how much of the time each of many random patterns is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from centrobind.closed_form.features import Features

LONGEST = 128  # steps; longer sequences are averaged down to so many
KERNELS = 512
TAPS = 9  # steps that a kernel looks at
CHANNELS = 3  # that a kernel looks at
STRETCHES = (1, 2, 4, 8, 16)  # distances between the steps that a kernel looks at
QUARTERS = 4


class SequenceFeatures(Features):
    """(time, channels...): every step, and for random kernels the share of each quarter in which they are exceeded.

    Random convolutions over stretched steps with the proportion of positive values (ROCKET, Dempster et al. 2020), in
    quarters, so that what happens first is kept apart from what happens last.
    """

    mean: Tensor  # (channels, 1)
    scale: Tensor  # (channels, 1)
    kernels: Tensor  # (KERNELS, channels, taps)
    thresholds: Tensor  # (KERNELS,)

    def __init__(self, kind: str, shape: tuple[int, ...]):
        super().__init__(kind, shape)
        self.steps, self.channels = min(shape[0], LONGEST), int(torch.Size(shape[1:]).numel())
        self.taps = min(TAPS, self.steps)
        self.stretches = [s for s in STRETCHES if (self.taps - 1) * s < self.steps]
        self.register_buffer("mean", torch.zeros(self.channels, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1))
        self.register_buffer("kernels", torch.zeros(KERNELS, self.channels, self.taps))
        self.register_buffer("thresholds", torch.zeros(KERNELS))

    def prepare(self, x: Tensor, draw: torch.Generator) -> None:
        """Random kernels, and for each a threshold that it exceeds for a random share of the time."""
        x = self._arranged(x)
        self.mean.copy_(x.mean((0, 2))[:, None])
        self.scale.copy_(x.std((0, 2), correction=0)[:, None].clamp(min=1e-6))
        weights = torch.randn(KERNELS, self.channels, self.taps, generator=draw)
        looked_at = torch.zeros(KERNELS, self.channels)
        looked_at.scatter_(1, torch.randint(self.channels, (KERNELS, CHANNELS), generator=draw), 1.0)
        self.kernels.copy_((weights - weights.mean(2, keepdim=True)) * looked_at[:, :, None])
        responses = self._responses(x[:: max(len(x) // 64, 1)])
        shares = torch.rand(KERNELS, generator=draw)
        for kernel, (values, share) in enumerate(zip(responses.transpose(0, 1), shares)):
            ordered = values.flatten().sort().values
            self.thresholds[kernel] = ordered[int(share * (len(ordered) - 1))]

    def blocks(self, x: Tensor) -> list[Tensor]:
        x = self._arranged(x)
        exceeded = (self._responses(x) > self.thresholds[:, None]).float()
        return [x.flatten(1), F.adaptive_avg_pool1d(exceeded, min(QUARTERS, self.steps)).flatten(1)]

    def _arranged(self, x: Tensor) -> Tensor:
        """(n, channels, steps)"""
        x = x.reshape(len(x), self.raw_shape[0], -1).transpose(1, 2)
        return F.adaptive_avg_pool1d(x, self.steps) if x.shape[2] > self.steps else x

    def _responses(self, x: Tensor) -> Tensor:
        """(n, KERNELS, steps) of all kernels, an equal number of them at every stretch."""
        x = (x - self.mean) / self.scale
        parts: list[Any] = []
        for stretch, kernels in zip(self.stretches, self.kernels.tensor_split(len(self.stretches))):
            reach = (self.taps - 1) * stretch
            parts.append(F.conv1d(F.pad(x, (reach // 2, reach - reach // 2)), kernels, dilation=stretch))
        return torch.cat(parts, 1)
