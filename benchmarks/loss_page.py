"""Tables and plot of docs/performance.md from benchmarks/results/loss.json; `python benchmarks/loss_page.py`."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import loss_forms
import pages
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "loss.json"
PAGE, PLOT = DOCS / "performance.md", DOCS / "performance.png"
SLOPE_FROM = 4096
COLOURS = ("#8a8f98", "#d1495b", "#00798c", "#b5651d", "#edae49", "#66a182", "#8d6cab", "#2e86de", "#123457")


class Cells:
    """What was measured, by contender and shape."""

    def __init__(self, found: dict):
        self.cells = found["cells"]

    def __call__(self, name: str, shape: loss_forms.Shape) -> dict:
        return self.cells.get(loss_forms.key_of(name, shape), {})

    def seconds(self, name: str, shape: loss_forms.Shape) -> float | None:
        taken = self(name, shape).get("seconds")
        return statistics.median(taken) if taken else None

    def megabytes(self, name: str, shape: loss_forms.Shape) -> float | None:
        return self(name, shape).get("megabytes")

    def ratio(self, name: str, to: str, shape: loss_forms.Shape) -> float | None:
        """The median over turns of what one took over what the other took in that turn."""
        taken = [self(which, shape).get("seconds") or [] for which in (name, to)]
        ratios = [one / other for one, other in zip(*taken)]  # as many turns as both have
        return statistics.median(ratios) if ratios else None

    def slope(self, of: Callable[[str, loss_forms.Shape], float | None], name: str) -> float | None:
        """Of a line through (log samples, log value), from SLOPE_FROM on."""
        count, _, dim = loss_forms.TARGET
        points = [(n, of(name, (count, n, dim))) for n in loss_forms.SAMPLES if n >= SLOPE_FROM]
        logs = [(math.log(n), math.log(value)) for n, value in points if value]
        return statistics.linear_regression(*zip(*logs)).slope if len(logs) == len(points) else None


def tables(found: dict) -> dict[str, str]:
    """In Markdown, by name."""
    cells = Cells(found)
    count, _, dim = loss_forms.TARGET
    one_line = [name for name, about in loss_forms.CONTENDERS.items() if about.lines]
    sizes = [f"{samples:,}" for samples in loss_forms.SAMPLES]

    def by_samples(of: Callable[[str, loss_forms.Shape], float | None]) -> str:
        rows = [
            [name, *(said(of(name, (count, n, dim)), cells(name, (count, n, dim))) for n in loss_forms.SAMPLES)]
            for name in one_line
        ]
        return pages.table([f"M {count}, d {dim}; N", *sizes], rows, others="---")

    def by_shape(name: str, to: str) -> str:
        rows = [
            [
                f"{m}",
                f"{d}",
                *(said(cells.ratio(name, to, (m, n, d)), cells(name, (m, n, d))) for n in loss_forms.SAMPLES),
            ]
            for m, d in sorted(loss_forms.LINES[: min(loss_forms.CONTENDERS[which].lines for which in (name, to))])
        ]
        return pages.table(["M", "d", *(f"N {size}" for size in sizes)], rows, others="---")

    return {
        "targets": targets(cells),
        "target shape": at_target(cells),
        "seconds": by_samples(cells.seconds),
        "memory": by_samples(cells.megabytes),
        "to bare": by_shape("fused", "bare multiplies"),
        "to open_clip": by_shape("open_clip form", "fused"),
        "to dense": by_shape("dense", "fused"),
        "machine": "{cpu}, {threads} threads on {cores} cores, torch {torch}. ".format(**found["machine"])
        + quiet(found),
    }


def quiet(found: dict) -> str:
    """How undisturbed it was, over the calls that are long enough to know."""
    shares = [
        share
        for cell in found["cells"].values()
        for share, seconds in zip(cell.get("others", []), cell.get("seconds", []))
        if seconds >= loss_forms.LONG_ENOUGH_S
    ]
    much = sum(share > loss_forms.DISTURBED for share in shares)
    return f"Other processes took more than {loss_forms.DISTURBED:.0%} of the cores in {much} of {len(shares)} calls.\n"


def targets(cells: Cells) -> str:
    at = loss_forms.TARGET
    asked = [  # what, at most or at least, how much, measured
        ("fused, to the bare multiplies", "at most", 1.3, cells.ratio("fused", "bare multiplies", at)),
        ("all pairs in open_clip's form, to fused", "at least", 3.5, cells.ratio("open_clip form", "fused", at)),
        ("MB beyond inputs and gradients", "at most", 64, cells.megabytes("fused", at)),
        ("slope of time against N, 4,096 to 32,768", "at most", 2.05, cells.slope(cells.seconds, "fused")),
        ("slope of memory against N, 4,096 to 32,768", "at most", 1.05, cells.slope(cells.megabytes, "fused")),
    ]
    rows = []
    for what, way, bound, measured in asked:
        if measured is None:
            rows.append([what, f"{way} {bound}", "", "not measured"])
            continue
        met = measured <= bound if way == "at most" else measured >= bound
        verdict = "met" if met else f"missed by {abs(measured / bound - 1):.0%}"
        rows.append([what, f"{way} {bound}", f"{measured:.2f}", verdict])
    return pages.table(["", "target", "measured", ""], rows, others="---")


def at_target(cells: Cells) -> str:
    rows = []
    for name, about in loss_forms.CONTENDERS.items():
        cell = cells(name, loss_forms.TARGET)
        seconds, megabytes = cells.seconds(name, loss_forms.TARGET), cells.megabytes(name, loss_forms.TARGET)
        ratios = (cells.ratio(name, to, loss_forms.TARGET) for to in ("bare multiplies", "fused"))
        numbers = [said(seconds, cell), *(said(number, {}) for number in (*ratios, megabytes))]
        rows.append([name, about.says, *numbers])
    return pages.table(["", "computes", "seconds", "to bare", "to fused", "MB beyond"], rows, others="---")


def said(value: float | None, cell: dict) -> str:
    """Three digits, or why there is no number."""
    if value is None:
        return cell.get("too_much") or ("not installed" if "missing" in cell else "not measured")
    digits = 2 - math.floor(math.log10(value)) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def plot(found: dict) -> Figure:
    """Seconds and megabytes by samples, M and d as in TARGET."""
    cells, (count, _, dim) = Cells(found), loss_forms.TARGET
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    names = [name for name, about in loss_forms.CONTENDERS.items() if about.lines]
    for place, of, what in zip(
        figure.subplots(1, 2), (cells.seconds, cells.megabytes), ("seconds", "MB beyond inputs and gradients")
    ):
        for name, colour in zip(names, COLOURS):
            points = [(n, of(name, (count, n, dim))) for n in loss_forms.SAMPLES]
            points = [(n, value) for n, value in points if value]
            if points:
                width = 2.6 if name == "fused" else 1.3
                place.loglog(*zip(*points), marker="o", ms=3.5, lw=width, color=colour, label=name)
        place.set(xlabel="samples", title=what)
        place.set_xticks(loss_forms.SAMPLES, [f"{n // 1024}k" for n in loss_forms.SAMPLES])
        place.minorticks_off()
        place.spines[["top", "right"]].set_visible(False)
        place.grid(alpha=0.25)
    figure.legend(*place.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(f"Forward and backward, {count} modalities, {dim} dimensions, float32", fontsize=10)
    return figure


def filled(page: str, found: dict) -> str:
    """The page with its tables as the results file has them now."""
    return pages.filled(page, {f"{name} table": made.rstrip() for name, made in tables(found).items()})


def write() -> None:
    found = json.loads(RESULTS.read_text())
    PAGE.write_text(filled(PAGE.read_text(), found))
    plot(found).savefig(PLOT, dpi=110, facecolor="white", metadata={"Source": digest(found)})


def digest(found: dict) -> str:
    """What a plot says of the results that it was drawn from."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    write()
