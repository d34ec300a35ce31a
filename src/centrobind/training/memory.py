"""How much memory a run will need, before it is started: measured on small batches, scaled to the asked ones.

Everything in towers grows with the samples in them; so does the loss once it is made of several tiles, but for the
exponentials that it keeps. So a few small measurements tell the rest. The memory is torch's, for tensors: the
interpreter and its libraries come on top (about 0.4 GB), and the data, unless they are mapped from a store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from centrobind.binder.augment import augment
from centrobind.binder.binder import Binder, build_binder
from centrobind.data import Samples, train_and_valid
from centrobind.objectives import infonce
from centrobind.objectives.base import Objective
from centrobind.objectives.tiles import TILES
from centrobind.seeds import seeded
from centrobind.training.config import RunConfig, TrainConfig
from centrobind.training.fit import configured_objective, configured_samples
from centrobind.training.loop import DEFAULT_BATCH
from centrobind.training.recipe import LEAST_DIM
from centrobind.training.step import in_precision, view_strength
from centrobind.types import Embeddings, unit

Made = TypeVar("Made")
FEW, MORE = 32, 64  # samples that towers are measured with
TILED = TILES["cpu"][0]  # samples from which on a loss is several tiles: what it takes then grows along a line


@dataclass(frozen=True)
class Need:
    """Bytes that a step with so many samples takes, and the most that are taken at a time."""

    batch_size: int
    parameters: int
    gradients: int
    optimizer: int
    batch: int
    towers: int  # what they keep for the backward pass, embeddings included
    loss: int  # its buffers, and the gradients of the embeddings
    peak: int  # less than the sum: gradients of weights come as what the towers kept goes


def plan(config: RunConfig, samples: Samples | None = None) -> list[Need]:
    """What the run of a config would need, with its batch size and with powers of two around it.

    Raises what the run would raise for data, modalities or encoders that do not fit.
    """
    learn, _ = train_and_valid(configured_samples(config, samples), valid=config.train.share, seed=config.seed)
    objective = configured_objective(config, learn.modalities)
    encoders = {name: about.encoder_spec() for name, about in (config.modalities or {}).items()}
    binder = build_binder(learn, dim=config.dim or LEAST_DIM, encoders=encoders, seed=config.seed)
    asked = config.train.batch_size or min(DEFAULT_BATCH, len(learn))
    near = [2 ** (asked.bit_length() - 1 + by) for by in (-2, -1, 0, 1, 2, 3)]
    sizes = sorted({asked, *(size for size in near if 2 <= size <= len(learn))})
    return needs(binder, objective, learn, config.train, sizes)


def needs(
    binder: Binder, objective: Objective, data: Samples, settings: TrainConfig, sizes: Sequence[int]
) -> list[Need]:
    """The same for a binder and an objective at hand. Neither is changed."""
    settings = settings.model_copy(update={"augment": view_strength(settings, binder, objective)})
    modules = nn.ModuleDict({"towers": binder, "objective": objective})
    frozen = {id(value) for name in objective.frozen for value in binder.towers[name].parameters()}
    trained = [value for value in modules.parameters() if value.requires_grad and id(value) not in frozen]
    parameters = _bytes([*modules.parameters(), *modules.buffers()])
    gradients = _bytes(trained)
    towers, passing, batch = _in_towers(binder, objective, data, settings)
    loss = _in_loss(objective, binder, settings)
    # The optimizer's step needs room for its numerator and denominator, one weight matrix at a time.
    updates = gradients + 2 * max((_bytes([value]) for value in trained), default=0)
    passes = 2 if settings.augment > 0 else 1
    found = []
    for size in sizes:
        inside, both_ways = towers(size), loss(size)
        most = max(inside + both_ways, passing(size), updates)
        if settings.chunk is not None:  # one chunk of one pass at a time, while all embeddings wait
            embeddings = 4 * len(binder.modalities) * binder.dim * size * passes
            inside = towers(min(size, settings.chunk)) // passes + embeddings
            chunk = passing(min(size, settings.chunk)) // passes
            most = max(embeddings + both_ways, 2 * embeddings + chunk, updates)
        kept = parameters + 2 * gradients + batch(size)
        found.append(
            Need(size, parameters, gradients, 2 * gradients, batch(size), inside, both_ways, round(kept + most))
        )
    return found


def allocations(work: Callable[[], Made]) -> tuple[Made, int, int]:
    """What `work` returns, the bytes of CPU tensors that are left of it, and the most there were at a time."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes two lines to stderr each time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        made = work()
    # torch has no public peak for the CPU; these events are each allocation and each release, in order.
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = np.cumsum([0, *(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))])
    return made, int(changes[-1]), int(changes.max())


