"""The closed form of the dynamic anchor and of every fixed one, on the test splits of the sets in a folder.

    python benchmarks/closed_form.py --data ../shared/data --out benchmarks/results/closed_form.json
    python benchmarks/closed_form.py --page docs/closed_form.md     writes the table of the results into the page

Settings are chosen by cross-validation on the training split alone. A set that is in the results is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pages
import torch

from centrobind.closed_form.bind import DYNAMIC, ClosedForm, Prepared, prepare_closed_form, solve_closed_form
from centrobind.data import Samples
from centrobind.data.builtin import glyphs
from centrobind.evaluation.metrics import retrieval

SETS = (
    "utd_mhad",
    "gdsc",
    "emoji",
    "chorales",
    "mfeat",
    "odor",
    "glyphs",
    "rosmap",
    "mosi",
    "mustard690",
    "mustard210",
)


def open_set(name: str, folder: Path) -> Samples:
    """A set by its name: glyphs, which needs no file, or an npz of the folder."""
    if name == "glyphs":
        return glyphs()
    data = np.load(folder / f"{name}.npz")
    names = [key.removeprefix("x_") for key in data.files if key.startswith("x_")]
    arrays = {m: data[f"x_{m}"] for m in names}
    return Samples.of(
        {m: x.tolist() if x.dtype.kind in "UO" else x for m, x in arrays.items()},
        present={m: data[f"present_{m}"].astype(bool) for m in names if f"present_{m}" in data.files},
        split=data["split"],
        group=data["group"] if "group" in data.files else None,
    )


def row(form: ClosedForm, test: Samples, seconds: float) -> dict[str, object]:
    """Scores in per cent, and what cross-validation chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal values of a modality count as one, which is what we want here
        scores = retrieval(form.embed(test))
    settings = form.choice.settings
    return {
        "recall@1": 100 * scores.mean.recall[1],
        "worst recall@1": 100 * scores.worst.recall[1],
        "recall@10": 100 * scores.mean.recall[10],
        "cross-validated mrr": 100 * form.choice.score,
        "seconds": seconds,
        "dim": settings.dim,
        "power": settings.power,
        "ridge": list(settings.ridge),
        "weights": list(settings.weights),
        "forms": list(settings.forms),
    }


def run(name: str, folder: Path) -> dict[str, dict[str, object]]:
    """All anchors of one set; the processor's seconds, those of the features in the dynamic anchor's."""
    samples = open_set(name, folder)
    train, test = samples.part("train"), samples.part("test")
    start = time.process_time()
    prepared: Prepared = prepare_closed_form(train)
    rows = {}
    for anchor in (DYNAMIC, *train.modalities):
        form = solve_closed_form(prepared, anchor=anchor)
        rows[anchor] = row(form, test, time.process_time() - start)
        print(name, anchor, {key: round(value, 1) for key, value in rows[anchor].items() if isinstance(value, float)})
        start = time.process_time()
    return rows


def summary(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The dynamic anchor beside the best fixed one of each measure."""
    measures, rows = ("recall@1", "worst recall@1", "recall@10"), []
    for name, anchors in results.items():
        fixed = [scores for anchor, scores in anchors.items() if anchor != DYNAMIC]
        ours = " / ".join(f"{anchors[DYNAMIC][key]:.1f}" for key in measures)
        theirs = " / ".join(f"{max(scores[key] for scores in fixed):.1f}" for key in measures)
        rows.append([name, ours, theirs, f"{anchors[DYNAMIC]['seconds']:.0f}"])
    return pages.table(["data", "dynamic", "best fixed of each measure", "processor seconds"], rows)


def main() -> None:
    """Run what is missing in the results; or fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/closed_form.json"))
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.page:
        pages.fill(options.page, {"closed form": summary(results)})
        return
    for name in options.sets:
        if name not in results:
            results[name] = run(name, options.data)
            options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
