"""Figures for reports, as strings to put into a page. Colours that survive both light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

INK = "#123457"  # stands for the page's own text colour, see as_svg
FAINT = "#8a8f98"
COLOURS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#8d6cab", "#2e86de", "#b5651d", "#7f8c8d")
HEAT = "YlGnBu"

LONGEST_LABEL = 40  # characters
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: it can be searched and read aloud
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "text.parse_math": False,  # a label may hold a dollar sign, and is no formula
}


def as_svg(figure: Figure, label: str) -> str:
    """Inline SVG that takes the page's text colour; `label` is what a screen reader says."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def as_png(figure: Figure, label: str) -> str:
    """An <img> with the picture inside; for figures of thousands of points."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=144, transparent=True, bbox_inches="tight")
    return _img(buffer.getvalue(), label)


def glyph_png(pixels: np.ndarray, label: str) -> str:
    """One small picture (H, W) or (H, W, 3) uint8 as an <img>."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return _img(buffer.getvalue(), label)


def _img(png: bytes, label: str) -> str:
    return f'<img alt="{label}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def score_dots(rows: Sequence[tuple[str, str, Mapping[str, tuple[float, float, float]]]]) -> str:
    """One line per objective: (label, colour, {"mean": (value, low, high), "worst pair": ...}) in percent."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 0.34 * len(rows) + 1.0))
        axes = figure.subplots()
        for place, (_, colour, scores) in enumerate(reversed(rows)):
            for (value, low, high), marker, lift in zip(scores.values(), ("o", "D"), (0.13, -0.13)):
                axes.plot([low, high], [place + lift] * 2, color=colour, lw=2, alpha=0.45, solid_capstyle="round")
                axes.plot(value, place + lift, marker, color=colour, ms=6 if marker == "o" else 5)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)])
        axes.set_xlabel("recall@1 in %, bars are 95 % intervals over test samples")
        axes.set_xlim(left=0)
        axes.grid(axis="x", color=FAINT, alpha=0.25)
        axes.tick_params(length=0)
        names = list(rows[0][2])
        for name, marker in zip(names, ("o", "D")):
            axes.plot([], [], marker, color=FAINT, label=name)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.12 + 0.1 / len(rows)), ncols=2)
        return as_svg(figure, "recall at 1 of every objective, mean over pairs and worst pair")


def rank_line(average: Mapping[str, float], apart: float | None, highlight: str | None = None) -> str:
    """A critical-difference diagram (Demsar 2006): average ranks on a line, bars over those that do not differ."""
    order = sorted(average, key=lambda label: average[label])
    values = [average[label] for label in order]
    groups = _joined(values, apart) if apart is not None else []
    half = -(-len(order) // 2)
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 0.9 + 0.24 * half + 0.1 * len(groups)))
        axes = figure.subplots()
        lowest, highest = 1, max(2, len(order))
        top = 0.2 * len(groups) + 0.4
        axes.plot([lowest, highest], [top, top], color=FAINT, lw=1)
        for tick in range(lowest, highest + 1):
            axes.plot([tick, tick], [top, top + 0.12], color=FAINT, lw=1)
            axes.text(tick, top + 0.2, str(tick), ha="center", va="bottom", fontsize=8)
        for place, (label, value) in enumerate(zip(order, values)):
            left = place < half
            depth = -0.45 * (place if left else len(order) - 1 - place) - 0.3
            edge = lowest - 0.4 if left else highest + 0.4
            colour = COLOURS[0] if label == highlight else FAINT
            axes.plot([value, value, edge], [top, depth, depth], color=colour, lw=1.1)
            weight = "bold" if label == highlight else "normal"
            side = "right" if left else "left"
            axes.text(edge, depth, f" {label}  {value:.1f} ", ha=side, va="center", fontsize=9, fontweight=weight)
        for level, (first, last) in enumerate(groups):
            height = top - 0.2 * (level + 1)
            axes.plot([values[first] - 0.05, values[last] + 0.05], [height, height], color=COLOURS[1], lw=3.5)
        axes.set_axis_off()
        return as_svg(figure, "average ranks: " + ", ".join(f"{label} {average[label]:.1f}" for label in order))


def _joined(values: Sequence[float], apart: float) -> list[tuple[int, int]]:
    """Longest runs of sorted values whose ends are less than `apart` from each other."""
    runs: list[tuple[int, int]] = []
    for first in range(len(values)):
        last = max(place for place in range(first, len(values)) if values[place] - values[first] < apart)
        if last > first and not any(a <= first and last <= b for a, b in runs):
            runs.append((first, last))
    return runs


def retrieval_matrices(modalities: Sequence[str], tables: Mapping[str, np.ndarray]) -> str:
    """Heat maps, one per objective: rows ask, columns answer, recall@1 in percent, nothing on the diagonal."""
    with rc_context(STYLE):
        columns = min(5, len(tables))
        lines = -(-len(tables) // columns)
        side = 1.1 + 0.32 * len(modalities)
        figure = Figure(figsize=(side * columns, (side + 0.45) * lines))
        grid = np.atleast_1d(figure.subplots(lines, columns)).ravel()
        highest = max(np.nanmax(table) for table in tables.values())
        for place, (axes, (name, table)) in enumerate(zip(grid, tables.items())):
            _heat(axes, name, table, modalities, highest, labelled=place % columns == 0)
        for axes in grid[len(tables) :]:
            axes.set_axis_off()
        figure.subplots_adjust(wspace=0.15, hspace=0.65)
        return as_svg(figure, "retrieval matrices of every objective")


def _heat(axes: Axes, name: str, table: np.ndarray, modalities: Sequence[str], highest: float, labelled: bool) -> None:
    axes.imshow(table, cmap=HEAT, vmin=0, vmax=highest)
    axes.set_title(name.replace(", ", ",\n"), fontsize=9)
    axes.set_xticks(range(len(modalities)), modalities, rotation=30, ha="right")
    axes.set_yticks(range(len(modalities)), modalities if labelled else [""] * len(modalities))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value > 0.55 * highest else "#222222"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)


def curves(series: Mapping[str, tuple[str, Sequence[float], Sequence[float]]], title: str, across: str, up: str) -> str:
    """Lines over steps: label -> (colour, steps, values)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.2))
        axes = figure.subplots()
        for label, (colour, steps, values) in series.items():
            dashed = "--" if "frozen" in label else "-"
            axes.plot(steps, values, dashed, color=colour, lw=1.6, label=label)
        axes.set(title=title, xlabel=across, ylabel=up)
        axes.grid(color=FAINT, alpha=0.25)
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return as_svg(figure, title)


