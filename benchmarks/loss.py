"""What does the fused InfoNCE cost, in seconds and in memory, and what do others cost?

    python benchmarks/loss.py             about 11 minutes on 2 quiet cores; killed, it resumes where it was
    python benchmarks/loss.py --quick     only 8192 samples of 256 dimensions in 4 modalities
    python benchmarks/loss.py --fresh     forgets what was measured before
    python benchmarks/loss.py --json F    writes there instead of benchmarks/results/loss.json
    python benchmarks/loss_page.py        writes tables and plot of docs/performance.md from the results file

One call is forward and backward of the loss alone, float32, temperature 0.07. All that have the same shape take turns,
so that a machine that slows down slows all of them; ratios are medians over the turns of ratios within a turn. Memory
is the most that was allocated at a time in a first, untimed call, less the gradients of the inputs. A call that would
take more than LIMIT_GB or LIMIT_S, to judge from the same with fewer samples, is not made. A call from which other
processes took more than DISTURBED of the cores is made again, up to TRIES, and the least disturbed counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import loss_forms
import torch

from centrobind.training.memory import allocations

RESULTS = Path(__file__).parent / "results" / "loss.json"
LIMIT_GB, LIMIT_S, LONG_S = 8.0, 30.0, 45.0  # a call; LONG_S for what the slopes are read from
TURNS = (2, 7)  # fewest at the target, most anywhere
TRIES = 3  # of a call
PATIENCE_S, TARGET_PATIENCE_S = 2.0, 15.0  # seconds of turns for each cell


# ---- measuring --------------------------------------------------------------------------------------------------


def measure(
    shape: loss_forms.Shape, cells: dict[str, dict], save: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Fill the cells of one shape; what is there already is kept."""
    calls = {}
    patience = TARGET_PATIENCE_S if shape == loss_forms.TARGET else PATIENCE_S
    for name in loss_forms.wanted(shape):
        cell = cells.setdefault(loss_forms.key_of(name, shape), {})
        if "missing" in cell or "too_much" in cell:
            continue
        if too_much := foreseen(name, shape, cells):
            cell["too_much"] = too_much
            continue
        try:
            call, gradients = loss_forms.call_of(name, shape)
        except ImportError as error:
            cell["missing"] = str(error)
            continue
        calls[name] = call
        if "megabytes" not in cell:
            say(f"{loss_forms.key_of(name, shape)}: memory")
            start = time.perf_counter()
            _, _, peak = allocations(call)
            cell["megabytes"] = (peak - gradients) / 1e6
            seconds = time.perf_counter() - start
            least = TURNS[0] if shape == loss_forms.TARGET else 1
            cell["turns"] = max(least, min(TURNS[1], int(patience / seconds)))
            cell["seconds"], cell["others"] = [], []
            save()
    for turn in range(TURNS[1]):
        todo = [name for name in calls if len(cells[loss_forms.key_of(name, shape)]["seconds"]) == turn]
        todo = [name for name in todo if turn < cells[loss_forms.key_of(name, shape)]["turns"]]
        if not todo:
            continue
        # A turn is kept whole or not at all: its ratios are what counts.
        say(f"{loss_forms.key_of(todo[0], shape)} and {len(todo) - 1} others: turn {turn + 1}")
        took = {}
        for name in todo:
            took[name] = timed(calls[name])
        for name, (seconds, others) in took.items():
            cells[loss_forms.key_of(name, shape)]["seconds"].append(seconds)
            cells[loss_forms.key_of(name, shape)]["others"].append(others)
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
        if others <= loss_forms.DISTURBED or seconds < loss_forms.LONG_ENOUGH_S:
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


def foreseen(name: str, shape: loss_forms.Shape, cells: dict[str, dict]) -> str | None:
    """What makes this call too large, to judge from one with half the samples, or a quarter where that was not made."""
    count, samples, dim = shape
    times, before = 2, cells.get(loss_forms.key_of(name, (count, samples // 2, dim)))
    if before is None:
        times, before = 4, trial(name, (count, samples // 4, dim))
    if before is None:
        return None
    if "too_much" in before:
        return "more still"
    seconds = times**2 * statistics.median(before["seconds"])
    gigabytes = times ** (2 if loss_forms.CONTENDERS[name].quadratic else 1) * before["megabytes"] / 1e3
    if gigabytes > LIMIT_GB:
        return f"about {gigabytes:.0f} GB"
    long = (count, dim) == (loss_forms.TARGET[0], loss_forms.TARGET[2]) and name in ("fused", "bare multiplies")
    return f"about {seconds:.0f} s" if seconds > (LONG_S if long else LIMIT_S) else None


def trial(name: str, shape: loss_forms.Shape) -> dict | None:
    """A cell of one call, to judge others from; None where a peer is not installed."""
    try:
        call, gradients = loss_forms.call_of(name, shape)
    except ImportError:
        return None
    _, _, peak = allocations(call)
    return {"megabytes": (peak - gradients) / 1e6, "seconds": [timed(call)[0]]}


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
    chosen = options.parse_args(argv)
    results = json.loads(chosen.json.read_text()) if chosen.json.exists() and not chosen.fresh else {}
    if results.get("machine") != machine():
        results = {"machine": machine(), "cells": {}}

    def save() -> None:
        chosen.json.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")

    sys.stdout.reconfigure(line_buffering=True)
    start = time.perf_counter()
    # The target first: a run that is cut short has it. The longest last.
    shapes = [(count, samples, dim) for samples in loss_forms.SAMPLES for count, dim in loss_forms.LINES]
    for shape in [loss_forms.TARGET] if chosen.quick else sorted(shapes, key=lambda shape: shape != loss_forms.TARGET):
        measure(shape, results["cells"], save, lambda what: print(f"{time.perf_counter() - start:4.0f} s  {what}"))
    save()


if __name__ == "__main__":
    main(sys.argv[1:])
