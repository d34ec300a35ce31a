"""The demo: every anchor on glyphs, one table, one page. What it prints is what came out, whoever wins."""

from __future__ import annotations

import platform
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from centrobind import __version__
from centrobind.data import Samples
from centrobind.data.builtin import glyphs
from centrobind.evaluation.evaluate import evaluate, recall_differences
from centrobind.progress import Watch, silent
from centrobind.report import page
from centrobind.report.tables import Row
from centrobind.training.config import RunConfig, check_config
from centrobind.training.fit import run_config
from centrobind.training.run_folder import RunFolder, read_log
from centrobind.types import Embeddings

STEPS, QUICK_STEPS = 220, 12
DYNAMIC = ("CentroBind", "leave-one-out")
# Small encoders: the demo has four minutes on two cores, and all objectives share them.
MODALITIES = {
    "image": {"encoder": "cnn", "channels": 16, "depth": 2},
    "outline": {"encoder": "sequence", "channels": 32, "depth": 2},
    "name": {"encoder": "bag"},
}
QUERIES = (
    "black chess knight",
    "greek small letter psi",
    "snowman",
    "black heart suit",
    "white smiling face",
    "snowflake",
    "greek capital letter omega",
    "white chess king",
    "radioactive sign",
    "rightwards arrow",
)


@dataclass(frozen=True)
class Entry:
    """One objective of the demo."""

    label: str
    objective: dict[str, Any]
    colour: str
    lr: float

    @property
    def folder(self) -> str:
        return re.sub(r"\W+", "_", self.label.lower())


# Every encoder first learns from its own modality alone, and all objectives start from there, so that a frozen anchor
# has something worth keeping and nobody a head start. It binds nothing, and shows what that looks like.
UNIMODAL = Entry("unimodal", {"name": "unimodal", "temperature": 0.1}, "#9aa1ab", 5e-3)

# Temperature and learning rate were chosen for each on the validation split: benchmarks/demo_settings.py.
ENTRIES = (
    UNIMODAL,
    Entry("CentroBind", {"name": "centrobind", "temperature": 0.14}, "#d1495b", 2e-2),
    Entry("leave-one-out", {"name": "leave_one_out", "temperature": 0.07}, "#8d6cab", 2e-2),
    Entry("all pairs", {"name": "all_pairs", "temperature": 0.1}, "#edae49", 2e-2),
    *(
        Entry(
            f"FABind {anchor}, trained", {"name": "fabind", "anchor": anchor, "temperature": temperature}, "#00798c", lr
        )
        for anchor, temperature, lr in (("image", 0.1, 1e-2), ("outline", 0.14, 1e-2), ("name", 0.1, 1e-2))
    ),
    *(
        Entry(
            f"FABind {anchor}, frozen",
            {"name": "fabind", "anchor": anchor, "frozen": True, "temperature": temperature},
            "#5b8bb5",
            lr,
        )
        for anchor, temperature, lr in (("image", 0.1, 2e-2), ("outline", 0.05, 2e-2), ("name", 0.1, 2e-2))
    ),
)


