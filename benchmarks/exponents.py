"""How time grows: of the loss with samples, modalities and dimensions, of embedding with rows; and the plot.

    python benchmarks/exponents.py            about two minutes of CPU time on one thread
    python benchmarks/exponents.py --page     writes table and plot of docs/performance.md again

CPU seconds of one thread, medians of turns that all sizes of a line take together. The exponent is the slope of a line
through the logarithms: 1 is proportional, 2 quadratic.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import figures
import numpy as np
import pages
import torch
from loss_forms import TEMPERATURE, inputs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.objectives.infonce import infonce

RESULTS = Path(__file__).parent / "results" / "exponents.json"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, PLOT = DOCS / "performance.md", DOCS / "exponents.png"
LINES = {  # what grows: sizes, and the exponent that the formulas have
    "samples": ((1024, 2048, 4096, 8192), 2),
    "modalities": ((2, 4, 8), 1),
    "dimensions": ((64, 256, 1024), 1),
    "rows": ((10_000, 100_000, 1_000_000), 1),
}
SAYS = {
    "samples": "the loss, M = 4, d = 256, by N",
    "modalities": "the loss, N = 2,048, d = 256, by M",
    "dimensions": "the loss, M = 4, N = 2,048, by d",
    "rows": "embedding two modalities of 16 numbers, by rows",
}


def call_of(line: str, size: int) -> Callable[[], object]:
    """What is timed: forward and backward of the loss, or embedding."""
    if line == "rows":
        draw = np.random.default_rng(0)
        samples = cb.Samples.of({name: draw.normal(size=(size, 16)).astype(np.float32) for name in "ab"})
        encoders = {name: {"encoder": "linear"} for name in "ab"}
        binder = build_binder(samples.take(np.arange(1000)), dim=16, encoders=encoders)
        return lambda: binder.embed(samples)
    shape = {"samples": (4, size, 256), "modalities": (size, 2048, 256), "dimensions": (4, 2048, size)}[line]
    query, key = inputs(shape)

    def call() -> None:
        query.grad = key.grad = None
        infonce(query, key, None, None, torch.tensor([TEMPERATURE])).means.mean().backward()

    return call


def measure(turns: int = 2) -> dict[str, dict[str, float]]:
    """Seconds by line and size."""
    taken = {}
    for line, (sizes, _) in LINES.items():
        seconds = figures.turns({str(size): call_of(line, size) for size in sizes}, turns)
        taken[line] = {size: statistics.median(each) for size, each in seconds.items()}
        print(line, taken[line], flush=True)
    return taken


def exponent(seconds: dict[str, float]) -> float:
    """The slope of log seconds by log size."""
    logs = [(math.log(int(size)), math.log(value)) for size, value in seconds.items()]
    return statistics.linear_regression(*zip(*logs)).slope


def table(results: dict[str, dict[str, float]]) -> str:
    """In Markdown."""
    rows = []
    for line, seconds in results.items():
        sizes = ", ".join(f"{int(size):,}: {value:.3g} s" for size, value in seconds.items())
        rows.append([SAYS[line], sizes, f"{exponent(seconds):.2f}", LINES[line][1]])
    return pages.table(["what", "CPU seconds", "exponent", "by the formula"], rows, others="---")


def plot(results: dict[str, dict[str, float]]) -> Figure:
    """One panel per line, logarithmic."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (line, seconds) in zip(figure.subplots(1, len(results)), results.items()):
        sizes = [int(size) for size in seconds]
        place.loglog(sizes, list(seconds.values()), marker="o", color="#d1495b")
        place.set(xlabel=line, title=f"{exponent(seconds):.2f}")
        place.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        place.minorticks_off()
        place.spines[["top", "right"]].set_visible(False)
    figure.supylabel("CPU seconds")
    return figure


def write() -> None:
    """Table and plot from the results file."""
    results = json.loads(RESULTS.read_text())
    pages.fill(PAGE, {"exponents table": table(results)})
    plot(results).savefig(PLOT, dpi=110, facecolor="white")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--page" not in sys.argv:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    write()
