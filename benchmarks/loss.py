"""What does the fused InfoNCE cost, in seconds and in memory, and what do others cost?

    python benchmarks/loss.py             about 11 minutes on 2 quiet cores; killed, it goes on where it was
    python benchmarks/loss.py --quick     only 8192 samples of 256 dimensions in 4 modalities
    python benchmarks/loss.py --fresh     forgets what was measured before
    python benchmarks/loss.py --json F    writes there instead of benchmarks/results/loss.json
    python benchmarks/loss.py --page      measures nothing, only writes tables and plot of docs/performance.md again

One call is forward and backward of the loss alone, float32, temperature 0.07. All that have the same shape take turns,
so that a machine that slows down slows all of them; ratios are medians over the turns of ratios within a turn. Memory
is the most that was allocated at a time in a first, untimed call, less the gradients of the inputs. A call that would
take more than LIMIT_GB or LIMIT_S, to judge from the same with fewer samples, is not made. A call from which other
processes took more than DISTURBED of the cores is made again, up to TRIES, and the least disturbed counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from centrobind.objectives import tiles
from centrobind.objectives.dense_infonce import dense_infonce
from centrobind.objectives.infonce import infonce
from centrobind.training.memory import allocations
from centrobind.types import unit

RESULTS = Path(__file__).parent / "results" / "loss.json"
TEMPERATURE = 0.07
LIMIT_GB, LIMIT_S, LONG_S = 8.0, 30.0, 45.0  # a call; LONG_S for what the slopes are read from
TURNS = (2, 7)  # fewest at TARGET, most anywhere
TRIES, DISTURBED = 3, 0.04  # of a call, and the share of the cores that others may take from it
LONG_ENOUGH_S = 0.5  # for /proc's clock, which ticks every 10 ms, to tell
PATIENCE_S, TARGET_PATIENCE_S = 2.0, 15.0  # seconds of turns for each cell

Shape = tuple[int, int, int]  # modalities, samples, dimensions
Work = Callable[[Tensor, Tensor], Tensor]  # (M, N, D) queries and keys to a loss ()
TARGET: Shape = (4, 8192, 256)
SAMPLES = (1024, 2048, 4096, 8192, 16384, 32768)
LINES = ((4, 256), (3, 256), (8, 256), (4, 768), (3, 768), (8, 768))  # modalities, dimensions


# ---- what is compared -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """`sees`: "nothing"; "terms", M queries each with its own key; "pairs", all pairs of the M queries; "both", all
    pairs with the negatives of both modalities. `lines`: of LINES, how many; 0 for TARGET alone."""

    make: Callable[[], Work | Callable[[Tensor, Tensor], Bare]]
    sees: str = "terms"
    lines: int = 0
    quadratic: bool = True  # memory, by samples
    says: str = ""
    half: bool = False


def of_terms(**options) -> Work:
    """The mean over modalities of symmetric InfoNCE between queries and keys."""

    def loss(query: Tensor, key: Tensor) -> Tensor:
        there = everyone(query, True) if options.get("gaps") else None
        temperature = torch.tensor([options.get("temperature", TEMPERATURE)], requires_grad=options.get("learn", False))
        return infonce(query, key, there, there, temperature, memory=options.get("memory")).means.mean()

    return loss


def dense_terms(query: Tensor, key: Tensor) -> Tensor:
    there, pairs = everyone(query, False), [(m, m) for m in range(len(query))]
    return dense_infonce(query, key, there, there, torch.tensor([TEMPERATURE]), pairs=pairs).mean() / query.shape[1]


def everyone(z: Tensor, gaps: bool) -> Tensor:
    """(M, N) bool; with gaps every fifth sample lacks a modality, each time another one."""
    present = torch.ones(z.shape[:2], dtype=torch.bool)
    if gaps:
        rows = torch.arange(0, z.shape[1], 5)
        present[(rows // 5) % len(z), rows] = False
    return present


def fused_pairs(query: Tensor, key: Tensor) -> Tensor:
    pairs = list(itertools.combinations(range(len(query)), 2))
    return infonce(query, query, None, None, torch.tensor([TEMPERATURE]), pairs=pairs).means.mean()


def over_pairs(of_two: Callable[[Tensor, Tensor], Tensor]) -> Work:
    def loss(query: Tensor, key: Tensor) -> Tensor:
        return torch.stack([of_two(one, other) for one, other in itertools.combinations(query, 2)]).mean()

    return loss


def open_clip_form(one: Tensor, other: Tensor) -> Tensor:
    """ClipLoss on one rank: two products, two cross entropies."""
    labels, scale = torch.arange(len(one)), 1 / TEMPERATURE
    return (F.cross_entropy(scale * one @ other.T, labels) + F.cross_entropy(scale * other @ one.T, labels)) / 2


def lightly_form(one: Tensor, other: Tensor) -> Tensor:
    """NTXentLoss: each of 2N rows against the 2N - 1 others."""
    both = F.normalize(torch.cat([one, other]), dim=1)
    logits = (both @ both.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(both)).roll(len(one)))


def sentence_transformers() -> Work:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    two_ways = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    theirs = MultipleNegativesRankingLoss(None, scale=1 / TEMPERATURE, **two_ways)
    return over_pairs(lambda one, other: theirs.compute_loss_from_embeddings([one, other], None))


def metric_learning() -> Work:
    """Their SupConLoss, which is NT-Xent where a row has one positive; their NTXentLoss holds (2N, 4N^2) numbers."""
    from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss

    return over_pairs(SelfSupervisedLoss(SupConLoss(temperature=TEMPERATURE)))


def symile() -> Work:
    from symile import Symile

    theirs = Symile("n")
    return lambda query, key: theirs(list(query), 1 / TEMPERATURE)


class Bare:
    """The three multiplications of each tile, and nothing else: not even new memory for what they give.

    With `again` the forward product twice, as it must be by whoever does not keep it."""

    def __init__(self, query: Tensor, key: Tensor, again: bool = False):
        self.again = again
        self.query, self.key = query.detach(), key.detach()
        self.d_query, self.d_key = torch.zeros_like(self.query), torch.zeros_like(self.key)

    def __call__(self) -> None:
        rows, cols = tiles.TILES["cpu"]
        buffer = torch.empty(rows * cols)
        for q, k, d_q, d_k in zip(self.query, self.key, self.d_query, self.d_key):
            for own, d_own in zip(q.split(rows), d_q.split(rows)):
                for other, d_other in zip(k.split(cols), d_k.split(cols)):
                    s = buffer[: len(own) * len(other)].view(len(own), len(other))
                    for _ in range(1 + self.again):
                        torch.mm(own, other.T, out=s)
                    d_own.addmm_(s, other)
                    d_other.addmm_(s.T, own)


CONTENDERS: dict[str, Contender] = {
    "bare multiplies": Contender(lambda: Bare, "nothing", 6, False, says="6 M N² d operations, nothing else"),
    "bare, matrix made twice": Contender(
        lambda: partial(Bare, again=True), "nothing", quadratic=False, says="8 M N² d operations, nothing else"
    ),
    "fused": Contender(of_terms, lines=6, quadratic=False, says="M terms"),
    "dense": Contender(lambda: dense_terms, lines=4, says="M terms, one matrix each"),
    "fused, all pairs": Contender(lambda: fused_pairs, "pairs", 1, False, "M(M-1)/2 terms"),
    "open_clip form": Contender(lambda: over_pairs(open_clip_form), "pairs", 4, says="ClipLoss of all pairs, our text"),
    "sentence-transformers": Contender(
        sentence_transformers, "pairs", 1, says="MultipleNegativesRankingLoss, both ways"
    ),
    "lightly form": Contender(lambda: over_pairs(lightly_form), "both", 1, says="NTXentLoss of all pairs, our text"),
    "pytorch-metric-learning": Contender(metric_learning, "both", 1, says="SupConLoss of all pairs"),
    "symile": Contender(symile, "joint", 1, says="Symile('n'): M terms, one way, shuffled negatives"),
    "fused, learned temperature": Contender(lambda: of_terms(learn=True), quadratic=False),
    "fused, gaps": Contender(lambda: of_terms(gaps=True), quadratic=False),
    "fused, bfloat16": Contender(of_terms, quadratic=False, half=True),
    "fused, temperature 0.005": Contender(lambda: of_terms(temperature=0.005), quadratic=False),
}


# ---- measuring --------------------------------------------------------------------------------------------------


def inputs(shape: Shape, half: bool = False) -> tuple[Tensor, Tensor]:
    """Unit queries and keys, (M, N, D), a third of each in common."""
    draw = torch.Generator().manual_seed(0)
    common, *own = (torch.randn(*size, generator=draw) for size in (shape[1:], shape, shape))
    dtype = torch.bfloat16 if half else torch.float32
    return tuple(unit(common + 1.4 * part).to(dtype).requires_grad_() for part in own)


def call_of(name: str, shape: Shape) -> tuple[Callable[[], object], int]:
    """One forward and backward, and the bytes of gradients it leaves. ImportError where a peer is not installed."""
    about = CONTENDERS[name]
    work = about.make()
    query, key = inputs(shape, about.half)
    if about.sees == "nothing":
        return work(query, key), 0

    def call() -> None:
        query.grad = key.grad = None
        work(query, key).backward()

    left = query.numel() * query.element_size()
    return call, 2 * left if about.sees == "terms" else left


def measure(shape: Shape, cells: dict[str, dict], save: Callable[[], None], say: Callable[[str], None]) -> None:
    """Fill the cells of one shape; what is there already is kept."""
    calls = {}
    patience = TARGET_PATIENCE_S if shape == TARGET else PATIENCE_S
    for name in wanted(shape):
        cell = cells.setdefault(key_of(name, shape), {})
        if "missing" in cell or "too_much" in cell:
            continue
        if too_much := foreseen(name, shape, cells):
            cell["too_much"] = too_much
            continue
        try:
            call, gradients = call_of(name, shape)
        except ImportError as error:
            cell["missing"] = str(error)
            continue
        calls[name] = call
        if "megabytes" not in cell:
            say(f"{key_of(name, shape)}: memory")
            start = time.perf_counter()
            _, _, peak = allocations(call)
            cell["megabytes"] = (peak - gradients) / 1e6
            seconds = time.perf_counter() - start
            least = TURNS[0] if shape == TARGET else 1
            cell["turns"] = max(least, min(TURNS[1], int(patience / seconds)))
            cell["seconds"], cell["others"] = [], []
            save()
    for turn in range(TURNS[1]):
        todo = [name for name in calls if len(cells[key_of(name, shape)]["seconds"]) == turn]
        todo = [name for name in todo if turn < cells[key_of(name, shape)]["turns"]]
        if not todo:
            continue
        # A turn is kept whole or not at all: its ratios are what counts.
        say(f"{key_of(todo[0], shape)} and {len(todo) - 1} others: turn {turn + 1}")
        took = {}
        for name in todo:
            took[name] = timed(calls[name])
        for name, (seconds, others) in took.items():
            cells[key_of(name, shape)]["seconds"].append(seconds)
            cells[key_of(name, shape)]["others"].append(others)
        save()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and the share of the cores that other processes had meanwhile; again if that was much, twice at most.

    Two threads that wait for each other lose up to ten times when a third process wants a core.
    """
    tries = []
    while len(tries) < TRIES:
        start, before = time.perf_counter(), busy()
        call()
        seconds = time.perf_counter() - start
        others = max(0.0, busy() - before) / seconds / (os.cpu_count() or 1)
        tries.append((seconds, others))
        if others <= DISTURBED or seconds < LONG_ENOUGH_S:
            break
    return min(tries, key=lambda one: one[1])


