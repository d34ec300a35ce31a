"""What the numbers of `centrobind diagnose` are on healthy binders, and what planted faults do to them.

    python benchmarks/diagnosis.py            writes benchmarks/results/diagnosis.json, about 12 minutes on one core

Every row is a binder trained with `cb.fit` on `cb.synthetic` and measured on its test split. The thresholds in
centrobind/diagnosis.py lie between the two groups. Rows that are there already are kept: it can be stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import centrobind as cb
from centrobind.config import check_config, make_objective
from centrobind.data import Samples
from centrobind.diagnosis import Diagnosis, diagnose
from centrobind.progress import progress

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
SAMPLES, STEPS, DIM = 2000, 150, 32
OBJECTIVES = {
    "centrobind": {"name": "centrobind", "temperature": 0.2},
    "leave_one_out": {"name": "leave_one_out", "temperature": 0.07},
    "all_pairs": {"name": "all_pairs", "temperature": 0.07},
    "fabind": {"name": "fabind", "anchor": "m0", "temperature": 0.07},
}


def healthy() -> dict[str, tuple[dict, dict, int]]:
    """Key -> objective, options of synthetic, seed."""
    cases = {}
    for name, objective in OBJECTIVES.items():
        for modalities in (2, 3, 5):
            for missing in (0.0, 0.3):
                for seed in (0, 1):
                    made = {"modalities": modalities, "missing": missing}
                    cases[f"healthy/{name} M={modalities} missing={missing} seed={seed}"] = objective, made, seed
        cases[f"healthy/{name} noise=1"] = objective, {"modalities": 3, "noise": 1.0}, 0
        cases[f"healthy/{name} 600 samples"] = objective, {"modalities": 3, "samples": 600}, 0
    return cases


def faulty() -> dict[str, tuple[dict, dict, int]]:
    """The same, with a fault in the objective, or in the data (see plant)."""
    three, cases = {"modalities": 3}, {}
    for temperature in (0.005, 0.01, 0.02, 0.5, 1.0):
        for name in ("centrobind", "leave_one_out", "all_pairs"):
            objective = {"name": name, "temperature": temperature}
            cases[f"temperature/{name} {temperature}"] = objective, three, 0
    for temperature in (0.03, 0.05, 0.1):
        cases[f"leak/centrobind {temperature}"] = {"name": "centrobind", "temperature": temperature}, three, 0
    heavy = {"name": "weighted", "weights": {"m0": 20.0}, "temperature": 0.2}
    cases["dominated/weighted m0=20"] = heavy, three, 0
    for name, objective in OBJECTIVES.items():
        cases[f"dead/{name} m1 constant"] = objective, three, 0
        cases[f"shuffled/{name} m1 shuffled"] = objective, three, 0
        cases[f"noisy/{name} m2 noise=5"] = objective, {"modalities": 3, "noise": [0.3, 0.3, 5.0]}, 0
        hidden = {"modalities": 3, "shared_nuisance": {(1, 2): 8}}
        cases[f"lost/{name} m1 and m2 share 8 directions"] = objective, hidden, 0
    cases["unimodal/unimodal"] = {"name": "unimodal"}, three, 0
    return cases


def plant(key: str, data: Samples) -> Samples:
    """Spoil modality m1 as the key says; splits and labels stay."""
    if not key.startswith(("dead/", "shuffled/")):
        return data
    values = np.array(data.columns["m1"].values)
    spoiled = np.zeros_like(values) if key.startswith("dead/") else np.random.default_rng(0).permutation(values)
    columns = dict(data.columns) | {"m1": replace(data.columns["m1"], values=spoiled)}
    return replace(data, columns=columns)


def run(key: str, objective: dict, made: dict, seed: int) -> Diagnosis:
    data = plant(key, cb.synthetic(**({"samples": SAMPLES} | made), seed=seed))
    binder = cb.fit(data, objective=objective, steps=STEPS, dim=DIM, seed=seed, show_progress=False)
    checked = check_config({"data": "-", "out": "-", "objective": objective})
    trained = make_objective(checked.objective, data.modalities)
    return diagnose(binder, data.part("test"), objective=trained, train=data.part("train"), resamples=200)


def summary(found: Diagnosis) -> dict:
    """The numbers that thresholds are set on, and the names of the findings."""
    mean = found.bounds.mean
    left = None
    if found.trained_on == "anchor" and max(found.leak.values()) > 0.01:
        left = (found.seen.ceiling - found.seen.nats) / (mean["others"].ceiling - mean["others"].nats)
    gains = [found.reachable[pair].nats - found.bounds.inter[pair].nats for pair in found.reachable]
    best = None if found.seen is None else mean[found.trained_on]
    return {
        "findings": [" ".join([finding.name, *finding.where]) for finding in found.findings],
        "least spread": min(found.spread.values()),
        "least rank": min(found.rank.values()),
        "most gap": max(found.gap.values()),
        "most variance share": max(share.variance for share in found.dominance.values()),
        "most gradient share": max(share.gradient for share in found.dominance.values()),
        "loss left": left,
        "least shared": min(bound.nats for bound in found.bounds.inter.values()),
        "most gain": max(gains),
        "seen share": None if best is None else found.seen.nats / best.nats,
        "best temperature": None if best is None else best.temperature,
        "bounds": {kind: round(bound.nats, 3) for kind, bound in mean.items()},
        "leak": list(found.leak.values()),
    }


def main() -> None:
    cases = faulty() | healthy()
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    with progress("diagnosing", len(cases)) as watch:
        for done, (key, case) in enumerate(cases.items(), start=1):
            if key not in rows:
                rows[key] = summary(run(key, *case))
                RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            watch(done, key)


if __name__ == "__main__":
    main()
