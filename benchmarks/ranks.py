"""Do several ranks compute the gradient of one process, and what does a second process cost?

    python benchmarks/ranks.py            writes benchmarks/results/ranks.json, about 4 minutes on 2 cores
    python benchmarks/ranks.py --tables   only the tables of docs/scale.md again

Parity: every objective on the same 96 samples with gaps, gradients of all towers on 2 and 3 gloo ranks, in float32,
next to those of one process; and the two usual slips in place of ours:

    local loss        each rank compares its own samples only, gradients are averaged (plain DDP)
    cut gather        embeddings are gathered without gradient, a rank's own put back, gradients are averaged

Joint: the most memory that the loss of an objective takes, by whole matrices and in tiles.

Weak scaling: seconds a step with one thread per process and the same number of samples per process.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import re
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from centrobind.binder.augment import augment
from centrobind.binder.binder import build_binder
from centrobind.data import Samples
from centrobind.data.builtin import synthetic
from centrobind.distributed import ALONE, Team, bytes_per_step, joined
from centrobind.errors import DataError
from centrobind.objectives import infonce, tiled_tuples
from centrobind.objectives.table import OBJECTIVES
from centrobind.seeds import seeded
from centrobind.training.config import TrainConfig
from centrobind.training.loop import train
from centrobind.training.memory import allocations
from centrobind.types import Embeddings, unit

RESULTS = Path(__file__).parent / "results" / "ranks.json"
DOCS = Path(__file__).parents[1] / "docs" / "scale.md"
FORMS = ("ours", "local loss", "cut gather")
SIZES = (2, 3)
PER_RANK = (256, 1024)
JOINT, JOINT_SAMPLES = ("symile", "gram", "triangle", "pmrl", "ova_ib"), (1024, 2048)
NAMES = ("image", "audio", "text")
EXAMPLES = {  # ranks, samples of the whole batch, dimensions, trained numbers
    "a laptop, two processes": (2, 512, 64, 500_000),
    "one node of 8 GPUs": (8, 8192, 512, 300_000_000),
    "8 nodes of 8 GPUs": (64, 65536, 512, 300_000_000),
}


def main() -> None:
    if "--tables" not in sys.argv:
        RESULTS.write_text(json.dumps(measured(), indent=1) + "\n")
    text = DOCS.read_text()
    for name, made in tables(json.loads(RESULTS.read_text())).items():
        text = re.sub(f"(<!-- {name} table -->\n).*?(<!-- /{name} table -->)", rf"\1{made}\2", text, flags=re.DOTALL)
    DOCS.write_text(text)


def measured() -> dict:
    alone = {name: gradient(ALONE, "ours", name) for name in OBJECTIVES}
    parity = {name: {} for name in OBJECTIVES}
    for size in SIZES:
        for name, forms in start(size, parity_on_this_rank).items():
            parity[name][str(size)] = {form: compared(made, alone[name]) for form, made in forms.items()}
    joint = {name: {str(size): peaks(name, size) for size in JOINT_SAMPLES} for name in JOINT}
    traffic = {
        label: bytes_per_step(ranks=k, modalities=3, samples=n, dim=d, parameters=p)
        for label, (k, n, d, p) in EXAMPLES.items()
    }
    return {
        "torch": torch.__version__,
        "parity": parity,
        "joint": joint,
        "weak_scaling": weak_scaling(),
        "bytes_per_step": traffic,
    }


def tables(found: dict) -> dict[str, str]:
    """The tables of docs/scale.md in Markdown, by name."""
    parity = [
        [
            f"`{name}`",
            *(
                f"{sizes[str(size)]['ours']['difference']:.0e}, {sizes[str(size)]['ours']['cosine']:.4f}"
                for size in SIZES
            ),
            *(f"{sizes['2'][form]['cosine']:.4f}, {sizes['2'][form]['length']:.2f}" for form in FORMS[1:]),
        ]
        for name, sizes in found["parity"].items()
    ]
    heads = [f"ours on {size} ranks: difference, cosine" for size in SIZES]
    heads += [f"{form}: cosine, length" for form in FORMS[1:]]
    traffic = [
        [label, *map(str, EXAMPLES[label]), *(f"{sent / 1e6:,.2f}" for sent in kinds.values())]
        for label, kinds in found["bytes_per_step"].items()
    ]
    sent = list(next(iter(found["bytes_per_step"].values())))
    scaling = [
        [per_rank, *(f"{about[size]:.3f}" for size in ("one", "two")), f"{about['throughput']:.2f}"]
        for per_rank, about in found["weak_scaling"].items()
    ]
    joint = [
        [f"`{name}`", *(f"{made[form] / 1e6:,.0f}" for made in sizes.values() for form in ("matrices", "tiles"))]
        for name, sizes in found["joint"].items()
    ]
    heads_joint = [f"{size} samples, {form}" for size in JOINT_SAMPLES for form in ("matrices", "tiles")]
    return {
        "joint": table(["objective", *heads_joint], joint),
        "parity": table(["objective", *heads], parity),
        "bytes": table(["", "K", "N", "D", "P", *sent], traffic),
        "scaling": table(["samples per process", "1 process, s", "2 processes, s", "throughput"], scaling),
    }


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


# ---- parity -----------------------------------------------------------------------------------------------------


def some_samples(count: int = 96) -> Samples:
    """Gaps everywhere; text is missing from the whole first third."""
    draw = np.random.default_rng(0)
    base = draw.normal(size=(count, 8))
    columns = {name: base @ draw.normal(size=(8, 12)) + draw.normal(size=(count, 12)) for name in NAMES}
    present = draw.random((3, count)) < 0.75
    present[2, : count // 3] = False
    present[0] |= ~present.any(0)
    return Samples.of(columns, present=dict(zip(NAMES, present)))


def make(name: str):
    takes = inspect.signature(OBJECTIVES[name]).parameters
    known = {"anchor": "text", "modalities": NAMES, "weights": {"image": 2.0}}
    return OBJECTIVES[name](**{key: value for key, value in known.items() if key in takes}, temperature=0.1)


def gradient(team: Team, form: str, name: str) -> torch.Tensor:
    """The gradient of all towers, one after the other."""
    samples, objective = some_samples(), make(name)
    binder = build_binder(samples, dim=32)
    rows = np.arange(len(samples))
    batch = team.level(binder.prepare(samples.batch(rows, team.part(len(rows)))))
    with seeded(0):
        z, views = binder(batch), binder(augment(batch, binder.kinds, seed=(1, 2)))
        if form == "ours":
            z, views = team.gather(z, views, ids=batch.whole)
            with team.dividing():
                loss = objective(z, views=views).total
        elif form == "cut gather":
            z, views = (put_back(*team.gather(part.detach(), ids=rows), part, team) for part in (z, views))
            loss = objective(z, views=views).total
        else:
            try:
                loss = objective(z, views=views).total
            except DataError:  # nothing to learn from on this rank: plain DDP would have hung or skipped
                loss = 0 * z.z.sum()
    loss.backward()
    team.average(binder.parameters())
    return torch.cat([value.grad.reshape(-1) for value in binder.parameters()])


def put_back(whole: Embeddings, own: Embeddings, team: Team) -> Embeddings:
    part = team.part(len(whole))
    return whole.with_z(torch.cat([whole.z[:, : part.start], own.z, whole.z[:, part.stop :]], dim=1))


def parity_on_this_rank(team: Team) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {form: gradient(team, form, name) for form in FORMS} for name in OBJECTIVES}


def compared(made: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Largest difference over the largest number; cosine; length over length."""
    made, expected = made.double(), expected.double()
    return {
        "difference": float((made - expected).abs().max() / expected.abs().max()),
        "cosine": float(made @ expected / (made.norm() * expected.norm())),
        "length": float(made.norm() / expected.norm()),
    }


