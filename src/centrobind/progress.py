"""Progress a person can read: a bar with the time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Watch = Callable[..., None]  # watch(done, title="what is being done", loss=1.23)

SECONDS_BETWEEN_LINES = 10.0


def silent(done: int, title: str | None = None, **numbers: float) -> None:
    """Watches nothing."""


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Iterator[Watch]:
    """`with progress("training", 1000) as watch: watch(step, loss=...)`."""
    console = console or Console(stderr=True)
    with _bar(title, total, console) if console.is_terminal else _lines(title, total, console) as watch:
        yield watch


@contextmanager
def _bar(title: str, total: int, console: Console) -> Iterator[Watch]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, numbers="")

        def watch(done: int, title: str | None = None, **numbers: float) -> None:
            bar.update(task, completed=done, description=title, numbers=_shown(numbers))

        yield watch


@contextmanager
def _lines(title: str, total: int, console: Console) -> Iterator[Watch]:
    started = last = time.monotonic()
    said = title

    def watch(done: int, title: str | None = None, **numbers: float) -> None:
        nonlocal last, said
        said = title or said
        now = time.monotonic()
        if done >= total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            tail = f"{left:.0f} s left" if done < total else f"{now - started:.1f} s"
            console.print("  ".join([said, f"{done}/{total}", _shown(numbers), tail]), highlight=False)

    yield watch


def _shown(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
