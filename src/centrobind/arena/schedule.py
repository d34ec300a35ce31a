"""Run all trials of a comparison on all cores; killed at any moment, it resumes where it was.

Every finished trial is a line of rows.jsonl. A trial that fails is a line that says why, and the rest continues.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from centrobind.arena.contenders import Contender, contenders
from centrobind.arena.plan import (
    ArenaConfig,
    DatasetConfig,
    Trial,
    describe,
    finals,
    searches,
    starts,
)
from centrobind.arena.trials import run_trial, store_of
from centrobind.data import open_store
from centrobind.errors import RunError, Stopped
from centrobind.files import write_atomically
from centrobind.progress import Watch, silent

Row = dict[str, Any]


class Ledger:
    """rows.jsonl: what was done, by key. A last line cut short by a crash is done again."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, Row] = {}
        whole = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
                whole.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")

    def add(self, row: Row) -> None:
        self.rows[row["key"]] = row
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, trial: Trial) -> Row | None:
        return self.rows.get(trial.key)


class Arena:
    """A comparison in its folder: knows what is left to do, in an order in which it can be done."""

    def __init__(self, config: ArenaConfig):
        self.config = config
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.out / "rows.jsonl")
        self.datasets = config.datasets()
        self.modalities = {data.label: open_store(store_of(data, self.out)).modalities for data in self.datasets}
        self.rows_of: dict[str, list[Contender]] = {
            name: contenders(config.objectives, modalities) for name, modalities in self.modalities.items()
        }

    def able(self) -> list[tuple[DatasetConfig, Contender]]:
        """Everybody who can run, on each data set."""
        return [
            (data, row)
            for data in self.datasets
            for row in self.rows_of[data.label]
            if not row.unable(self.modalities[data.label])
        ]

    def waves(self) -> Iterator[list[tuple[DatasetConfig, Trial]]]:
        """Lists of trials that do not wait for each other: first all starts, then all searches, then all finals."""
        yield [(data, trial) for data in self.datasets for trial in starts(self.config, data)]
        yield [(data, trial) for data, row in self.able() for trial in searches(self.config, data, row)]
        last = []
        for data, row in self.able():
            chosen = self.choose(data, row)
            if chosen is not None:
                last += [(data, trial) for trial in finals(self.config, data, row, chosen)]
        yield last

    def choose(self, dataset: DatasetConfig, contender: Contender) -> tuple[float | str, float] | None:
        """The setting with the best mean validation MRR over search seeds; None if every trial failed.

        By cosine retrieval for all but Symile, which does not align single pairs and is tuned by its own score.
        """
        if (known := self.config.known(contender)) is not None:
            return known
        by = "native" if contender.name == "symile" else "cosine"
        scores: dict[tuple[float | str, float], list[float]] = {}
        for trial in searches(self.config, dataset, contender):
            row = self.ledger.of(trial)
            if row is not None and "valid" in row:
                scores.setdefault(trial.setting, []).append(row["valid"][by])
        return max(scores, key=lambda s: sum(scores[s]) / len(scores[s])) if scores else None

    def run(self, *, jobs: int = 0, watch: Watch = silent) -> None:
        """Do everything that is not in the ledger yet, `jobs` trials at a time (default: one per core)."""
        jobs = jobs or os.cpu_count() or 1
        (self.out / "starts").mkdir(exist_ok=True)
        total = sum(self.count())
        done = 0
        with _Workers(jobs, self.out) as workers:
            for stage, wave in zip(("starting points", "search", "final"), self.waves()):
                todo = [(data, trial) for data, trial in wave if self.ledger.of(trial) is None]
                done += len(wave) - len(todo)
                watch(done, title=stage)
                for row in workers.carry_out(todo):
                    self.ledger.add(row)
                    done += 1
                    who = Contender.of(row["trial"]["objective"]).label
                    watch(min(done, total), title=f"{stage}: {row['trial']['dataset']} {who}")
                failed = [
                    row for row in self.ledger.rows.values() if "error" in row and row["trial"]["stage"] == "start"
                ]
                if failed:
                    raise RunError(f"{self.out}: a starting point failed: {failed[0]['error']}")

    def count(self) -> tuple[int, int, int]:
        """Trials in each wave, whether done or not."""
        able = self.able()
        return (
            sum(1 for data in self.datasets for _ in starts(self.config, data)),
            sum(1 for data, row in able for _ in searches(self.config, data, row)),
            len(able) * self.config.seeds,
        )


