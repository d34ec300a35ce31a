"""The demo: every kind of anchor compared on glyphs, with settings chosen beforehand, and pictures to look at."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from centrobind import __version__
from centrobind.arena.contenders import Contender
from centrobind.arena.pages import WHERE, difference_lines, sections, write_results
from centrobind.arena.plan import ArenaConfig, DatasetConfig, SettingConfig, Trial
from centrobind.arena.schedule import Arena
from centrobind.binder.checkpoint import load
from centrobind.data import Samples
from centrobind.data.builtin import glyphs
from centrobind.objectives.table import OBJECTIVES
from centrobind.progress import Watch, silent
from centrobind.report import page
from centrobind.report.tables import Row
from centrobind.training.run_folder import RunFolder, read_log
from centrobind.types import Embeddings

STEPS, QUICK_STEPS = 220, 12
# Small encoders: the demo has few minutes on two cores, and all objectives share them.
MODALITIES = {
    "image": {"encoder": "cnn", "channels": 16, "depth": 2},
    "outline": {"encoder": "sequence", "channels": 32, "depth": 2},
    "name": {"encoder": "bag"},
}
# Temperature and learning rate were chosen for each on the validation split: benchmarks/demo_settings.py. Every
# encoder first learns from its own modality alone, and all objectives start from there, so that a frozen anchor has
# something worth keeping and nobody a head start.
SETTINGS = (
    SettingConfig(objective="unimodal", temperature=0.1, lr=5e-3),
    SettingConfig(objective="centrobind", temperature=0.14, lr=2e-2),
    SettingConfig(objective="leave_one_out", temperature=0.07, lr=2e-2),
    SettingConfig(objective="all_pairs", temperature=0.1, lr=2e-2),
    SettingConfig(objective="fabind", anchor="image", temperature=0.1, lr=1e-2),
    SettingConfig(objective="fabind", anchor="outline", temperature=0.14, lr=1e-2),
    SettingConfig(objective="fabind", anchor="name", temperature=0.1, lr=1e-2),
    SettingConfig(objective="fabind", anchor="image", frozen=True, temperature=0.1, lr=2e-2),
    SettingConfig(objective="fabind", anchor="outline", frozen=True, temperature=0.05, lr=2e-2),
    SettingConfig(objective="fabind", anchor="name", frozen=True, temperature=0.1, lr=2e-2),
)
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


def preset(
    out: Path, *, steps: int = STEPS, seed: int = 0, settings: Sequence[SettingConfig] = SETTINGS
) -> ArenaConfig:
    """The comparison that the demo is: `centrobind compare` would do the same with this as its YAML."""
    return ArenaConfig(
        data=[DatasetConfig(path="glyphs", modalities=MODALITIES)],
        out=str(out),
        objectives=["default", "closed_form", *dict.fromkeys(setting.objective for setting in settings)],
        settings=tuple(settings),
        seeds=1,
        seed=seed,
        steps=steps,
        keep=True,
    )


def run_demo(
    out: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    replace: bool = False,
    jobs: int = 0,
    settings: Sequence[SettingConfig] = SETTINGS,
    watch: Watch = silent,
) -> dict[str, Any]:
    """Train every contender, evaluate it on the test split, write results.json, report.html and the binder to keep.

    The binder is that of `cb.fit`, what a user gets. RunError if `out` already holds a run, unless `replace`.
    """
    folder = RunFolder(out, replace=replace)
    folder.write_config(f"demo:\n  quick: {str(quick).lower()}\n  seed: {seed}\n")
    began = time.monotonic()
    if replace:
        (folder.path / "rows.jsonl").unlink(missing_ok=True)
    watch(0, title="drawing the glyphs")
    arena = Arena(preset(folder.path, steps=QUICK_STEPS if quick else STEPS, seed=seed, settings=settings))
    arena.run(jobs=jobs, watch=watch)
    kept = Contender("default")
    results = write_results(arena, ours=kept.label)
    rows = [row for row in results["data"]["glyphs"]["rows"] if row.get("seconds") is not None]
    for row in rows:
        trial = run_of(arena, Contender(**row["contender"]))
        row["folder"] = trial.folder
        if trial.contender.name in OBJECTIVES:
            row["config"] = trial.run_config("glyphs", arena.out).model_dump(mode="json")
    run = arena.out / run_of(arena, kept).folder
    shutil.copyfile(run / "binder.safetensors", arena.out / "binder.safetensors")
    test = glyphs().part("test")
    results |= {
        "command": f"centrobind demo{' --quick' if quick else ''} --seed {seed}",
        "version": __version__,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "chosen": kept.label,
        "sentence": sentence(kept, rows, len(test)),
        "verdicts": [line for measure in WHERE for line in difference_lines(results, measure)],
        "rows": rows,
        "seconds": round(time.monotonic() - began, 1),
    }
    folder.write_json("results.json", results)
    space = load(arena.out).embed(test)
    write_report(arena, results, space, test, most=150 if quick else 500)
    return results


def run_of(arena: Arena, contender: Contender) -> Trial:
    """The one final trial of a contender."""
    return next(trial for _, trial in list(arena.waves())[-1] if trial.contender == contender)


def sentence(kept: Contender, rows: Sequence[Row], count: int) -> str:
    """What the table shows, whatever it shows."""
    metrics = next(row for row in rows if row["contender"] == kept.describe())["metrics"]
    return (
        f"Of {count} unseen characters, {kept.label}, finds the right match first in "
        f"{100 * metrics['mean/recall@1']:.1f} % of cases over all directions, and in "
        f"{100 * metrics['worst/recall@1']:.1f} % in its worst direction."
    )


def write_report(arena: Arena, results: Mapping[str, Any], space: Embeddings, test: Samples, *, most: int) -> None:
    """report.html: the comparison's own sections, and what only glyphs have, pictures."""
    rows = results["rows"]
    colours = {row["label"]: Contender(**row["contender"]).colour for row in rows}
    logs = {row["label"]: read_log(arena.out / row["folder"] / "metrics.jsonl") for row in rows}
    assert test.label is not None
    labels = [test.label.names[code].capitalize() for code in test.label.codes]
    settings = "\n".join(f"{row['label']:<24} {setting_of(row)}{row['seconds']:.1f} s" for row in rows)
    page.write_page(
        arena.out / "report.html",
        "Binding pictures, outlines and names",
        results["sentence"],
        [
            *sections(results),
            page.pictures_section(ask_in_words(space, test)),
            page.map_section(space, labels, most=most, label_title="script"),
            page.curves_section(logs, colours),
            page.section(
                "How this was made",
                page.paragraph(
                    "All characters of the DejaVu Sans font, split 70/10/20 so that equal drawings stay together. "
                    "Those with a temperature start from encoders that first learned from their own modality alone; "
                    "same encoders, data order and number of steps for all of them. Temperature and learning rate "
                    f"were chosen per objective on the validation split. Pictures, map and words: {results['chosen']}."
                ),
                f"<pre>{results['command']}\n\n{settings}</pre>",
            ),
        ],
    )


def setting_of(row: Row) -> str:
    """What a contender was trained with; nothing for those that need no setting."""
    if "config" not in row:
        return ""
    return f"temperature {row['temperature']:<5} lr {row['lr']}  {row['config']['train']['steps']} steps  "


def ask_in_words(space: Embeddings, test: Samples, nearest: int = 5) -> list[page.Asked]:
    """The pictures nearest to each query's name, among all test pictures."""
    names = list(test.columns["name"].take(np.arange(len(test))))
    pictures = np.asarray(test.columns["image"].take(np.arange(len(test))))
    queries = [names.index(query) for query in QUERIES if query in names]
    # Another Python knows other characters, and then other ones are in the test split: fill up from the front.
    queries += [index for index in range(0, len(names), 97) if index not in queries][: len(QUERIES) - len(queries)]
    order = (space["name"][queries] @ space["image"].T).argsort(1, descending=True)[:, :nearest]
    return [
        (names[query], pictures[query], [(names[hit], pictures[hit], hit == query) for hit in hits])
        for query, hits in zip(queries, order.tolist())
    ]
