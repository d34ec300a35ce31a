"""Progress a person can read: a bar with the time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Watch = Callable[..., None]  # watch(done, loss=1.23)

SECONDS_BETWEEN_LINES = 10.0


def silent(done: int, **numbers: float) -> None:
    """Watches nothing."""


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Iterator[Watch]:
    """`with progress("training", 1000) as watch: watch(step, loss=...)`."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, numbers="")
            yield lambda done, **numbers: bar.update(task, completed=done, numbers=_shown(numbers))
        return
    started = last = time.monotonic()

    def watch(done: int, **numbers: float) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            tail = f"{left:.0f} s left" if done < total else f"{now - started:.1f} s"
            console.print(f"{title}  {done}/{total}  {_shown(numbers)}  {tail}", highlight=False)

    yield watch


def _shown(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