def _in_towers(
    binder: Binder, objective: Objective, data: Samples, settings: TrainConfig
) -> tuple[Callable[[int], int], Callable[[int], int], Callable[[int], int]]:
    """Bytes by samples, of what towers keep, of the most there is in their backward pass (with gradients of weights),
    and of what goes into them; for z and views together."""
    towers = in_precision(binder, settings)
    kept, most, given = [], [], []
    was = {value: value.requires_grad for value in binder.parameters()}
    for name in objective.frozen:
        binder.towers[name].requires_grad_(False)
    try:
        for count in (FEW, MORE):
            raw = data.batch(np.arange(count) % len(data))
            batches, held, _ = allocations(lambda raw=raw: _with_view(binder, raw, settings))
            with seeded(0):
                made, live, _ = allocations(lambda batches=batches: [towers(batch) for batch in batches])
                _, _, more = allocations(lambda made=made: sum((one.z * one.z).sum() for one in made).backward())
            binder.zero_grad(set_to_none=True)
            given.append(held)
            kept.append(live)
            most.append(live + more)
    finally:
        for value, needed in was.items():
            value.requires_grad_(needed)
    return _line(kept), _line(most), _line(given)


def _with_view(binder: Binder, raw, settings: TrainConfig):
    batch = binder.prepare(raw)
    if settings.augment == 0:
        return [batch]
    return [batch, augment(batch, binder.kinds, seed=(0, 0), strength=settings.augment)]


def _in_loss(objective: Objective, binder: Binder, settings: TrainConfig) -> Callable[[int], int]:
    """Bytes by samples: measured where that is quick, else some for each, and the exponentials that are kept."""

    def peak(samples: int) -> int:
        made = [
            unit(torch.randn(len(binder.modalities), samples, binder.dim)).requires_grad_()
            for _ in range(2 if settings.augment > 0 else 1)
        ]
        there = torch.ones(made[0].shape[:2], dtype=torch.bool)
        z, *views = (Embeddings(x, there, binder.modalities) for x in made)
        with seeded(0):
            _, _, most = allocations(lambda: objective(z, views=views[0] if views else None).total.backward())
        objective.zero_grad(set_to_none=True)
        return most

    @cache
    def line() -> tuple[float, float, float]:
        """Bytes in any case and for each sample, if nothing is kept; and kept for each pair of samples."""
        everything = peak(TILED)
        before, objective.memory = objective.memory, 0
        try:
            few, more = peak(TILED), peak(2 * TILED)
        finally:
            objective.memory = before
        return 2 * few - more, (more - few) / TILED, (everything - few) / TILED**2

    def bytes_of(samples: int) -> int:
        if samples <= TILED:
            return peak(samples)
        rest, each, square = line()
        room, least = objective.memory, 0.0
        if room is None:
            room = infonce.MEMORY["cpu"] - 2 * 4 * len(binder.modalities) * samples * binder.dim
            least = infonce.WORTH_KEEPING
        kept = min(square * samples**2, room) if room >= least * square * samples**2 else 0
        return round(rest + each * samples + kept)

    return bytes_of


def _line(values: Sequence[int]) -> Callable[[int], int]:
    """Bytes by samples, through the two measurements."""
    each = (values[1] - values[0]) / (MORE - FEW)
    return lambda samples: max(0, round(values[0] + each * (samples - FEW)))


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)
