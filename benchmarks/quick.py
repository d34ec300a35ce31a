"""The quick form of every benchmark, and one table: figure, target, verdict.

    make bench                         under 10 minutes; writes benchmarks/results/quick.json
    python benchmarks/quick.py loss_figures      these modules only

A module of MODULES has a function quick() -> list[Figure] (see figures). One thread each; what cannot be measured on
this machine says so. Figures are CPU time or ratios within one run, so that a machine
with other work on it can take them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import figures
import pages
import torch
from figures import Figure

RESULTS = Path(__file__).parent / "results" / "quick.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MODULES = ("loss_figures", "gpu")


def measure(modules: tuple[str, ...]) -> dict[str, object]:
    """The figures of each module, and the machine they are of."""
    taken: dict[str, list[dict[str, object]]] = {}
    for name in modules:
        start = time.perf_counter()
        taken[name] = [asdict(figure) for figure in importlib.import_module(name).quick()]
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return {"machine": {"torch": torch.__version__, "cores": os.cpu_count(), "cpu": cpu()}, "figures": taken}


def cpu() -> str:
    """The processor's name."""
    about = Path("/proc/cpuinfo")
    names = [line for line in about.read_text().splitlines() if line.startswith("model name")] if about.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def of(results: dict) -> list[Figure]:
    """The figures of a results file."""
    return [Figure(**figure) for each in results["figures"].values() for figure in each]


def parts(results: dict) -> dict[str, str]:
    """What docs/performance.md shows of them."""
    machine = "{cpu}, one thread on {cores} cores that others use too, torch {torch}; medians of ratios in one run."
    return {"figures table": figures.table(of(results)), "figures machine": machine.format(**results["machine"])}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("modules", nargs="*", default=MODULES)
    chosen = tuple(options.parse_args().modules)
    torch.set_num_threads(1)
    results = measure(chosen)
    print(figures.table(of(results)))
    if chosen == MODULES:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        pages.fill(PAGE, parts(results))


if __name__ == "__main__":
    main()