def run_demo(
    out: str | Path, *, quick: bool = False, seed: int = 0, replace: bool = False, watch: Watch = silent
) -> dict[str, Any]:
    """Train every entry, evaluate it on the test split, write results.json, page.html and the binder to keep.

    RunError if `out` already holds a run, unless `replace`.
    """
    folder = RunFolder(out, replace=replace)
    folder.write_config(f"demo:\n  quick: {str(quick).lower()}\n  seed: {seed}\n")
    out = folder.path
    began = time.monotonic()
    watch(0, title="drawing the glyphs")
    samples = glyphs()
    parts = {name: samples.part(name) for name in ("train", "test")}
    steps = QUICK_STEPS if quick else STEPS
    rows, logs, spaces = [], {}, {}
    for number, entry in enumerate(ENTRIES):
        config = entry_config(entry, out, steps, seed)
        started = time.monotonic()

        def watched(done: int, number: int = number, entry: Entry = entry, **numbers: float) -> None:
            watch(number * steps + done, title=f"{number + 1}/{len(ENTRIES)} {entry.label}", **numbers)

        binder = run_config(config, samples, replace_run=True, watch=watched)
        trained = time.monotonic() - started
        logs[entry.label] = read_log(out / entry.folder / "metrics.jsonl")
        spaces[entry.label] = binder.embed(parts["test"])
        learn = parts["train"].take(slice(None, None, 12)) if quick else parts["train"]
        rows.append({"label": entry.label, "config": config.model_dump(mode="json"), "seconds": round(trained, 2)})
        rows[-1]["valid/mean/mrr"] = max(r["valid/mean/mrr"] for r in logs[entry.label] if "valid/mean/mrr" in r)
        rows[-1]["metrics"] = evaluate(
            spaces[entry.label],
            parts["test"].label,
            train=binder.embed(learn),
            train_labels=learn.label,
            resamples=100 if quick else 1000,
        ).to_dict()
    return finish(folder, parts["test"], rows, logs, spaces, quick=quick, seed=seed, began=began)