def busy() -> float:
    """Seconds that cores have spent on other processes since the machine started; 0 where nobody counts them."""
    about = Path("/proc/stat")
    if not about.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, about.read_text().split("\n")[0].split()[1:])
    own = os.times()
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def wanted(shape: Shape) -> list[str]:
    """Who runs with this shape."""
    line = LINES.index((shape[0], shape[2])) if (shape[0], shape[2]) in LINES else 0
    return [name for name, about in CONTENDERS.items() if line < about.lines or shape == TARGET]


def foreseen(name: str, shape: Shape, cells: dict[str, dict]) -> str | None:
    """What makes this call too large, to judge from one with half the samples, or a quarter where that was not made."""
    count, samples, dim = shape
    times, before = 2, cells.get(key_of(name, (count, samples // 2, dim)))
    if before is None:
        times, before = 4, trial(name, (count, samples // 4, dim))
    if before is None:
        return None
    if "too_much" in before:
        return "more still"
    seconds = times**2 * statistics.median(before["seconds"])
    gigabytes = times ** (2 if CONTENDERS[name].quadratic else 1) * before["megabytes"] / 1e3
    if gigabytes > LIMIT_GB:
        return f"about {gigabytes:.0f} GB"
    long = (count, dim) == (TARGET[0], TARGET[2]) and name in ("fused", "bare multiplies")
    return f"about {seconds:.0f} s" if seconds > (LONG_S if long else LIMIT_S) else None


def trial(name: str, shape: Shape) -> dict | None:
    """A cell of one call, to judge others from; None where a peer is not installed."""
    try:
        call, gradients = call_of(name, shape)
    except ImportError:
        return None
    _, _, peak = allocations(call)
    return {"megabytes": (peak - gradients) / 1e6, "seconds": [timed(call)[0]]}


def key_of(name: str, shape: Shape) -> str:
    return f"{name} {'x'.join(map(str, shape))}"


def machine() -> dict[str, object]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "cpu": cpu()}


def cpu() -> str:
    about = Path("/proc/cpuinfo")
    names = [line for line in about.read_text().splitlines() if line.startswith("model name")] if about.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def main(argv: list[str]) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--fresh", action="store_true")
    options.add_argument("--page", action="store_true")
    asked = options.parse_args(argv)
    if not asked.page:
        found = json.loads(asked.json.read_text()) if asked.json.exists() and not asked.fresh else {}
        if found.get("machine") != machine():
            found = {"machine": machine(), "cells": {}}

        def save() -> None:
            asked.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")

        sys.stdout.reconfigure(line_buffering=True)
        start = time.perf_counter()
        # The target first: a run that is cut short has it. The longest last.
        shapes = [(count, samples, dim) for samples in SAMPLES for count, dim in LINES]
        for shape in [TARGET] if asked.quick else sorted(shapes, key=lambda shape: shape != TARGET):
            measure(shape, found["cells"], save, lambda what: print(f"{time.perf_counter() - start:4.0f} s  {what}"))
        save()
    if asked.json == RESULTS:
        from loss_page import write

        write()


if __name__ == "__main__":
    main(sys.argv[1:])
