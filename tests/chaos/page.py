"""The tables of docs/robustness.md, from the results files: python -m chaos.page writes them into the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "robustness.md"
RESULTS = ROOT / "benchmarks" / "results"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def chaos(found: dict[str, Any]) -> str:
    said = {
        "training": "training, at random moments, until done",
        "every point": "training, before every single write",
        "import": "import, at random moments",
        "every point of an import": "import over a store, before every single write",
    }
    rows = [
        [what, found[key]["rounds"], found[key]["kills"], _counts(found[key]["landed"]), found[key]["identical"]]
        for key, what in said.items()
    ]
    return table(["killed", "rounds", "kills", "where they landed", "came back the same"], rows)


def _counts(landed: dict[str, int]) -> str:
    return ", ".join(f"{phase or 'before its first word'} {count}" for phase, count in landed.items())


def fuzz(found: dict[str, Any]) -> str:
    rows = [[way, *(counts[key] for key in ("refused", "opened", "crashed"))] for way, counts in found["ways"].items()]
    ends = f"{found['cases']:,} cases: {found['crashed']} ended in an error that is not ours, {found['unpickled']} asked a "
    ends += f"pickle for anything, {found['outside']} touched a file outside their folder."
    return table(["what is broken", "refused", "opened", "crashed"], rows) + "\n\n" + ends


def big_store(found: dict[str, Any]) -> str:
    rows = [
        [
            said,
            found["steps_a_second"][where],
            *(f"{found['peak_gb'][where][key]:.2f}" for key in ("resident", "anonymous", "file")),
        ]
        for where, said in (
            ("store", f"store, at most {found['limit_gb']} GB resident"),
            ("memory", "arrays in memory"),
        )
    ]
    low, high = found["middle_half_of_turns"]
    pages = found["pages_of_one_of_two_processes"]
    ends = (
        f"{found['store_gb']} GB, {found['samples']:,} samples of {found['bytes_a_sample']:,} bytes, {found['steps']:,} steps of "
        f"{found['batch']}, {found['threads']} thread; limited by: {found['limited_by']}. The store gives "
        f"{found['store_to_memory']:.0%} of the rate of memory (median of {found['turns']} pairs of turns, middle half "
        f"{low:.0%} to {high:.0%}), and the weights at the end are "
        f"{'the same' if found['same_weights'] else 'NOT the same'}. Of the pages that two processes read, smaps calls "
        f"{pages['shared_mb']} MB shared and {pages['private_mb']} MB private."
    )
    head = ["values from", "steps/s", "peak resident GB", "of it anonymous", "of it file pages"]
    return table(head, rows) + "\n\n" + ends


def filled(page: str) -> str:
    """The page with its tables as the results files have them now."""
    for make in (chaos, fuzz, big_store):
        made = make(json.loads((RESULTS / f"{make.__name__}.json").read_text()))
        marks = rf"(<!-- {make.__name__} -->\n).*?(\n<!-- /{make.__name__} -->)"
        page, count = re.subn(marks, lambda found, made=made: found[1] + made + found[2], page, flags=re.DOTALL)
        assert count == 1, make.__name__
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
