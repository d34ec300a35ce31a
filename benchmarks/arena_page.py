"""docs/arena.md and its pictures, from the saved rows of the arena alone.

    python benchmarks/arena_page.py                from benchmarks/results/arena*.tar.xz; trains nothing
    python benchmarks/arena_page.py --keep         first packs the rows of both runs into those files

The rows themselves come from `centrobind compare benchmarks/arena.yaml`, and from benchmarks/arena_long.yaml.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pages

from centrobind.arena.contenders import Contender
from centrobind.arena.pages import COLUMNS, lead, write_results
from centrobind.arena.plan import ArenaConfig
from centrobind.arena.schedule import Arena
from centrobind.arena.standings import comparable
from centrobind.report import plots
from centrobind.report.tables import markdown_table
from centrobind.training.config import load_checked

ROOT = Path(__file__).parents[1]
YAML, LONG = ROOT / "benchmarks" / "arena.yaml", ROOT / "benchmarks" / "arena_long.yaml"
RESULTS, FLOOR = ROOT / "benchmarks" / "results" / "arena.json", ROOT / "benchmarks" / "results" / "floor.json"
COST = ROOT / "benchmarks" / "results" / "cost.json"
DOCS = ROOT / "docs" / "arena.md"
OURS, CANDIDATE = "leave-one-out", "shared_half"  # the default, and what came closest to beating it
HINDSIGHT = {
    Contender("fabind", None, frozen).label: f"best FABind in hindsight, {'frozen' if frozen else 'trained'}"
    for frozen in (False, True)
}
MEASURES = {
    "mean/recall@1": "mean R@1",
    "worst/recall@1": "worst pair R@1",
    "mean/recall@10": "mean R@10",
    "probe/all": "probe",
    "transfer/mean": "transfer",
}


def keep(yaml: Path) -> None:
    """Pack the ledger and what every test sample came to; starting points and stores can be made again."""
    out = Path(load_checked(ArenaConfig, yaml).out)
    with tarfile.open(_packed(yaml), "w:xz", preset=9) as packed:
        for path in sorted([out / "rows.jsonl", out / "plan.json", *(out / "outcomes").glob("*.npz")]):
            packed.add(path, path.relative_to(out))


def _packed(yaml: Path) -> Path:
    return RESULTS.parent / f"{yaml.stem}.tar.xz"


def all_results() -> dict[str, Any]:
    """Everything the pages show, computed from the packed rows."""
    (main, candidate), (longer,) = _results_of(YAML, (OURS, CANDIDATE)), _results_of(LONG, (OURS,))
    return _short({**main, "candidate": candidate["duels"], "longer": longer})


def _results_of(yaml: Path, ours: Sequence[str]) -> list[dict[str, Any]]:
    """One comparison, from the side of each of `ours`."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(_packed(yaml)) as packed:
            packed.extractall(folder, filter="data")
        arena = Arena(load_checked(ArenaConfig, yaml).model_copy(update={"out": folder}))
        made = [write_results(arena, ours=one) for one in ours]
    return [{key: value for key, value in results.items() if key != "config"} for results in made]


