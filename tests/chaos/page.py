"""The tables of docs/robustness.md, from the results files.

PYTHONPATH=tests:benchmarks python -m chaos.page      writes them into the page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pages

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "robustness.md"
RESULTS = ROOT / "benchmarks" / "results"


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
    return pages.table(["killed", "rounds", "kills", "where they landed", "came back the same"], rows, others="---")


def _counts(landed: dict[str, int]) -> str:
    return ", ".join(f"{phase or 'before its first word'} {count}" for phase, count in landed.items())


def fuzz(found: dict[str, Any]) -> str:
    rows = [[way, *(counts[key] for key in ("refused", "opened", "crashed"))] for way, counts in found["ways"].items()]
    ends = f"{found['cases']:,} cases: {found['crashed']} ended in an error that is not ours, {found['unpickled']} asked a "
    ends += f"pickle for anything, {found['outside']} touched a file outside their folder."
    return pages.table(["what is broken", "refused", "opened", "crashed"], rows, others="---") + "\n\n" + ends


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
    shared = found["pages_of_one_of_two_processes"]
    ends = (
        f"{found['store_gb']} GB, {found['samples']:,} samples of {found['bytes_a_sample']:,} bytes, {found['steps']:,} steps of "
        f"{found['batch']}, {found['threads']} thread; limited by: {found['limited_by']}. The store gives "
        f"{found['store_to_memory']:.0%} of the rate of memory (median of {found['turns']} pairs of turns, middle half "
        f"{low:.0%} to {high:.0%}), and the weights at the end are "
        f"{'the same' if found['same_weights'] else 'NOT the same'}. Of the pages that two processes read, smaps calls "
        f"{shared['shared_mb']} MB shared and {shared['private_mb']} MB private."
    )
    head = ["values from", "steps/s", "peak resident GB", "of it anonymous", "of it file pages"]
    return pages.table(head, rows, others="---") + "\n\n" + ends


MAKERS = (chaos, fuzz, big_store)


def filled(page: str) -> str:
    """The page with its tables as the results files have them now."""
    made = {make.__name__: make(json.loads((RESULTS / f"{make.__name__}.json").read_text())) for make in MAKERS}
    return pages.filled(page, made)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
