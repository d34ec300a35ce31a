"""One step of training, from a batch to gradients. Whoever does a step, in a run or once more, does it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from centrobind.binder.augment import augment
from centrobind.binder.binder import Binder
from centrobind.distributed import ALONE, Team
from centrobind.objectives.base import Loss, Objective, sure_of_positives
from centrobind.seeds import seeded
from centrobind.training.config import TrainConfig
from centrobind.training.gradcache import GradCache
from centrobind.training.shard import is_divided
from centrobind.types import Batch, Embeddings


@dataclass(frozen=True)
class Step:
    """What a step made: embeddings of the whole batch, their views if there are any, and the loss."""

    z: Embeddings
    views: Embeddings | None
    loss: Loss


def differentiate(
    modules: nn.ModuleDict,
    batch: Batch,
    settings: TrainConfig,
    *,
    seed: int,
    step: int,
    team: Team = ALONE,
    sure: bool = False,
) -> Step:
    """Give the parameters of `modules` (towers and objective) their gradients for a prepared batch.

    The batch is this rank's part of the whole; every draw depends on (seed, step).
    """
    binder, objective = modules["towers"], modules["objective"]
    modules.zero_grad(set_to_none=True)
    embed = in_precision(binder, settings)
    if settings.chunk is not None:
        embed = GradCache(embed, settings.chunk, seed, step, most=max(team.parts(len(batch.all_ids))))
    with seeded(seed, step):
        z, views = embed(batch), None
        if (strength := view_strength(settings, binder, objective)) > 0:
            views = embed(augment(batch, binder.kinds, seed=(seed, step), strength=strength))
        z, views = team.gather(z, views, ids=batch.all_ids)
        # Only where there are any: an objective of one's own need not know of groups.
        groups = {} if batch.groups is None else {"groups": torch.from_numpy(batch.groups)}
        with team.dividing(), sure_of_positives(sure):
            loss = objective(z, views=views, **groups)
    loss.total.backward()
    if isinstance(embed, GradCache):
        embed.backward()
    team.average(value for value in modules.parameters() if not is_divided(value))  # FSDP2 has averaged the others
    return Step(z, views, loss)


def view_strength(settings: TrainConfig, binder: Binder, objective: Objective) -> float:
    """How strongly views are augmented, 0 = there are none: as set, else none beside a linear path."""
    if settings.augment is not None:
        return settings.augment
    beside = any(tower.linear is not None for tower in binder.towers.values())
    return 0.0 if beside and not objective.needs_views else 1.0


def in_precision(binder: Binder, settings: TrainConfig) -> Callable[[Batch], Embeddings]:
    """The towers, in bfloat16 where it pays; unit vectors and losses are float32 in any case.

    On a CPU without bfloat16 matrix units it makes a step slower, so "auto" means float32 there.
    """
    half = settings.precision == "bf16" or (settings.precision == "auto" and binder.device.type == "cuda")

    def towers(batch: Batch) -> Embeddings:
        with torch.autocast(binder.device.type, torch.bfloat16, enabled=half):
            return binder(batch)

    return towers
