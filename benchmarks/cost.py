"""What a training step of every objective costs, in time and in memory, with the towers and data of the arena.

    python benchmarks/cost.py                  writes benchmarks/results/cost.json, a few minutes on one core

Milliseconds are medians over turns in which every objective does a few steps, so that the drift of a shared machine
meets all of them; megabytes are tensors at the peak of a step (centrobind.training.memory). Batches of 128, glyphs 192.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch

from centrobind.arena.contenders import contenders
from centrobind.arena.plan import ArenaConfig, finals, objective_of
from centrobind.arena.trials import store_of
from centrobind.binder.binder import build_binder
from centrobind.data import Sampler, open_store, train_and_valid
from centrobind.progress import progress
from centrobind.training.config import TrainConfig, load_checked
from centrobind.training.memory import needs
from centrobind.training.step import differentiate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cost.json"
SETS, TURNS, STEPS = ("glyphs", "utd_mhad", "mfeat"), 8, 2


def prepared(name: str, config: ArenaConfig) -> dict:
    """By label: what a step needs, and the peak of its memory."""
    data = next(one for one in config.datasets() if one.label == name)
    learn, _ = train_and_valid(open_store(store_of(data, Path(config.out))), valid=0.2)
    made = {}
    for contender in contenders("all", learn.modalities):
        if contender.unable(learn.modalities) or contender.anchor not in (None, learn.modalities[0]):
            continue  # one anchor stands for all
        trial = next(iter(finals(config, data, contender, (0.1, 4e-3))))
        module = objective_of(trial, learn.modalities)
        binder = build_binder(learn, dim=trial.dim, encoders=trial.encoders)
        settings = TrainConfig(steps=1, batch_size=trial.batch_size, tensorboard=False)
        for frozen in module.frozen:
            binder.towers[frozen].requires_grad_(False)
        peak = needs(binder, module, learn, settings, [trial.batch_size])[0].peak
        modules = torch.nn.ModuleDict({"towers": binder, "objective": module}).train()
        rows = next(iter(Sampler(len(learn), trial.batch_size)))
        made[contender.label] = modules, binder.prepare(learn.batch(rows)), settings, peak
    return made


def main() -> None:
    torch.set_num_threads(1)
    config = load_checked(ArenaConfig, HERE / "arena.yaml")
    found = {}
    with progress("cost", len(SETS) * TURNS) as watch:
        for place, name in enumerate(SETS):
            made = prepared(name, config)
            times: dict[str, list[float]] = {label: [] for label in made}
            for turn in range(TURNS):
                for label, (modules, batch, settings, _) in made.items():
                    began = time.perf_counter()
                    for step in range(STEPS):
                        differentiate(modules, batch, settings, seed=0, step=turn * STEPS + step)
                    times[label].append((time.perf_counter() - began) / STEPS)
                watch(place * TURNS + turn + 1)
            found[name] = {
                label: {"ms": round(1000 * statistics.median(times[label]), 2), "mb": round(made[label][3] / 1e6, 1)}
                for label in made
            }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