def _short(found: Any) -> Any:
    """The same with 6 digits of every number, a third of the bytes."""
    if isinstance(found, Mapping):
        return {key: _short(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_short(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def headline(results: Mapping[str, Any]) -> str:
    """Mean / worst pair recall@1 on every data set."""
    data, floor = results["data"], json.loads(FLOOR.read_text())
    labels = _labels(data)
    lines = []
    for label in labels:
        cells = [_cell(next((row for row in data[name]["rows"] if row["label"] == label), None)) for name in data]
        lines.append([HINDSIGHT.get(label, label), *cells])
    lines.append(["GCCA (no network)", *(_cell({"metrics": floor[name]["GCCA"]}) for name in data)])
    return pages.table(["mean / worst pair, R@1 in %", *data], lines)


def _labels(data: Mapping[str, Any], *, hindsight: bool = True) -> list[str]:
    """Everybody who is the same on all data sets, in the order of the tables."""
    rows = [row for found in data.values() for row in found["rows"]]
    everybody = dict.fromkeys((row["label"], Contender(**row["contender"])) for row in rows)
    return [label for label, one in everybody if comparable(one) and (hindsight or not one.hindsight)]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or "mean/recall@1" not in row["metrics"]:
        return ""
    return f"{100 * row['metrics']['mean/recall@1']:.1f} / {100 * row['metrics']['worst/recall@1']:.1f}"


def longer(results: Mapping[str, Any]) -> str:
    """Sets with few steps and with many, and who is ahead with many."""
    parts = []
    for name, found in results["longer"]["data"].items():
        few = {row["label"]: row for row in results["data"][name]["rows"]}
        duels = {(duel["rival"], duel["measure"]): duel["by_data"][name] for duel in results["longer"]["duels"]}
        lines = []
        for row in found["rows"]:
            label = row["label"]
            if comparable(Contender(**row["contender"])):
                ahead = [_difference(duels.get((label, measure))) for measure in ("mean/recall@1", "worst/recall@1")]
                lines.append([HINDSIGHT.get(label, label), _cell(few[label]), _cell(row), *ahead])
        head = [f"{name}: mean / worst pair, R@1 in %", "100 steps", "400 steps", f"{OURS} ahead, mean", "worst"]
        parts.append(pages.table(head, lines))
    return "\n\n".join(parts)


def _difference(duel: Mapping[str, Any] | None) -> str:
    if duel is None:
        return ""
    return f"{100 * duel['difference']:+.1f} [{100 * duel['low']:+.1f}, {100 * duel['high']:+.1f}]"


def average_ranks(results: Mapping[str, Any]) -> str:
    found = {measure: results["ranks"][measure]["average"] for measure in MEASURES}
    order = sorted(found["mean/recall@1"], key=found["mean/recall@1"].get)
    lines = [
        [HINDSIGHT.get(label, label), *(f"{ranks[label]:.1f}" if label in ranks else "" for ranks in found.values())]
        for label in order
    ]
    return pages.table(["average rank", *MEASURES.values()], lines)


def duels(ours: str, found: Sequence[Mapping[str, Any]]) -> str:
    """Won, level, lost over the data sets."""
    rivals = list(dict.fromkeys(duel["rival"] for duel in found))
    of = {(duel["rival"], duel["measure"]): duel for duel in found}
    lines = []
    for rival in rivals:
        cells = []
        for measure in MEASURES:
            duel = of.get((rival, measure))
            if duel is None:
                cells.append("")
                continue
            mean = 100 * np.mean([one["difference"] for one in duel["by_data"].values()])
            cells.append(f"{duel['wins']}-{duel['ties']}-{duel['losses']} ({mean:+.1f})")
        lines.append([HINDSIGHT.get(rival, rival), *cells])
    return pages.table([f"{ours} against", *MEASURES.values()], lines)


def subsets(results: Mapping[str, Any]) -> str:
    """Recall@1 of a modality from the centroid of k others."""
    data = results["data"]
    labels = _labels(data, hindsight=False)
    lines = []
    for label in labels:
        cells = []
        for name in data:
            row = next((row for row in data[name]["rows"] if row["label"] == label), {"metrics": {}})
            sizes = sorted(int(key[5:].split("/")[0]) for key in row["metrics"] if key.startswith("from_"))
            cells.append(" ".join(f"{100 * row['metrics'][f'from_{size}/recall@1']:.1f}" for size in sizes))
        lines.append([label, *cells])
    return pages.table(["from 1, 2, ... others, R@1 in %", *data], lines)


def floor() -> str:
    found = json.loads(FLOOR.read_text())
    lines = []
    for name, rows in found.items():
        best = max(("logistic regression", "RBF-SVM"), key=lambda kind: rows[kind].get("all", 0))
        cca = [
            f"{100 * rows[k]['mean/recall@1']:.1f} / {100 * rows[k]['worst/recall@1']:.1f}" for k in ("MCCA", "GCCA")
        ]
        lines.append([name, *cca, f"{100 * rows[best]['all']:.1f} ({best})"])
    return pages.table(["data", "MCCA", "GCCA", "labels from all modalities, raw"], lines)


def cost() -> str:
    found = json.loads(COST.read_text())
    names = list(found)
    labels = list(dict.fromkeys(label for rows in found.values() for label in rows))
    lines = [
        [
            label,
            *(f"{found[n][label]['ms']:.0f} / {found[n][label]['mb']:.0f}" if label in found[n] else "" for n in names),
        ]
        for label in labels
    ]
    return pages.table(["ms a step / MB at its peak", *names], lines)


def per_data(results: Mapping[str, Any]) -> str:
    parts = []
    for name, found in results["data"].items():
        rows = [row for row in found["rows"] if row["metrics"]]
        silent = [f"- {row['label']}: {row['why']}" for row in found["rows"] if not row["metrics"]]
        parts.append(f"### {name}\n\n{markdown_table(rows, COLUMNS)}\n\n" + "\n".join(silent))
    return "\n\n".join(part.rstrip() for part in parts)


def parts(results: Mapping[str, Any]) -> dict[str, str]:
    """Every part of docs/arena.md that is a number."""
    return {
        "lead": lead(results),
        "headline": headline(results),
        "average ranks": average_ranks(results),
        "duels": duels(results["ours"], results["duels"]),
        "candidate": duels(CANDIDATE, results["candidate"]),
        "longer": longer(results),
        "subsets": subsets(results),
        "floor": floor(),
        "cost": cost(),
        "per data": per_data(results),
    }


def pictures(results: Mapping[str, Any]) -> None:
    folder = DOCS.parent / "arena"
    folder.mkdir(exist_ok=True)
    for measure, name in (("mean/recall@1", "mean"), ("worst/recall@1", "worst")):
        found = results["ranks"][measure]
        svg = plots.rank_line(found["average"], found["critical_difference"], highlight=results["ours"])
        # As a file of its own it has no page whose text colour it could take.
        svg = svg.replace("currentColor", "#6e7781").replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        (folder / f"ranks-{name}.svg").write_text(svg if svg.count("xmlns=") == 1 else _once(svg))


def _once(svg: str) -> str:
    head, rest = svg.split(">", 1)
    first = head.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    return first + ">" + rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="pack the rows of the arena's folder first")
    options = parser.parse_args()
    for yaml in (YAML, LONG) if options.keep else ():
        keep(yaml)
    results = all_results()
    RESULTS.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    pictures(results)
    pages.fill(DOCS, parts(results))


if __name__ == "__main__":
    main()
