"""The tables of docs/search.md, from the results files: PYTHONPATH=tests:benchmarks python -m search_page."""

from __future__ import annotations

import json
from typing import Any

import pages

from chaos.page import RESULTS, ROOT

PAGE = ROOT / "docs" / "search.md"
SHOWN_WORDS = 8


def two_for_one(found: dict[str, Any]) -> str:
    rows = []
    for row in found["two_for_one"]:
        a, b = row["given"]
        weights = "{} {:.2f}, {} {:.2f}".format(a, row["weights"][a], b, row["weights"][b])
        for given, scores in (
            (a, row["alone"][a]),
            (b, row["alone"][b]),
            (f"{a} + {b}, equal weights", row["centroid"]),
            (f"**{a} + {b}** ({weights})", row["both"]),
        ):
            cells = [f"{100 * scores[key]:.1f}" for key in ("recall@1", "recall@10", "mrr")]
            gains = row["gain"].get(given, {}).get("recall@1")
            more = gains and "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(
                **{key: 100 * value for key, value in gains.items()}
            )
            rows.append([row["want"], given, *cells, more or ""])
    head = ["wanted", "given", "recall@1", "recall@10", "MRR", "both are better by (recall@1)"]
    ends = f"In %, {found['test']:,} test characters, 95 % intervals paired over them."
    return pages.table(head, rows, others="---") + "\n\n" + ends


def negation(found: dict[str, Any]) -> str:
    words = sorted(found["not"], key=lambda row: -row["before"])
    rows = [[row["word"], row["queries"], f"{row['before']:.0%}", f"{row['after']:.0%}"] for row in words[:SHOWN_WORDS]]
    fewer = sum(row["after"] < row["before"] for row in words)
    ends = (
        f"The {len(rows)} of {len(words)} words that hits had most often. Over all words {_mean(words, 'before'):.0%} "
        f"before and {_mean(words, 'after'):.0%} after; fewer hits had it for {fewer} of them."
    )
    return pages.table(["word", "queries", "hits with it before", "after"], rows, others="---") + "\n\n" + ends


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def engines(found: dict[str, Any]) -> str:
    rows = []
    for size in sorted(found["data"], key=int):
        for engine, cells in found["cells"].items():
            cell = cells.get(size, {})
            if "qps" in cell and "build_seconds" in cell:
                rows.append(
                    [
                        f"{int(size):,}",
                        engine if cell["setting"] is None else f"{engine} ({cell['setting']})",
                        f"{cell['recall']:.3f}",
                        f"{cell['qps']:,.0f}",
                        f"{cell['qps_together']:,.0f}",
                        f"{cell['build_seconds']:,.0f} / {cell['build_cpu_seconds']:,.0f}",
                        f"{cell['build_peak_mb']:,}",
                        f"{cell['memory_mb']:,} / {cell['mapped_mb']:,}",
                        f"{cell['disk_mb']:,}",
                    ]
                )
    head = [
        *("vectors", "engine (setting)", "recall@10", "queries/s one by one", "together", "build s wall / CPU"),
        *("build peak MB", "memory / mapped MB", "disk MB"),
    ]
    about = found["about"]
    dimensions = ", ".join(f"{int(size):,}: {one['intrinsic_dimension']}" for size, one in found["data"].items())
    ends = (
        f"{about['dim']} dimensions of float32, {about['threads']} threads, {about['queries']:,} queries. Clustered "
        f"vectors (benchmarks/index.py says how they are made), intrinsic dimension by TwoNN {dimensions}."
    )
    return pages.table(head, rows, others="---") + "\n\n" + ends


def kills(found: dict[str, Any]) -> str:
    rows = [
        [
            what,
            part["rounds"],
            ", ".join(f"{count} times {said}" for said, count in part["landed"].items()),
            part["whole"],
        ]
        for what, part in found.items()
    ]
    return pages.table(["killed", "kills", "what was found", "whole"], rows, others="---")


MADE_FROM = {two_for_one: "search", negation: "search", engines: "index", kills: "index_kills"}


def filled(page: str) -> str:
    """The page with its tables as the results files have them now."""
    made = {make.__name__: make(json.loads((RESULTS / f"{name}.json").read_text())) for make, name in MADE_FROM.items()}
    return pages.filled(page, made)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
