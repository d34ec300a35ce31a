"""docs/demo.md and the demo's part of the README, from the results of the demo.

make demo && python benchmarks/demo_page.py --keep     first copies runs/demo/results.json to docs/results/demo.json
python benchmarks/demo_page.py                         trains nothing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pages

from centrobind.arena.contenders import Contender
from centrobind.report.tables import columns_of, markdown_table

ROOT = Path(__file__).parents[1]
RESULTS, DOCS, README = ROOT / "docs" / "results" / "demo.json", ROOT / "docs" / "demo.md", ROOT / "README.md"
HEADLINE = ("mean/recall@1", "worst/recall@1", "mean/recall@10")


def contender(row: Mapping[str, Any]) -> Contender:
    return Contender(**row["contender"])


def fixed(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of single fixed anchors, the worst in the mean first."""
    rows = [row for row in results["rows"] if contender(row).kind == "fixed"]
    return sorted(rows, key=lambda row: row["metrics"]["mean/recall@1"])


def ours(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of what a user gets: `cb.fit` without settings."""
    return next(row for row in results["rows"] if contender(row).kind == "default")


def pitch(results: Mapping[str, Any]) -> str:
    """What a blind choice can cost, and what needs no choice."""
    low, *_, high = (100 * row["metrics"]["mean/recall@1"] for row in fixed(results))
    score = 100 * ours(results)["metrics"]["mean/recall@1"]
    return (
        f"On the demo, a fixed anchor picked blindly finds the right match first in {low:.1f} % to {high:.1f} % of "
        f"cases, and which anchor is the good one nobody knows beforehand. `cb.fit`, with no anchor and no setting, "
        f"finds it in **{score:.1f} %** (`make demo`)."
    )


def short(results: Mapping[str, Any]) -> str:
    """Four rows: ours, its best rival among losses without an anchor, the best and the worst fixed anchor."""
    worst, *_, best = fixed(results)
    pairs = next(row for row in results["rows"] if contender(row).kind == "pairs")
    named = {
        "`cb.fit(data)`, no settings": ours(results),
        "all pairs, tuned": pairs,
        f"best fixed anchor, known only afterwards ({best['label']})": best,
        f"worst fixed anchor ({worst['label']})": worst,
    }
    lines = [[name, *(f"{100 * row['metrics'][key]:.1f}" for key in HEADLINE)] for name, row in named.items()]
    return pages.table(["demo, test split, %", "recall@1", "worst direction", "recall@10"], lines)


def table(results: Mapping[str, Any]) -> str:
    """Every contender in every direction."""
    rows = results["rows"]
    recall = [(head, names[:1]) for head, names in columns_of(rows) if not head.startswith("probe")]
    return markdown_table(rows, [*recall, ("probe all", ["probe/all"])])


def parts(results: Mapping[str, Any]) -> dict[str, str]:
    """Every part of docs/demo.md that is a number."""
    lines = [f"- {line}" for line in results["verdicts"]]
    seconds = f"{results['seconds']:.0f} s in all, on {results['machine']['threads']} threads."
    settings = [
        [row["label"], row.get("temperature", ""), row.get("lr", ""), f"{row['seconds']:.0f}"]
        for row in results["rows"]
    ]
    return {
        "table": table(results),
        "verdicts": "\n".join(lines),
        "settings": pages.table(["", "temperature", "learning rate", "seconds"], settings),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="take the results of runs/demo first")
    if parser.parse_args().keep:
        RESULTS.write_text((ROOT / "runs" / "demo" / "results.json").read_text())
    results = json.loads(RESULTS.read_text())
    pages.fill(DOCS, parts(results))
    pages.fill(README, {"pitch": pitch(results), "demo table": short(results)})


if __name__ == "__main__":
    main()