def entry_config(entry: Entry, out: Path, steps: int, seed: int) -> RunConfig:
    """What `centrobind train` would need to do the same; it is written into each run."""
    return check_config(
        {
            "data": "glyphs",
            "out": str(out / entry.folder),
            "seed": seed,
            "dim": 64,
            "modalities": MODALITIES,
            "objective": entry.objective,
            "train": {
                "steps": steps,
                "lr": entry.lr,
                "keep": "last" if entry.label == UNIMODAL.label else "best",
                "tensorboard": False,
                "validate_every": max(-(-steps // 8), 6),
                "checkpoint_every": steps,
            },
            "init": None if entry.label == UNIMODAL.label else str(out / UNIMODAL.folder),
        },
        "demo",
    )


def finish(
    folder: RunFolder,
    test: Samples,
    rows: list[dict[str, Any]],
    logs: dict[str, list[dict[str, Any]]],
    spaces: dict[str, Embeddings],
    *,
    quick: bool,
    seed: int,
    began: float,
) -> dict[str, Any]:
    """Compare, pick the binder to keep (the dynamic anchor that validated best), write everything."""
    out = folder.path
    chosen = max((row for row in rows if row["label"] in DYNAMIC), key=lambda row: row["valid/mean/mrr"])["label"]
    comparisons = compare_with_rivals(chosen, rows, spaces)
    entry = next(entry for entry in ENTRIES if entry.label == chosen)
    shutil.copyfile(out / entry.folder / "binder.safetensors", out / "binder.safetensors")
    results = {
        "command": f"centrobind demo{' --quick' if quick else ''} --seed {seed}",
        "version": __version__,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "data": {"name": "glyphs", "test": len(test), "modalities": list(test.modalities)},
        "chosen": chosen,
        "sentence": sentence(chosen, rows, len(test)),
        "verdicts": verdicts(chosen, comparisons),
        "comparisons": comparisons,
        "rows": rows,
    }
    for label, records in logs.items():
        for record in records:
            folder.log({"objective": label, **record})
    results["seconds"] = round(time.monotonic() - began, 1)
    folder.write_json("results.json", results)
    write_report(out / "report.html", results, logs, spaces[chosen], test, most=150 if quick else 500)
    return results


def compare_with_rivals(chosen: str, rows: list[Row], spaces: dict[str, Embeddings]) -> list[dict[str, Any]]:
    """The chosen anchor against the best fixed anchor in hindsight, and all pairs: mean and worst pair, paired."""
    fixed = [row for row in rows if row["label"].startswith("FABind")]
    other = next(label for label in DYNAMIC if label != chosen)
    differences = {
        label: recall_differences(spaces[chosen], space) for label, space in spaces.items() if label != chosen
    }
    found = []
    for measure_name in ("mean", "worst"):
        best = max(fixed, key=lambda row: row["metrics"][f"{measure_name}/recall@1"])["label"]
        for rival in (best, "all pairs", other):
            difference, low, high = getattr(differences[rival], measure_name)
            found.append({"measure": measure_name, "rival": rival, "difference": difference, "low": low, "high": high})
    return found


def sentence(chosen: str, rows: list[Row], count: int) -> str:
    """What the table shows, whatever it shows."""
    metrics = next(row for row in rows if row["label"] == chosen)["metrics"]
    return (
        f"Of {count} unseen characters, {chosen} (the dynamic anchor that validated best) finds the right match first "
        f"in {100 * metrics['mean/recall@1']:.1f} % of cases over all directions, and in "
        f"{100 * metrics['worst/recall@1']:.1f} % in its worst direction."
    )


def verdicts(chosen: str, comparisons: list[dict[str, Any]]) -> list[str]:
    """One line per rival and measure: who wins by how much, and whether that is more than chance."""
    said = []
    for one in comparisons:
        where = {"mean": "on the mean of all directions", "worst": "on the worst direction"}[one["measure"]]
        hindsight = ", the best fixed anchor in hindsight," if one["rival"].startswith("FABind") else ""
        verb = "beats" if one["low"] > 0 else "loses to" if one["high"] < 0 else "is level with"
        points = [100 * one[key] for key in ("difference", "low", "high")]
        said.append(
            f"{chosen} {verb} {one['rival']}{hindsight} {where}: {points[0]:+.1f} points "
            f"[{points[1]:+.1f}, {points[2]:+.1f}]"
        )
    return said


def write_report(
    path: Path,
    results: dict[str, Any],
    logs: dict[str, list[dict[str, Any]]],
    space: Embeddings,
    test: Samples,
    *,
    most: int,
) -> None:
    rows = results["rows"]
    colours = {entry.label: entry.colour for entry in ENTRIES}
    labels = [test.label.names[code].capitalize() for code in test.label.codes]
    settings = "\n".join(
        f"{row['label']:<24} temperature {row['config']['objective']['temperature']:<5} "
        f"lr {row['config']['train']['lr']}  {row['config']['train']['steps']} steps  {row['seconds']} s"
        for row in rows
    )
    page.write_page(
        path,
        "Binding pictures, outlines and names",
        results["sentence"],
        [
            page.points(results["verdicts"]),
            page.paragraph("In brackets: 95 % intervals, paired over test samples, for one seed.", "note"),
            page.table_section(rows, colours),
            page.matrices_section(rows, space.modalities),
            page.pictures_section(ask_in_words(space, test)),
            page.map_section(space, labels, most=most, label_title="script"),
            page.curves_section(logs, colours),
            page.section(
                "How this was made",
                page.paragraph(
                    "All characters of the DejaVu Sans font, split 70/10/20 so that equal drawings stay together. "
                    "Every encoder first learns from its own modality alone; from there, same encoders, data order and "
                    "number of steps for all. Temperature and learning rate were chosen per objective on the "
                    "validation split. Pictures, map and words: "
                    f"{results['chosen']}."
                ),
                f"<pre>{results['command']}\n\n{settings}</pre>",
            ),
        ],
    )


def ask_in_words(space: Embeddings, test: Samples, nearest: int = 5) -> list[tuple[str, np.ndarray, list]]:
    """The pictures nearest to each query's name, among all test pictures."""
    names = test.columns["name"].take(np.arange(len(test)))
    pictures = test.columns["image"].take(np.arange(len(test)))
    asked = [names.index(query) for query in QUERIES if query in names]
    # Another Python knows other characters, and then other ones are in the test split: fill up from the front.
    asked += [index for index in range(0, len(names), 97) if index not in asked][: len(QUERIES) - len(asked)]
    order = (space["name"][asked] @ space["image"].T).argsort(1, descending=True)[:, :nearest]
    return [
        (names[query], pictures[query], [(names[hit], pictures[hit], hit == query) for hit in hits])
        for query, hits in zip(asked, order.tolist())
    ]