def _drawable(label: object) -> str:
    """A label of the data as a legend can show it: short, nothing unprintable, and not taken for one to be hidden."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(label))
    text = text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
    return f" {text}" if text.startswith("_") else text or "(empty)"  # matplotlib leaves both out of a legend


def space_map(points: np.ndarray, groups: Mapping[str, Sequence[str]]) -> str:
    """The same (n, 2) points several times, each time coloured by other categories; rare categories share grey."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(groups), 5.4))
        for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups.items()):
            categories = np.asarray(names)
            values, counts = np.unique(categories, return_counts=True)
            shown = values[np.argsort(-counts)][: len(COLOURS)]
            rest = ~np.isin(categories, shown)
            axes.scatter(*points[rest].T, s=5, color=FAINT, alpha=0.35, lw=0)
            for colour, name in zip(COLOURS, shown):
                axes.scatter(*points[categories == name].T, s=6, color=colour, alpha=0.75, lw=0, label=_drawable(name))
            axes.set_title(_drawable(title))
            axes.set_axis_off()
            columns = 4
            axes.legend(markerscale=2.5, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0.0))
        figure.subplots_adjust(wspace=0.03)
        # The map is a bitmap, so its text cannot follow the page; a mid grey reads on both.
        for text in figure.findobj(Text):
            text.set_color(FAINT)
        return as_png(figure, "map of the space: " + ", ".join(groups))
