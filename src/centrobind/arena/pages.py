"""The comparison as people read it: results.json, a page with pictures, Markdown tables. Made from rows alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from centrobind.arena import standings
from centrobind.arena.contenders import Contender, dynamic
from centrobind.arena.plan import describe
from centrobind.arena.schedule import Arena, Row
from centrobind.errors import ConfigError
from centrobind.files import write_atomically
from centrobind.report import page, plots
from centrobind.report.tables import Column, html_table, markdown_table

COLUMNS: list[Column] = [
    ("mean R@1", ["mean/recall@1"]),
    ("worst pair R@1", ["worst/recall@1"]),
    ("mean R@10", ["mean/recall@10"]),
    ("probe all", ["probe/all"]),
    ("transfer", ["transfer/mean"]),
    ("native R@1", ["native/recall@1"]),
    ("gap", lambda row: f"{row['metrics']['mean/gap']:.2f}" if "mean/gap" in row["metrics"] else ""),
    ("s", lambda row: f"{row['seconds']:.1f}" if "seconds" in row else ""),
    ("temperature", lambda row: str(row.get("temperature", ""))),
    ("lr", lambda row: f"{row['lr']:g}" if "lr" in row else ""),
]


def write_results(arena: Arena, *, ours: str | None = None) -> dict[str, Any]:
    """results.json, tables.md and page.html of everything in the ledger so far; returns the results."""
    rows = list(arena.ledger.rows.values())
    names = [dataset.label for dataset in arena.datasets]
    draws = {name: standings.measure_all(rows, arena.out, name) for name in names}
    draws = {name: table for name, table in draws.items() if table.get("mean/recall@1")}
    taking_part = dict.fromkeys(row for names in arena.rows_of.values() for row in names)
    chosen = best_dynamic(draws) if ours is None else named(ours, list(taking_part))
    results = {
        "config": describe(arena.config),
        "trials": {"done": len(rows), "failed": sum("error" in row for row in rows)},
        "data": {name: dataset_results(arena, rows, name, draws[name]) for name in draws},
        "ours": chosen.label if chosen else None,
        "duels": standings.duels(draws, chosen) if chosen else [],
        "ranks": {measure: ranks(draws, measure) for measure in standings.MEASURES},
        "failures": [{**row["trial"], "error": row["error"]} for row in rows if "error" in row],
    }
    write_atomically(arena.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomically(arena.out / "tables.md", markdown(results).encode())
    page.write_page(arena.out / "report.html", "The arena", lead(results), sections(results))
    return results


def named(name: str, contenders: Sequence[Contender]) -> Contender:
    """The contender that a person calls by its label or its objective's name; ConfigError if nobody is."""
    for contender in contenders:
        if name in (contender.label, contender.name):
            return contender
    raise ConfigError(f"nobody here is called {name!r}, expected one of {[one.label for one in contenders]}")


def best_dynamic(draws: Mapping[str, standings.Table]) -> Contender | None:
    """The dynamic anchor with the best average rank on the worst pair, for want of a choice by the caller."""
    there = dynamic(list(dict.fromkeys(one for table in draws.values() for one in table["worst/recall@1"])))
    average = standings.average_ranks(draws, "worst/recall@1", there) if there else {}
    return min(average, key=lambda one: average[one]) if average else None


def dataset_results(arena: Arena, rows: Sequence[Row], name: str, draws: standings.Table) -> dict[str, Any]:
    """One data set: per contender its chosen setting, every measure with its intervals, cost."""
    finals = standings.final_rows(rows, name)
    table = []
    for contender in arena.rows_of[name]:
        row: dict[str, Any] = {"label": contender.label, "contender": contender.describe()}
        some = finals.get(contender)
        if some:
            row |= setting_and_scores(some)
        else:
            row |= {"metrics": {}, "why": why_not(contender, rows, name, arena.modalities[name])}
        table.append(row)
    for contender in draws["mean/recall@1"]:
        if contender.hindsight:
            metrics = {measure: float(values[contender][0]) for measure, values in draws.items() if contender in values}
            table.append({"label": contender.label, "contender": contender.describe(), "metrics": metrics})
    for row in table:
        contender = Contender(**row["contender"])
        row["intervals"] = {
            measure: _ends(values[contender]) for measure, values in draws.items() if contender in values
        }
    return {"rows": table, "modalities": list(arena.modalities[name])}


def setting_and_scores(some: Sequence[Row]) -> dict[str, Any]:
    """What was chosen for a contender, and what it scored over its seeds."""
    over_seeds = {
        measure: standings.interval_over_seeds([row["test"][measure] for row in some])
        for measure in some[0]["test"]
        if all(np.isfinite(row["test"].get(measure, np.nan)) for row in some)
    }
    trial = some[0]["trial"]
    return {
        "temperature": trial["temperature"],
        "temperature_after": float(np.mean([row["temperature"] for row in some])),
        "lr": trial["lr"],
        "seeds": len(some),
        "seconds": float(np.median([row["seconds"] for row in some])),
        "metrics": {measure: mean for measure, (mean, _, _) in over_seeds.items()},
        "over_seeds": {measure: [low, high] for measure, (_, low, high) in over_seeds.items()},
    }


def why_not(contender: Contender, rows: Sequence[Row], name: str, modalities: Sequence[str]) -> str:
    """Why a contender has no numbers."""
    errors = [
        row["error"]
        for row in rows
        if "error" in row and row["trial"]["dataset"] == name and Contender.of(row["trial"]["objective"]) == contender
    ]
    return contender.unable(modalities) or (errors[0] if errors else "not run yet")


