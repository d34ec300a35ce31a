"""`cb.fit(data)` with no other argument, beside the closed form, fixed anchors and other objectives, on test splits.

    python benchmarks/default.py --data ../shared/data           rows in results/default.json, then docs/default.md
    python benchmarks/default.py --only utd_mhad gdsc --seeds 1  some of it

A row that is there is not computed again, so it can be killed and resumed. Every trained contender gets what the
default gets: the closed form as a start, looks at held-back samples, a temperature that starts where it fits the
closed form and is learned from there, and the refit. Fixed anchors have their own closed form, ridge regression to
the anchor's principal components. Nothing was tuned on these test splits, the recipe was chosen on parts of train.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch

import centrobind as cb
from centrobind.closed_form.bind import fit_closed_form
from centrobind.data import Codes, Samples, train_and_valid
from centrobind.evaluation.metrics import ranks_by_sample
from centrobind.files import write_atomically
from centrobind.objectives.base import Objective
from centrobind.training import recipe
from centrobind.training.config import TrainConfig
from centrobind.types import Embeddings

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "default.json", HERE.parent / "docs" / "default.md"
SETS = ("utd_mhad", "gdsc", "chorales", "mfeat", "emoji", "odor", "glyphs")
DEFAULT, CLOSED = "`cb.fit(data)`", "closed form"
DRAWS = 2000

Row = dict[str, Any]
Contender = Callable[[Samples, int], Callable[[Samples], Embeddings]]


def open_set(name: str, folder: Path) -> tuple[Samples, Samples]:
    """The train and test splits of a set."""
    if name == "glyphs":
        samples = cb.glyphs()
        return samples.part("train"), samples.part("test")
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        names = [key.removeprefix("x_") for key in arrays.files if key.startswith("x_")]
        present = {m: arrays[f"present_{m}"].astype(bool) for m in names if f"present_{m}" in arrays.files}
        samples = Samples.of({m: arrays[f"x_{m}"] for m in names}, present=present or None)
        samples = replace(samples, split=Codes.of(arrays["split"]))
        if "group" in arrays.files:
            samples = replace(samples, group=Codes.of(arrays["group"]))
    return samples.part("train"), samples.part("test")


def fitted(learn: Samples, seed: int) -> Callable[[Samples], Embeddings]:
    """The default."""
    return cb.fit(learn, seed=seed, show_progress=False).embed


def closed(learn: Samples, seed: int, anchor: str = "dynamic") -> Callable[[Samples], Embeddings]:
    """A closed form, settings by cross-validation on train."""
    return fit_closed_form(learn, seed=seed, anchor=anchor).embed


def trained(learn: Samples, seed: int, make: Callable[[], Objective]) -> Callable[[Samples], Embeddings]:
    """The default's recipe with another objective."""
    part, held_out = train_and_valid(learn, valid=TrainConfig().share, seed=seed)
    plan = recipe.Plan(part, held_out, learn, make, "closed_form", TrainConfig(), seed, fit_temperature=True)
    return recipe.bind(plan).embed


def contenders(modalities: Sequence[str]) -> dict[str, Contender]:
    """By label, the most telling first."""
    rows: dict[str, Contender] = {DEFAULT: fitted, CLOSED: closed}
    for m in modalities:
        rows[f"fixed {m}, closed form"] = lambda learn, seed, m=m: closed(learn, seed, m)
    options = {"learn_temperature": True}
    made: dict[str, Callable[[], Objective]] = {
        "leave-one-out": lambda: cb.LeaveOneOut(**options),
        "CentroBind": lambda: cb.CentroBind(**options),
    }
    for m in modalities:
        made[f"fixed {m}, trained"] = lambda m=m: cb.FABind(anchor=m, **options)
    for label, make in made.items():
        rows[label] = lambda learn, seed, make=make: trained(learn, seed, make)
    return rows


def measured(space: Embeddings) -> Row:
    """Numbers of one contender on test, and what paired comparisons need: hits at 1 by direction and sample."""
    hits, top, reciprocal = {}, [], []
    for a, b in space.pairs:
        ranks = ranks_by_sample(space, a, b)
        asked = np.isfinite(ranks)
        if asked.any():
            hits[f"{a} {b}"] = "".join(
                "-10"[0 if not there else 1 if rank <= 1 else 2] for there, rank in zip(asked, ranks)
            )
            top.append((ranks[asked] <= 10).mean())
            reciprocal.append((1 / ranks[asked]).mean())
    recalls = [np.mean([c == "1" for c in each if c != "-"]) for each in hits.values()]
    numbers = {"mean": np.mean(recalls), "worst": min(recalls), "r10": np.mean(top), "mrr": np.mean(reciprocal)}
    return {name: round(float(value), 6) for name, value in numbers.items()} | {"hits": hits}


