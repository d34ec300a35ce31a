"""Try candidates for the default objective on the validation parts of the arena's data; the test splits stay unseen.

    python benchmarks/winner.py NAME ...       adds to benchmarks/results/winner.json
    python benchmarks/winner.py                only makes the table of docs/experiments.md again

NAME is an objective of the package or a function of benchmarks/candidates.py. Same encoders, starting points, data
order and steps as benchmarks/arena.yaml, whose start stage (`centrobind compare`) must have run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pages
import torch

from centrobind.arena.contenders import contenders
from centrobind.arena.plan import ArenaConfig, searches
from centrobind.arena.trials import run_trial
from centrobind.training.config import load_checked

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "winner.json", HERE.parent / "docs" / "experiments.md"
SETS = ("glyphs", "utd_mhad", "mfeat", "mosi", "emoji")  # rosmap validates on 49 samples: noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.05, 0.07, 0.1, 0.14])
    parser.add_argument("--lrs", type=float, nargs="*", default=[1.2e-2])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sets", nargs="*", default=SETS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_checked(ArenaConfig, HERE / "arena.yaml")
    out = Path(config.out)
    search = config.search.model_copy(update={"temperatures": tuple(options.temperatures), "lrs": tuple(options.lrs)})
    config = config.model_copy(update={"search": search.model_copy(update={"seeds": options.seeds})})
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in options.names:
        for data in [one for one in config.datasets() if one.label in options.sets]:
            own = (HERE / "candidates.py").read_text().count(f"{name}") and name not in ("leave_one_out", "all_pairs")
            contender = contenders([f"{HERE / 'candidates.py'}:{name}" if own else name], ["a", "b", "c"])[0]
            for trial in searches(config, data, contender):
                key = f"{name}/{data.label}/{trial.temperature}/{trial.lr}/{trial.seed}"
                if key not in rows:
                    rows[key] = run_trial(replace(trial, stage="search"), data, out)["valid"]
                    rows = (json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}) | rows
                    RESULTS.write_text(json.dumps(rows, indent=0) + "\n")
        print(line(rows, name), flush=True)
    pages.fill(PAGE, {"ideas": page(rows)})


def settings_of(rows: dict, name: str) -> dict[str, tuple[str, list[float]]]:
    """By data set, the temperature with the best mean MRR over seeds, and MRR, mean and worst recall@1 there, in %."""
    found: dict[str, dict[str, list]] = {}
    for key, scores in rows.items():
        one, where, temperature, lr, _ = key.split("/")
        if one == name:
            found.setdefault(where, {}).setdefault(f"{temperature} {lr}", []).append(scores)
    made = {}
    for where, by_setting in found.items():
        best = max(by_setting, key=lambda s: np.mean([f["cosine"] for f in by_setting[s]]))
        scores = [100 * np.mean([f[what] for f in by_setting[best]]) for what in ("cosine", "mean", "worst")]
        made[where] = best.split()[0], scores
    return made


def line(rows: dict, name: str) -> str:
    found = settings_of(rows, name)
    return f"{name:<18}" + "".join(
        f"| {where} " + " ".join(f"{score:5.2f}" for score in scores) + f" ({temperature}) "
        for where, (temperature, scores) in found.items()
    )


def page(rows: dict) -> str:
    """Every idea that was tried, by its mean distance from leave-one-out over the sets both were tried on."""
    names = list(dict.fromkeys(key.split("/")[0] for key in rows))
    base = settings_of(rows, "leave_one_out")
    lines = []
    for name in names:
        found = settings_of(rows, name)
        apart = np.mean([found[where][1][0] - base[where][1][0] for where in found if where in base])
        cells = []
        for where in SETS:
            temperature, scores = found.get(where, (None, []))
            cells.append("" if temperature is None else f"{scores[0]:.1f} / {scores[2]:.1f} ({temperature})")
        lines.append((apart, [f"`{name}`", *cells, f"{apart:+.1f}"]))
    ordered = [cells for _, cells in sorted(lines, key=lambda one: -one[0])]
    return pages.table(["validation, MRR / worst R@1 in %", *SETS, "MRR over `leave_one_out`"], ordered)


if __name__ == "__main__":
    main()