# ---- memory of the joint objectives --------------------------------------------------------------------------------


def peaks(name: str, samples: int) -> dict[str, int]:
    """Bytes beyond the inputs, forward and backward, M = 3 of 256 dimensions, with views; gradients are counted."""
    draw = torch.Generator().manual_seed(0)
    made = [unit(torch.randn(3, samples, 256, generator=draw)).requires_grad_() for _ in range(2)]
    there = torch.ones(3, samples, dtype=torch.bool)
    was = tiled_tuples.DENSE_UP_TO, infonce.WHOLE

    def both_ways() -> None:
        z, views = (Embeddings(each, there, NAMES) for each in made)
        objective = make(name)
        objective.memory = 0  # what more would be kept does not grow
        objective(z, views=views).total.backward()

    found = {}
    for form, up_to in (("matrices", samples), ("tiles", 0)):
        tiled_tuples.DENSE_UP_TO, infonce.WHOLE = up_to, 3 * up_to**2
        found[form] = allocations(both_ways)[2]
        for each in made:
            each.grad = None
    tiled_tuples.DENSE_UP_TO, infonce.WHOLE = was
    return found


# ---- weak scaling -----------------------------------------------------------------------------------------------


def seconds_a_step(team: Team, per_rank: int) -> float:
    """Three modalities, towers of three layers with 1.7 million numbers, leave_one_out.

    The tenth percentile of the steps, because whatever else a machine does only ever makes a step longer.
    """
    samples = synthetic(4096, 3, seed=0)
    encoders = {name: {"encoder": "mlp", "width": 512, "depth": 3} for name in samples.modalities}
    binder = build_binder(samples, dim=64, encoders=encoders)
    steps = 32 + 12288 // per_rank
    settings = TrainConfig(steps=steps, batch_size=per_rank * team.size, log_every=1000, tensorboard=False)
    ends: list[float] = []
    objective = OBJECTIVES["leave_one_out"]()
    train(binder, objective, samples, None, settings, watch=lambda done, **_: ends.append(time.perf_counter()))
    return float(np.percentile(np.diff(ends[12:]), 10)) if team.leads else 0.0


def weak_scaling() -> dict[str, dict[str, float]]:
    """The shorter of two tries each, taken in turn."""
    found: dict[str, dict[str, float]] = {}
    for per_rank in PER_RANK:
        tries = [[start(size, seconds_a_step, per_rank) for size in (1, 2)] for _ in range(2)]
        one, two = (min(times) for times in zip(*tries))
        found[str(per_rank)] = {"one": one, "two": two, "throughput": 2 * one / two}
    return found


# ---- processes --------------------------------------------------------------------------------------------------


def start(size: int, work, *args):
    """What the first of several processes returns."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        ranks = [context.Process(target=_rank, args=(rank, size, folder, work, *args)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
            if rank.exitcode:
                raise SystemExit(f"a rank ended with {rank.exitcode}")
        return torch.load(Path(folder) / "found.pt", weights_only=False)


def _rank(rank: int, size: int, folder: str, work, *args) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=timedelta(minutes=3))
    with joined() as team:
        found = work(team, *args)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