def shares(row: Row) -> np.ndarray:
    """(n,) each sample's part in the mean recall@1: their mean is that number."""
    total = 0.0
    for each in row["hits"].values():
        codes = np.frombuffer(each.encode(), np.uint8)
        total = total + (codes == ord("1")) * len(codes) / max((codes != ord("-")).sum(), 1)
    return total / len(row["hits"])


def difference(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[float, float]:
    """Mean difference in recall@1, and a two-sided p by bootstrap over test samples, of the seeds' means."""
    gap = np.mean([shares(row) for row in ours], 0) - np.mean([shares(row) for row in theirs], 0)
    draw = np.random.default_rng(0)
    means = gap[draw.integers(len(gap), size=(DRAWS, len(gap)))].mean(1)
    return float(gap.mean()), float(min(1.0, 2 * min((means <= 0).mean(), (means >= 0).mean())))


def run(options: argparse.Namespace) -> dict[str, Row]:
    """All rows, those that are there already included."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for seed, name in itertools.product(range(options.seeds), options.only or SETS):
        learn, test = open_set(name, options.data)
        for label, contender in contenders(learn.modalities).items():
            key = f"{name}/{label}/{seed}"
            if key in rows or (options.labels and label not in options.labels) or ("closed form" in label and seed):
                continue
            began = time.perf_counter()
            embed = contender(learn, seed)
            seconds = round(time.perf_counter() - began, 1)
            rows[key] = measured(embed(test)) | {"seconds": seconds, "samples": len(learn)}
            write_atomically(RESULTS, (json.dumps(rows, indent=0) + "\n").encode())
            print(key, {k: v for k, v in rows[key].items() if k != "hits"}, flush=True)
    return rows


def by_label(rows: Mapping[str, Row], name: str) -> dict[str, list[Row]]:
    """A set's rows, seeds together."""
    groups: dict[str, list[Row]] = {}
    for key, row in rows.items():
        data, label, _ = key.split("/")
        if data == name:
            groups.setdefault(label, []).append(row)
    return groups


def table(rows: Mapping[str, Row], name: str) -> str:
    """All contenders of a set."""
    groups, lines = by_label(rows, name), []
    for label, each in groups.items():
        numbers = [f"{100 * np.mean([row[key] for row in each]):.1f}" for key in ("mean", "worst", "r10", "mrr")]
        against = ""
        if label != DEFAULT and DEFAULT in groups:
            gap, p = difference(groups[DEFAULT], each)
            against = f"{100 * gap:+.1f} (p {p:.3f})"
        lines.append([label, *numbers, against, len(each), f"{np.mean([row['seconds'] for row in each]):.0f}"])
    head = ["", "mean R@1", "worst pair", "mean R@10", "MRR", "default ahead by", "seeds", "seconds"]
    return f"### {name}\n\n" + pages.table(head, lines)


def summary(rows: Mapping[str, Row]) -> str:
    """One line per set: mean / worst pair of the default, the closed form and the best of the others in hindsight."""
    kinds = {
        "best fixed, closed form": lambda label: label.startswith("fixed") and label.endswith("closed form"),
        "best fixed, trained": lambda label: label.startswith("fixed") and label.endswith("trained"),
    }
    plain = (DEFAULT, CLOSED, "leave-one-out", "CentroBind")
    lines = []
    for name in SETS:
        groups = by_label(rows, name)
        if DEFAULT not in groups:
            continue
        cells = [groups[label] and pair(groups[label]) if label in groups else "" for label in plain]
        for chosen in kinds.values():
            these = [each for label, each in groups.items() if chosen(label)]
            cells.append(best(these) if these else "")
        lines.append([name, *cells])
    return pages.table(["mean / worst R@1 in %", *plain, *kinds], lines)


def pair(rows: Sequence[Row]) -> str:
    """Mean / worst, seeds together."""
    return " / ".join(f"{100 * np.mean([row[key] for row in rows]):.1f}" for key in ("mean", "worst"))


def best(groups: Sequence[Sequence[Row]]) -> str:
    """The best of each measure, in hindsight."""
    return " / ".join(
        f"{100 * max(np.mean([row[key] for row in each]) for each in groups):.1f}" for key in ("mean", "worst")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--only", nargs="*", choices=SETS)
    parser.add_argument("--labels", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = json.loads(RESULTS.read_text()) if options.page_only else run(options)
    tables = "\n\n".join(table(rows, name) for name in SETS if by_label(rows, name))
    pages.fill(PAGE, {"summary": summary(rows), "per data": tables})


if __name__ == "__main__":
    main()
