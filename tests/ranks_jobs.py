"""What each rank does in the tests of ranks; test_ranks.py starts them and judges what they bring home."""

import inspect
import multiprocessing
import signal
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from centrobind.augment import augment
from centrobind.config import TrainConfig
from centrobind.data import Samples
from centrobind.errors import CentrobindError
from centrobind.model import build_binder
from centrobind.objectives import OBJECTIVES
from centrobind.ranks import ALONE, joined
from centrobind.run import RunFolder
from centrobind.seeds import seeded
from centrobind.train import train

ROWS = 11  # 5 + 6 on two ranks, 3 + 4 + 4 on three
LAYOUTS = ("gaps", "one rank only", "a rank without a positive")
CASES = [
    (name, count, layout)
    for name in OBJECTIVES
    for count in (2, 3, 5)
    for layout in LAYOUTS
    if (count == 3 or layout == "gaps") and (name != "triangle" or count == 3)
]


# ---- one gradient -----------------------------------------------------------------------------------------------


def make_objective(name, names):
    takes = inspect.signature(OBJECTIVES[name]).parameters
    known = {"anchor": names[-1], "modalities": names, "weights": {names[0]: 2.0}}
    options = {key: value for key, value in known.items() if key in takes}
    return OBJECTIVES[name](**options, temperature=0.3, learn_temperature=True)


def make_samples(count, layout, rows=ROWS):
    draw = np.random.default_rng(count)
    names = "abcde"[:count]
    present = draw.random((count, rows)) < 0.7
    present[:, -2:] = True  # the joint objectives need complete samples
    if layout == "one rank only":
        present[-1, : -rows // 3] = False
    if layout == "a rank without a positive":
        present[:, : rows // 2] = np.arange(rows // 2) % count == np.arange(count)[:, None]
    present[0] |= ~present.any(0)
    columns = {
        name: [f"{'word ' * (i + 1)}{i}" for i in range(rows)] if name == "b" else draw.normal(size=(rows, 3 + m))
        for m, name in enumerate(names)
    }
    return Samples.of(columns, present=dict(zip(names, present)), kinds={"b": "text"})


def gradient(team, name, count, layout):
    """Loss and gradients of one objective, learned temperature, dropout, views and gaps and all, in float64."""
    samples = make_samples(count, layout)
    names = samples.modalities
    encoders = {n: {"encoder": "mlp", "width": 6, "dropout": 0.3} for n in names if n != "b"}
    binder, objective = build_binder(samples, dim=4, encoders=encoders).double(), make_objective(name, names).double()
    modules = torch.nn.ModuleDict({"towers": binder, "objective": objective})
    rows = np.random.default_rng(1).permutation(len(samples)) if layout == "gaps" else np.arange(len(samples))
    batch = team.level(binder.prepare(samples.batch(rows, team.part(len(rows)))))
    with seeded(1, 2):
        z, views = binder(batch), binder(augment(batch, binder.kinds, seed=(3, 4)))
        z, views = team.gather(z, views, ids=rows)
        with team.dividing():
            loss = objective(z, views=views)
    loss.total.backward()
    team.average(modules.parameters())
    found = {key: value.grad for key, value in modules.named_parameters() if value.grad is not None}
    return loss.total.item(), found, loss.parts


def gradients(team):
    return {case: gradient(team, *case) for case in CASES}


def start(size, jobs, folder: Path) -> list[dict]:
    """Run functions of this module on so many ranks; what each rank found, by job, or the traceback of its error."""
    context = multiprocessing.get_context("forkserver")  # imports torch once, and forks before it has threads
    context.set_forkserver_preload(["ranks_jobs"])
    ranks = [context.Process(target=_rank, args=(rank, size, jobs, folder)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
        rank.kill()
    return [torch.load(folder / f"{rank}of{size}.pt", weights_only=False) for rank in range(size)]


def _rank(rank, size, jobs, folder):
    torch.set_num_threads(1)
    meet = f"file://{folder / f'meet{size}'}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    made = {}
    with joined() as team:
        for name, *args in jobs:
            try:
                made[name] = globals()[name](team, *args)
            except Exception:
                made[name] = traceback.format_exc()
                break
    torch.save(made, folder / f"{rank}of{size}.pt")
    dist.destroy_process_group()
