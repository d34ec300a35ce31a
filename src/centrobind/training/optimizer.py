"""AdamW and its learning rate: which parameters decay, and how the rate rises and falls."""

from __future__ import annotations

import math

import torch
from torch import nn

from centrobind.training.config import TrainConfig


def make_optimizer(modules: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay, because pulling a bias, a norm's scale or a temperature to zero means nothing.

    A parameter with an `lr_scale`, such as a pretrained one, learns at that share of the rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for value in modules.parameters():
        if value.requires_grad:
            groups.setdefault((getattr(value, "lr_scale", 1.0), value.ndim >= 2), []).append(value)
    return torch.optim.AdamW(
        [
            {"params": values, "weight_decay": settings.weight_decay if matrices else 0.0, "scale": scale}
            for (scale, matrices), values in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        ],
        lr=settings.lr,
        fused=True,  # a fourth of the time on a CPU, and on a GPU an update can be left out without waiting for it
    )


def schedule(step: int, settings: TrainConfig) -> float:
    """Between 0 and 1: a straight rise over the warmup, then half a cosine down; level where weights are averaged.

    Averaging does what a falling rate does, and needs no end that is known beforehand.
    """
    warmup = max(1, round(settings.warmup * settings.most_steps))
    if step < warmup:
        return (step + 1) / warmup
    if settings.average > 0:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.most_steps - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
