"""Choose each demo objective's temperature and learning rate, on the validation split of glyphs.

    python benchmarks/demo_settings.py            writes benchmarks/results/demo_settings.json

The same grid, encoders, data order and number of steps for every objective; the score is the best mean reciprocal
rank on the validation split, over seeds. Takes about an hour on 2 cores. The test split is not looked at.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from centrobind.arena import demo
from centrobind.binder.binder import build_binder
from centrobind.data import train_and_valid
from centrobind.data.builtin import glyphs
from centrobind.training.config import make_objective
from centrobind.training.loop import train, validate

TEMPERATURES = (0.05, 0.07, 0.1, 0.14, 0.2)
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
RESULTS = Path(__file__).parent / "results" / "demo_settings.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--only", default="", help="objectives whose label holds this")
    options = parser.parse_args()
    learn, valid = train_and_valid(glyphs())
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    unimodal = {}

    def score(entry: demo.Entry, temperature: float, lr: float, seed: int) -> float:
        tried = replace(entry, objective={**entry.objective, "temperature": temperature}, lr=lr)
        config = demo.entry_config(tried, Path("-"), options.steps, seed)
        encoders = {name: about.encoder_spec() for name, about in config.modalities.items()}
        binder = build_binder(learn, dim=config.dim, encoders=encoders, seed=seed)
        if entry is not demo.UNIMODAL:
            binder.load_state_dict(unimodal[seed])
        train(binder, make_objective(config.objective, learn.modalities), learn, valid, config.train, seed=seed)
        if entry is demo.UNIMODAL:
            unimodal[seed] = binder.state_dict()
        return validate(binder, valid)["mean/mrr"]

    for seed in range(options.seeds):  # its settings stay: without binding there is no score to choose them by
        score(demo.UNIMODAL, demo.UNIMODAL.objective["temperature"], demo.UNIMODAL.lr, seed)
    for entry in [entry for entry in demo.ENTRIES if entry is not demo.UNIMODAL and options.only in entry.label]:
        rows = found.setdefault(entry.label, {})
        for temperature, lr in itertools.product(TEMPERATURES, RATES):
            key = f"temperature {temperature} lr {lr}"
            if key not in rows:
                rows[key] = float(np.mean([score(entry, temperature, lr, seed) for seed in range(options.seeds)]))
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{entry.label:<26}{key:<30}{rows[key]:.4f}", flush=True)
        print(f"{entry.label}: {max(rows, key=rows.get)}", flush=True)


if __name__ == "__main__":
    main()