def fit_to_budget(config: ArenaConfig, seconds: float, *, jobs: int = 0) -> tuple[ArenaConfig, list[str]]:
    """The same comparison cut to fit a time, and what was cut, from a few timed steps on every data set.

    Cuts, in this order and only as far as needed: the grid to five temperatures, one learning rate, three seeds, then
    the number of steps, but never below 50. Everybody is cut alike.
    """
    jobs = jobs or os.cpu_count() or 1
    arena = Arena(config)
    (arena.out / "starts").mkdir(exist_ok=True)
    per_step = {data.label: _seconds_per_step(data, config, arena.out) for data in arena.datasets}
    cuts: list[str] = []

    def needed(config: ArenaConfig) -> float:
        total = 0.0
        for data in arena.datasets:
            steps = data.steps or config.steps
            able = [row for where, row in arena.able() if where.label == data.label]
            trials = sum(1 for _ in starts(config, data)) + len(able) * config.seeds
            trials += sum(1 for row in able for _ in searches(config, data, row))
            total += trials * (steps * per_step[data.label] + 2.0)  # 2 s to build, validate and measure
        return total / jobs

    for what, change in (
        ("5 temperatures", {"search": config.search.model_copy(update={"temperatures": (0.05, 0.07, 0.1, 0.14, 0.2)})}),
        ("1 learning rate", {"lrs": config.search.lrs[-1:]}),
        ("3 seeds", {"seeds": min(3, config.seeds)}),
    ):
        if needed(config) > seconds:
            if "lrs" in change:
                change = {"search": config.search.model_copy(update=change)}
            config = config.model_copy(update=change)
            cuts.append(what)
    if (now := needed(config)) > seconds:
        share = seconds / now
        fewer = {one.label: max(50, int((one.steps or config.steps) * share)) for one in arena.datasets}
        data = [one.model_copy(update={"steps": fewer[one.label]}) for one in arena.datasets]
        config = config.model_copy(update={"data": data})
        cuts.append(f"{share:.0%} of the steps")
    return config, cuts


def planned(asked: ArenaConfig, budget: float | None, *, jobs: int = 0) -> tuple[ArenaConfig, list[str]]:
    """What to run. A budget is timed once and kept in plan.json: timed again, it would be another plan, and the trials
    that are done would not count."""
    path = Path(asked.out) / "plan.json"
    request = {"asked": describe(asked), "budget": budget}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["request"] == request:
            return ArenaConfig.model_validate(kept["plan"]), kept["cuts"]
    config, cuts = (asked, []) if budget is None else fit_to_budget(asked, budget, jobs=jobs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"request": request, "plan": describe(config), "cuts": cuts}, indent=1).encode())
    return config, cuts


def _seconds_per_step(data: DatasetConfig, config: ArenaConfig, out: Path) -> float:
    """Of all pairs from scratch, the most expensive kind of step, on the threads a worker will have."""
    contender = Contender("all_pairs")
    timed = config.model_copy(update={"steps": 8, "start": "scratch", "seeds": 1})
    trial = next(finals(timed, data.model_copy(update={"steps": None}), contender, (0.1, 1e-3)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return float(run_trial(replace(trial, stage="search"), data, out)["seconds"]) / 8
    finally:
        torch.set_num_threads(before)


class _Workers:
    """Processes that carry out trials side by side; with one job, this process does it."""

    def __init__(self, jobs: int, out: Path):
        self.jobs, self.out = jobs, out
        self.pool: ProcessPoolExecutor | None = None
        self.deaths: dict[str, int] = {}

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def carry_out(self, todo: list[tuple[DatasetConfig, Trial]]) -> Iterator[Row]:
        """Rows as they come. A worker that dies takes its trial with it once; the second time that is a row."""
        if self.jobs == 1:
            yield from (_guarded(trial, data, self.out) for data, trial in todo)
            return
        waiting = list(reversed(todo))
        flying: dict[Future[Row], tuple[DatasetConfig, Trial]] = {}
        while waiting or flying:
            self.pool = self.pool or self._new_pool()
            try:
                while waiting and len(flying) < (1 if self.suspects(waiting[-1:], flying.values()) else 2 * self.jobs):
                    data, trial = waiting.pop()
                    flying[self.pool.submit(_guarded, trial, data, self.out)] = (data, trial)
                finished, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in finished:
                    row = future.result()  # raises BrokenProcessPool when a worker was killed
                    del flying[future]
                    yield row
            except BrokenProcessPool:
                self.pool = None
                for data, trial in flying.values():
                    self.deaths[trial.key] = self.deaths.get(trial.key, 0) + 1
                    if self.deaths[trial.key] < 2:
                        waiting.append((data, trial))
                    else:
                        yield _row(trial, {"error": "the worker died twice; out of memory?"})
                flying = {}

    def suspects(self, *some: Iterable[tuple[DatasetConfig, Trial]]) -> bool:
        """Whether any of these were there when a worker died: they run alone, so that the guilty one is known."""
        return any(trial.key in self.deaths for _, trial in itertools.chain(*some))

    def _new_pool(self) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        return ProcessPoolExecutor(
            self.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
        )


def _begin(threads: int) -> None:
    """Workers that share cores must not each use all of them: thread pools that spin on one core starve each other.

    And a worker ends with its parent: of a parent that was killed, a pool's workers are never told.
    """
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _guarded(trial: Trial, dataset: DatasetConfig, out: Path) -> Row:
    try:
        return _row(trial, run_trial(trial, dataset, out))
    except Stopped:  # a signal goes to the workers too: this trial did not fail, all of it is to stop
        raise KeyboardInterrupt from None
    except Exception as error:  # whatever happened to one trial, the others continue
        return _row(trial, {"error": f"{type(error).__name__}: {error}"})


def _row(trial: Trial, found: Row) -> Row:
    return {"key": trial.key, "at": round(time.time()), "trial": asdict(trial), **found}
