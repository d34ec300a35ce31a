"""Try candidates for the default objective on the validation parts of the arena's data; the test splits stay unseen.

    python benchmarks/winner.py NAME ...       adds to benchmarks/results/winner.json; prints the table so far

NAME is an objective of the package or a function of benchmarks/candidates.py. Same encoders, starting points, data
order and steps as benchmarks/arena.yaml, whose start stage (`centrobind compare`) must have run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from centrobind.arena.plan import ArenaConfig, contenders, searches
from centrobind.arena.trials import run_trial
from centrobind.config import load_checked

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "winner.json"
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
        print(*table(rows, name), sep="\n", flush=True)


def table(rows, name):
    """Per data set the setting with the best mean MRR over seeds: MRR, mean and worst recall@1."""
    line = f"{name:<18}"
    best_of = []
    for data in SETS:
        by_setting = {}
        for key, found in rows.items():
            one, where, temperature, lr, _ = key.split("/")
            if one == name and where == data:
                by_setting.setdefault((temperature, lr), []).append(found)
        if not by_setting:
            continue
        chosen = max(by_setting, key=lambda s: np.mean([f["cosine"] for f in by_setting[s]]))
        score = [100 * np.mean([f[what] for f in by_setting[chosen]]) for what in ("cosine", "mean", "worst")]
        best_of.append(score)
        line += f"| {data} {score[0]:5.2f} {score[1]:5.2f} {score[2]:5.2f} ({chosen[0]}) "
    yield line + "| all " + " ".join(f"{x:5.2f}" for x in np.mean(best_of, axis=0))


if __name__ == "__main__":
    main()
