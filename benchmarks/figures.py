"""Figures with targets: what a benchmark measured, what it should be, and the verdict."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pages


@dataclass(frozen=True)
class Figure:
    """`measured` is None where it could not be measured here; `note` then says why."""

    what: str
    target: float
    measured: float | None = None
    most: bool = True  # whether the target is the most it may be, or the least
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return f"not measured: {self.note}"
        if self.measured <= self.target if self.most else self.measured >= self.target:
            return "met"
        return f"missed by {abs(self.measured / self.target - 1):.0%}"


def table(figures: list[Figure]) -> str:
    """In Markdown."""
    rows = [
        [
            figure.what,
            f"{'at most' if figure.most else 'at least'} {figure.target:,g}",
            "" if figure.measured is None else f"{figure.measured:,.3g}",
            figure.verdict,
        ]
        for figure in figures
    ]
    return pages.table(["figure", "target", "measured", "verdict"], rows, others="---")


def turns(calls: Mapping[str, Callable[[], object]], count: int, repeat: int = 1) -> dict[str, list[float]]:
    """CPU seconds of each call, all of them taking turns, so that a machine that slows down slows all; the first turn
    does not count. CPU time, because other processes on the machine lengthen a call but do not compute for it."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count + 1):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(repeat):
                call()
            seconds[name].append((time.process_time() - start) / repeat)
    return {name: each[1:] for name, each in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """The median over turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other]))
