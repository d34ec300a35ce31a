"""What the examples report: retrieval and probes on the test split, where the numbers are kept, and their table.

python examples/scores.py benchmarks/results/media.json docs/media.md    # puts the table into the page
"""

import json
import sys
from pathlib import Path
from typing import Any

import centrobind as cb


def scores_of(binder: cb.Binder, samples: cb.Samples) -> dict[str, Any]:
    """Recall over all directions, their worst, and linear probes learned on train; on the test split."""
    train, test = samples.part("train"), samples.part("test")
    probes = {"labels": test.label, "train": binder.embed(train), "train_labels": train.label}
    several = len(set(test.label.codes.tolist())) > 1  # else there is nothing to tell apart
    found = cb.evaluate(binder.embed(test), **(probes if several else {})).to_dict()
    return {"samples": len(test)} | {key: round(float(value), 4) for key, value in found.items() if _told(key)}


def _told(key: str) -> bool:
    return key.startswith("probe/") or key.endswith(("recall@1", "recall@10"))


def add_scores(out: Path | None, name: str, found: dict[str, Any], given: Any) -> None:
    """Put them into a results file beside those of the other examples."""
    if out is None:
        return
    results = json.loads(out.read_text()) if out.exists() else {}
    results[name] = {"steps": given.steps, "seed": given.seed, **found}
    out.write_text(json.dumps(results, indent=1) + "\n")


START, STOP = "<!-- scores -->\n", "<!-- end of scores -->"
HEADS = ("mean/recall@1", "mean/recall@10", "worst/recall@1", "worst/recall@10", "probe/all", "probe/majority")


def table(results: dict[str, Any]) -> str:
    """Markdown, in %."""
    lines = [["set", "test samples", "steps", *(head.replace("/", " ") for head in HEADS)], ["---"] * 9]
    for name, found in results.items():
        numbers = [f"{100 * found[head]:.1f}" if head in found else "" for head in HEADS]
        lines.append([name, str(found["samples"]), str(found["steps"]), *numbers])
    told = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    for name, found in results.items():
        same = {key.partition("/")[2]: value for key, value in found.items() if key.startswith("same voice/")}
        if same:
            shares = ", ".join(f"{100 * value:.1f} % by {by}" for by, value in same.items())
            told += f"\n{name}: the nearest clip of another sentence has the same voice in {shares}.\n"
    return told


if __name__ == "__main__":
    results_file, page = map(Path, sys.argv[1:])
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + table(json.loads(results_file.read_text())) + STOP + rest.partition(STOP)[2])
