"""Seven ways to make binding hard, on data with a known answer: one question, one plot each.

    python benchmarks/stress.py [FAMILY ...]      adds rows to benchmarks/results/stress.json, then remakes the page
    python benchmarks/stress.py --page            remakes docs/stress.md and docs/stress/*.png from the rows alone

A cell is one objective on one setting of the generator. Its temperature is chosen on the validation split of seed 0,
from the same values for everybody; then every seed is trained with it and measured on the test split. Same encoders,
data, order of batches and number of steps for all. It can be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import centrobind as cb
from centrobind.arena.trials import native_retrieval, subset_retrieval
from centrobind.data import Samples
from centrobind.progress import progress
from centrobind.report.plots import COLOURS, FAINT, STYLE
from centrobind.training.config import check_config, make_objective

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, PLOTS = (
    ROOT / "benchmarks" / "results" / "stress.json",
    ROOT / "docs" / "stress.md",
    ROOT / "docs" / "stress",
)
TEMPERATURES, SEEDS = (0.07, 0.2), 2
SAMPLES, STEPS, BATCH, DIM, RATE = 1500, 100, 128, 32, 5e-3
OBJECTIVES: Mapping[str, dict[str, Any]] = {
    "CentroBind": {"name": "centrobind"},
    "leave-one-out": {"name": "leave_one_out"},
    "all pairs": {"name": "all_pairs"},
    "FABind, first": {"name": "fabind", "anchor": 0},
    "FABind, second": {"name": "fabind", "anchor": 1},
    "Symile": {"name": "symile"},
    "GRAM": {"name": "gram"},
}


@dataclass(frozen=True)
class Family:
    """One question: the data by the value in question, and where to look for the answer."""

    title: str
    across: str
    values: Sequence[Any]
    data: Callable[[Any, int], Samples]  # (value, seed)
    measures: Mapping[str, str]  # name of a measure -> what the plot calls it
    train: Callable[[Any], dict[str, Any]] = lambda value: {}
    chosen_by: str = "mean"
    log: bool = False


def gapped(value: float, seed: int, splits: Sequence[str]) -> Samples:
    """The same samples with and without gaps: those of these splits have them."""
    whole = cb.synthetic(SAMPLES, missing=0.0, seed=seed)
    holes = cb.synthetic(SAMPLES, missing=value, seed=seed)
    some = np.isin(whole.split.codes, [whole.split.names.index(name) for name in splits])
    present = {name: ~some | column.present for name, column in holes.columns.items()}
    return replace(whole, columns=Samples.of(plain(whole), present=present).columns)


def copied(value: int, seed: int) -> Samples:
    """Three modalities, and so many noisy copies of the first."""
    whole = cb.synthetic(SAMPLES, seed=seed)
    draw, first = np.random.default_rng([seed, 1]), plain(whole)["m0"]
    copies = {f"copy{k}": first + 0.1 * draw.normal(size=first.shape) for k in range(value)}
    return replace(whole, columns=Samples.of(plain(whole) | copies).columns)


def plain(samples: Samples) -> dict[str, np.ndarray]:
    return {name: np.asarray(column.values) for name, column in samples.columns.items()}


PAIRS = {"mean": "mean recall@1 of pairs", "worst": "worst pair", "native": "one from all others, own score"}
FAMILIES: Mapping[str, Family] = {
    "quality": Family(
        "One modality of poor quality",
        "noise of the first modality (the others: 0.3)",
        (0.3, 1.0, 2.0, 4.0),
        lambda value, seed: cb.synthetic(SAMPLES, noise=[value, 0.3, 0.3], seed=seed),
        PAIRS | {"m1_m2": "between the two good ones"},
    ),
    "missing_in_training": Family(
        "Modalities missing in training",
        "share missing in training; the test is whole",
        (0.0, 0.2, 0.4, 0.6, 0.7),
        lambda value, seed: gapped(value, seed, ("train", "valid")),
        PAIRS,
    ),
    "missing_at_test": Family(
        "Modalities missing in training and at test",
        "share missing everywhere",
        (0.0, 0.2, 0.4, 0.6, 0.7),
        lambda value, seed: cb.synthetic(SAMPLES, missing=value, seed=seed),
        {"mean": PAIRS["mean"], "worst": PAIRS["worst"], "from_others": "from the centroid of what is there"},
    ),
    "modalities": Family(
        "More and more modalities",
        "modalities",
        (3, 4, 6, 8),
        lambda value, seed: cb.synthetic(SAMPLES, value, seed=seed),
        PAIRS,
    ),
    "batch": Family(
        "Size of the batch",
        "samples in a batch (60 steps each)",
        (32, 128, 512, 2048, 4096),
        lambda value, seed: cb.synthetic(6000, seed=seed),
        PAIRS,
        train=lambda value: {"batch_size": value, "steps": 60},
        log=True,
    ),
    "nuisance": Family(
        "A nuisance that two of three modalities share",
        "nuisance directions in modalities 1 and 2 (of 8 that all share)",
        (0, 4, 8, 16),
        lambda value, seed: cb.synthetic(SAMPLES, shared_nuisance={(0, 1): value} if value else None, seed=seed),
        PAIRS | {"probe": "class from the third modality"},
    ),
    "copies": Family(
        "Redundant modalities",
        "noisy copies of the first modality beside the three",
        (0, 1, 2, 4),
        copied,
        {"three": "mean recall@1 among the three", "m1_m2": "between the two without copies"},
    ),
    "xor": Family(
        "XOR: any two modalities are independent",
        "bits",
        (2, 4, 6, 8),
        lambda value, seed: cb.data.xor(SAMPLES, bits=value, seed=seed),
        {"native": "one from the two others, by the objective's own score", "mean": "mean recall@1 of pairs"},
        chosen_by="native",
    ),
}


def run(
    family: Family, value: Any, about: dict[str, Any], temperature: float, seed: int
) -> dict[str, dict[str, float]]:
    """Train one binder; its measures on valid and on test."""
    data = family.data(value, seed)
    asked = about | {"temperature": temperature}
    if "anchor" in asked:
        asked["anchor"] = data.modalities[asked["anchor"]]
    objective = make_objective(check_config({"data": "-", "out": "-", "objective": asked}).objective, data.modalities)
    settings = {"steps": STEPS, "batch_size": BATCH} | family.train(value)
    # No choice of the best step: it would follow the mean over pairs, which means nothing for XOR.
    binder = cb.fit(data, objective=objective, dim=DIM, lr=RATE, seed=seed, show_progress=False, **settings)
    return {split: measure(binder, objective, data, split) for split in ("valid", "test")}


def measure(binder: cb.Binder, objective: Any, data: Samples, split: str) -> dict[str, float]:
    space = binder.embed(data.part(split))
    found = cb.retrieval(space)
    numbers = {"mean": found.mean.recall[1], "worst": found.worst.recall[1], "mrr": found.mean.mrr}
    three = [row.recall[1] for pair, row in found.pairs.items() if set(pair) <= {"m0", "m1", "m2"}]
    if three:
        numbers["three"] = float(np.mean(three))
        numbers["m1_m2"] = (found["m1", "m2"].recall[1] + found["m2", "m1"].recall[1]) / 2
    numbers["from_others"] = subset_retrieval(space)[len(space.modalities) - 1]
    numbers["native"] = native_retrieval(objective, space)["recall@1"]
    if split == "test":
        learn, test = data.part("train"), data.part("test")
        options = {"train": binder.embed(learn), "train_labels": learn.label}
        numbers["probe"] = cb.evaluate(space, test.label, **options).probe[data.modalities[-1]]
    return numbers


def cells(families: Sequence[str]) -> list[tuple[str, Any, str]]:
    """GRAM solves a system for every pair of samples; 60 steps of 2,048 would take longer than all other cells."""
    every = [(name, value, label) for name in families for value in FAMILIES[name].values for label in OBJECTIVES]
    return [cell for cell in every if not (cell[0] == "batch" and cell[1] > 512 and cell[2] == "GRAM")]


def work(families: Sequence[str], seeds: int) -> dict[str, Any]:
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    todo = cells(families)

    def row(family: str, value: Any, label: str, temperature: float, seed: int) -> dict[str, dict[str, float]]:
        key = f"{family}/{value}/{label}/{temperature}/{seed}"
        if key not in rows:
            try:
                made = run(FAMILIES[family], value, OBJECTIVES[label], temperature, seed)
                rows[key] = {split: {k: round(v, 5) for k, v in found.items()} for split, found in made.items()}
            except cb.errors.DataError as error:  # joint objectives need samples that have every modality
                rows[key] = {"error": str(error)}
            RESULTS.write_text(json.dumps(rows, indent=0) + "\n")
        return rows[key]

    with progress("stress", len(todo)) as watch:
        for done, (family, value, label) in enumerate(todo, start=1):
            first = {t: row(family, value, label, t, 0) for t in TEMPERATURES}
            if (best := better(FAMILIES[family], first)) is not None:
                for seed in range(1, seeds):
                    row(family, value, label, best, seed)
            watch(done)
    return rows


def chosen(rows: Mapping[str, Any], family: str, value: Any, label: str) -> tuple[float, list[dict[str, float]]] | None:
    """The temperature that valid chose, and the test measures of its seeds; None while there are none."""
    first = {t: rows.get(f"{family}/{value}/{label}/{t}/0", {}) for t in TEMPERATURES}
    best = better(FAMILIES[family], first)
    if best is None:
        return None
    keys = [f"{family}/{value}/{label}/{best}/{seed}" for seed in range(SEEDS)]
    return best, [rows[key]["test"] for key in keys if "test" in rows.get(key, {})]


def better(family: Family, first: Mapping[float, Mapping[str, Any]]) -> float | None:
    """The temperature with the best validation score; None if it could not be trained at all."""
    by = "native" if family.chosen_by == "native" else "mrr"
    scores = {t: found["valid"][by] for t, found in first.items() if "valid" in found}
    return max(scores, key=scores.__getitem__) if scores else None


# ---- the page ---------------------------------------------------------------------------------------------------


def table(rows: Mapping[str, Any], name: str) -> str:
    """Percent, mean over seeds; the temperature that was chosen in brackets."""
    family, (measure_name, what) = FAMILIES[name], next(iter(FAMILIES[name].measures.items()))
    lines = []
    for label in OBJECTIVES:
        line = [label]
        for value in family.values:
            found = chosen(rows, name, value, label)
            if found is None:
                tried = any(key.startswith(f"{name}/{value}/{label}/") for key in rows)
                line.append("cannot learn" if tried else "")
            else:
                line.append(f"{100 * np.mean([f[measure_name] for f in found[1]]):.1f} ({found[0]:g})")
        lines.append(line)
    head = f"{what[0].upper()}{what[1:]} in %, by {family.across}:\n\n"
    return head + pages.table(["objective", *family.values], lines)


def plot(rows: Mapping[str, Any], name: str) -> None:
    family = FAMILIES[name]
    with rc_context(
        STYLE | {"text.color": "#222", "axes.labelcolor": "#222", "xtick.color": "#222", "ytick.color": "#222"}
    ):
        figure = Figure(figsize=(4.2 * len(family.measures), 3.1), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(family.measures)))
        for axes, (key, what) in zip(panels, family.measures.items()):
            for colour, label in zip(COLOURS, OBJECTIVES):
                found = [(value, made[1]) for value in family.values if (made := chosen(rows, name, value, label))]
                across = [value for value, _ in found]
                scores = np.array([[100 * np.mean([s[key] for s in seeds]), *_ends(seeds, key)] for _, seeds in found])
                if len(scores):
                    axes.fill_between(across, scores[:, 1], scores[:, 2], color=colour, alpha=0.12, lw=0)
                    axes.plot(
                        across, scores[:, 0], "--" if "FABind" in label else "-", color=colour, lw=1.6, label=label
                    )
                    axes.plot(across, scores[:, 0], "o", color=colour, ms=3)
            axes.set(title=what, ylim=(0, None))
            axes.grid(color=FAINT, alpha=0.25)
            if family.log:
                axes.set_xscale("log", base=2)
        panels[0].set_ylabel("%")
        figure.supxlabel(family.across, fontsize=9)
        panels[-1].legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        PLOTS.mkdir(exist_ok=True)
        figure.savefig(PLOTS / f"{name}.png", dpi=110, facecolor="white", metadata={"Software": None})


def _ends(seeds: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    values = [100 * seed[key] for seed in seeds]
    return min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; default all")
    parser.add_argument("--page", action="store_true", help="train nothing")
    options = parser.parse_args()
    if unknown := set(options.families) - FAMILIES.keys():
        parser.error(f"unknown families {sorted(unknown)}, expected of {list(FAMILIES)}")
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text()) if options.page else work(options.families or list(FAMILIES), SEEDS)
    for name in FAMILIES:
        plot(rows, name)
    pages.fill(PAGE, {name: table(rows, name) for name in FAMILIES})


if __name__ == "__main__":
    main()