def ranks(draws: Mapping[str, standings.Table], measure: str) -> dict[str, Any]:
    """Average ranks of everyone who took part on every data set, and how far apart is apart."""
    tables = [table[measure] for table in draws.values() if measure in table]
    everywhere = [one for one in (tables[0] if tables else []) if all(one in table for table in tables)]
    average = standings.average_ranks(draws, measure, [one for one in everywhere if standings.comparable(one)])
    apart = standings.critical_difference(len(average), len(tables)) if len(average) > 1 else None
    return {
        "average": {one.label: rank for one, rank in average.items()},
        "critical_difference": apart,
        "data_sets": len(tables),
    }


WHERE = {"mean/recall@1": "the mean of all directions", "worst/recall@1": "the worst direction"}


def lead(results: Mapping[str, Any]) -> str:
    """One sentence that follows from the numbers."""
    ours, average = results["ours"], results["ranks"]["worst/recall@1"]["average"]
    if not ours or not average:
        return f"{results['trials']['done']} trials done so far."
    order = sorted(average, key=average.get)
    place = order.index(ours) + 1 if ours in order else None
    said = f"{len(results['data'])} data sets, {results['trials']['done']} trials. On the worst pair, {order[0]} has "
    said += f"the best average rank ({average[order[0]]:.1f} of {len(order)})"
    return said + (f"; {ours} is number {place} ({average[ours]:.1f})." if place and order[0] != ours else ".")


def duel_lines(results: Mapping[str, Any], measure: str) -> list[str]:
    """Wins, ties and losses of ours against each rival on one measure."""
    return [
        f"against {duel['rival']}: {duel['wins']} won, {duel['ties']} level, {duel['losses']} lost "
        f"(mean difference {100 * np.mean([one['difference'] for one in duel['by_data'].values()]):+.1f} points)"
        for duel in results["duels"]
        if duel["measure"] == measure
    ]


def difference_lines(results: Mapping[str, Any], measure: str) -> list[str]:
    """On a single data set, one line per rival: who wins by how much, and whether that is more than chance."""
    lines = []
    for duel in results["duels"]:
        if duel["measure"] == measure:
            (one,) = duel["by_data"].values()
            verb = "beats" if one["low"] > 0 else "loses to" if one["high"] < 0 else "is level with"
            points = [100 * one[key] for key in ("difference", "low", "high")]
            lines.append(
                f"{duel['ours']} {verb} {duel['rival']} on {WHERE[measure]}: {points[0]:+.1f} points "
                f"[{points[1]:+.1f}, {points[2]:+.1f}]"
            )
    return lines


def sections(results: Mapping[str, Any]) -> list[str]:
    """The page's parts: ranks and duels over data sets, or, of a single one, differences and every direction."""
    if len(results["data"]) == 1:
        ((name, found),) = results["data"].items()
        rows = [row for row in found["rows"] if row["metrics"]]
        differences = [line for measure in WHERE for line in difference_lines(results, measure)]
        complete = [row for row in rows if "seconds" in row]  # a choice in hindsight has no directions of its own
        note = "Differences in recall@1, with 95 % intervals, paired over test samples and seeds."
        return [
            page.section("Who is ahead?", page.points(differences), page.paragraph(note, "note"))
            if differences
            else "",
            dataset_section(name, found),
            page.matrices_section(complete, found["modalities"]),
            page.section(
                "Every direction, in %", html_table(complete, "Test split, recall@1 / recall@10, then probes")
            ),
        ]
    made = []
    for measure in ("worst/recall@1", "mean/recall@1", "probe/all"):
        found = results["ranks"][measure]
        if found["average"]:
            picture = plots.rank_line(found["average"], found["critical_difference"], highlight=results["ours"])
            note = (
                f"Average rank over {found['data_sets']} data sets, 1 = best. Contenders joined by a bar are closer "
                "together than chance allows to tell (Nemenyi, 5 %)."
            )
            made.append(page.section(f"Ranks: {measure}", page.figure(picture, note)))
    if results["ours"]:
        for measure in ("worst/recall@1", "mean/recall@1"):
            heading = f"{results['ours']} on {measure}, data sets won and lost (paired bootstrap, Holm, 5 %)"
            made.append(page.section(heading, page.points(duel_lines(results, measure))))
    for name, found in results["data"].items():
        made.append(dataset_section(name, found))
    return made


def dataset_section(name: str, found: Mapping[str, Any]) -> str:
    dots = [
        (
            row["label"],
            Contender(**row["contender"]).colour,
            {
                title: tuple(100 * x for x in row["intervals"][measure])
                for title, measure in (("mean of all pairs", "mean/recall@1"), ("worst pair", "worst/recall@1"))
            },
        )
        for row in found["rows"]
        if "mean/recall@1" in row["intervals"]
    ]
    rows = [row for row in found["rows"] if row["metrics"]]
    silent = [f"{row['label']}: {row['why']}" for row in found["rows"] if not row["metrics"]]
    return page.section(
        name,
        page.figure(plots.score_dots(dots)),
        html_table(rows, "Test split, in %, mean over seeds; temperature and lr as chosen on validation", COLUMNS),
        page.points(silent) if silent else "",
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Every table, for pasting."""
    parts = [f"{lead(results)}\n"]
    for name, found in results["data"].items():
        rows = [row for row in found["rows"] if row["metrics"]]
        parts.append(f"## {name}\n\n{markdown_table(rows, COLUMNS)}\n")
        if len(results["data"]) == 1:
            parts.append(f"Recall@1 / recall@10 in %:\n\n{markdown_table([r for r in rows if 'seconds' in r])}\n")
    return "\n".join(parts)


def _ends(values: np.ndarray) -> tuple[float, float, float]:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)
