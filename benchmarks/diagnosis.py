"""What the numbers of `centrobind diagnose` are on healthy binders, and what planted faults do to them.

    python benchmarks/diagnosis.py            writes benchmarks/results/diagnosis.json, about 8 minutes on one core

Every row is a binder trained with `cb.fit` on `cb.synthetic` and measured on its test split. The thresholds in
centrobind/findings.py lie between the two groups. Rows that are there already are kept: it can be stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import centrobind as cb
from centrobind.data import Samples
from centrobind.evaluation.diagnose import diagnose
from centrobind.evaluation.findings import Diagnosis, part_of, seen_share
from centrobind.progress import progress
from centrobind.training.config import check_config, make_objective

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
SAMPLES, STEPS, DIM = 1500, 100, 32
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
            for missing, seed in ((0.0, 0), (0.3, 1)):
                made = {"modalities": modalities, "missing": missing}
                cases[f"healthy/{name} M={modalities} missing={missing} seed={seed}"] = objective, made, seed
    for name in ("centrobind", "leave_one_out"):
        cases[f"healthy/{name} noise=1"] = OBJECTIVES[name], {"modalities": 3, "noise": 1.0}, 0
        cases[f"healthy/{name} 600 samples"] = OBJECTIVES[name], {"modalities": 3, "samples": 600}, 0
    return cases


def faulty() -> dict[str, tuple[dict, dict, int]]:
    """The same, with a fault in the objective, or in the data (see plant)."""
    three, cases = {"modalities": 3}, {}
    for name, temperature in (
        ("centrobind", 0.5),
        ("centrobind", 1.0),
        ("leave_one_out", 1.0),
        ("leave_one_out", 0.005),
    ):
        cases[f"temperature/{name} {temperature}"] = {"name": name, "temperature": temperature}, three, 0
    for temperature in (0.03, 0.05):
        cases[f"leak/centrobind {temperature}"] = {"name": "centrobind", "temperature": temperature}, three, 0
    heavy = {"name": "weighted", "weights": {"m0": 20.0}, "temperature": 0.2}
    cases["dominated/weighted m0=20"] = heavy, three, 0
    hidden = {"modalities": 3, "shared_nuisance": {(1, 2): 8}}
    for name in ("fabind", "all_pairs"):
        cases[f"lost/{name} m1 and m2 share 8 directions"] = OBJECTIVES[name], hidden, 0
    more = {"modalities": 3, "shared_nuisance": {(1, 2): 16}}
    cases["lost/fabind m1 and m2 share 16 directions"] = OBJECTIVES["fabind"], more, 0
    noisy = {"modalities": 3, "noise": [0.3, 0.3, 3.0]}
    cases["dead/leave_one_out m1 constant"] = OBJECTIVES["leave_one_out"], three, 0
    cases["shuffled/all_pairs m1 shuffled"] = OBJECTIVES["all_pairs"], three, 0
    cases["noisy/leave_one_out m2 noise=3"] = OBJECTIVES["leave_one_out"], noisy, 0
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
    held, share = seen_share(found)
    return {
        "findings": [" ".join([finding.name, *finding.where]) for finding in found.findings],
        "least spread": min(found.spread.values()),
        "least rank": min(found.rank.values()),
        "most gap": max(found.gap.values()),
        "most variance share": max(share.variance for share in found.dominance.values()),
        "most gradient share": max(share.gradient for share in found.dominance.values()),
        "loss left": left,
        "least shared": min(bound.nats for bound in found.bounds.inter.values()),
        "least part": min(part_of(found, name) for name in found.spread),
        "most gain": max(gains),
        "seen share": share,
        "best temperature": None if held is None else held.temperature,
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
