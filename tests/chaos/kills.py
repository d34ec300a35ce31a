"""Kill training and imports, again and again, and see what is left.

    python -m chaos.kills --rounds 30 --out benchmarks/results/chaos.json       (make chaos)

Three ways. *Training*: SIGKILL after a random time, resume, until the run is done; its weights, its last checkpoint
and its log must equal those of a run that nobody touched, byte for byte. *Every point*: the same, but killed before
the n-th time that it opens, flushes, renames or removes a file, for every n there is. *Import*: SIGKILL after a random
time; afterwards there is no store, or the old one, or the whole new one, and the next import needs no help.

Processes are forked from one that has imported everything, because importing torch takes longer than a run here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import centrobind.training.loop as loop
import centrobind.training.state as state
from centrobind.cli import main as command_line
from centrobind.data import ReadAhead, Samples, assign_splits, open_store, read_chunks, store, write_store
from centrobind.errors import StoreError
from centrobind.training.config import check_config
from centrobind.training.fit import run_config
from centrobind.training.run_folder import RunFolder

NOTE = 1024  # bytes
OBJECTIVES = ("leave_one_out", "random", "all_pairs", "learned")


class Victim:
    """A forked process that does some work, and a shared note of what it is at."""

    def __init__(self, work: Callable[[], Any], die_at: int | None = None, inside: Path | None = None):
        self.note = mmap.mmap(-1, NOTE)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
                watch_phases(self.say)
                if die_at is not None:
                    die_before_event(die_at, inside)
                self.say("starting")
                work()
            except BaseException as error:
                self.say(f"{type(error).__name__}: {error}")
                os._exit(1)
            os._exit(0)

    def say(self, phase: str) -> None:
        self.note[:] = phase.encode()[:NOTE].ljust(NOTE, b"\0")

    @property
    def phase(self) -> str:
        return self.note[:].rstrip(b"\0").decode()

    def wait(self, seconds: float | None = None) -> str | None:
        """Kill it after some time (None: let it live); the phase it was killed in, or None if it was done before."""
        if seconds is not None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return self._ended(status)
                time.sleep(0.0005)
            os.kill(self.pid, signal.SIGKILL)
        return self._ended(os.waitpid(self.pid, 0)[1])

    def _ended(self, status: int) -> str | None:
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return self.phase
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"ended with {status} while {self.phase}"
        return None


def watch_phases(say: Callable[[str], None]) -> None:
    """From now on this process says what it is at: the outermost thing, and what it does to the disk for it."""
    current = ["starting"]

    def marked(owner: Any, name: str, phase: str) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def wrapped(*args: Any, **options: Any) -> Any:
            before = current[0]
            current[0] = f"{before.split(':')[0]}: {phase[1:]}" if phase[0] == "+" else phase
            say(current[0])
            try:
                return plain(*args, **options)
            finally:
                current[0] = before
                say(before)

        setattr(owner, name, wrapped)

    marked(RunFolder, "write_config", "config")
    marked(RunFolder, "read_last", "resuming")
    marked(RunFolder, "forget_after", "resuming")
    marked(RunFolder, "log", "log")
    marked(RunFolder, "write_last", "checkpoint")
    marked(state.Best, "keep", "best weights")
    marked(loop, "validate", "validation")
    marked(loop, "save", "result")
    marked(store.StoreWriter, "append", "writing values")
    marked(store.StoreWriter, "finish", "checksums and meta.json")
    marked(os, "fsync", "+flush")
    marked(os, "replace", "+rename")
    marked(Path, "rename", "rename")
    plain_next = ReadAhead.__next__

    def next_batch(batches: ReadAhead) -> Any:
        current[0] = "training step"
        say(current[0])
        return plain_next(batches)

    ReadAhead.__next__ = next_batch


def die_before_event(number: int, inside: Path) -> None:
    """SIGKILL this process just before the n-th time it changes something in a folder."""
    left = [number]

    def count(event: str, path: Any) -> None:
        if isinstance(path, str | os.PathLike) and str(path).startswith(str(inside)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            count(event, arguments[0])

    sys.addaudithook(hook)
    plain = os.fsync

    def fsync(file: int) -> None:
        count("fsync", os.readlink(f"/proc/self/fd/{file}"))
        plain(file)

    os.fsync = fsync


# ---- training ---------------------------------------------------------------------------------------------------


def make_data(folder: Path) -> Path:
    """A small store with every kind of modality and gaps."""
    draw = np.random.default_rng(0)
    label = np.arange(120) % 3
    samples = Samples.of(
        {
            "picture": (40 * label[:, None, None] + draw.integers(0, 40, (120, 9, 8))).astype(np.uint8),
            "series": label[:, None, None] + 0.1 * draw.normal(size=(120, 12, 2)),
            "text": [f"{['red', 'green', 'blue'][c]} thing number {i % 7}" for i, c in enumerate(label)],
        },
        present={"picture": draw.random(120) > 0.2, "text": draw.random(120) > 0.3},
    )
    return write_store(folder / "data", assign_splits(samples))


def training(data: Path, out: Path, *, objective: str, seed: int, steps: int) -> Callable[[], Any]:
    """What a victim does: begin or go on with a run that writes a checkpoint and a log line at every step."""
    config = check_config(
        {
            "data": str(data),
            "out": str(out),
            "dim": 16,
            "seed": seed,
            "objective": {"name": objective, "learn_temperature": True},
            "modalities": {"picture": {"encoder": "mlp"}, "series": {"encoder": "mlp"}, "text": {}},
            "train": dict(
                steps=steps, batch_size=16, log_every=1, checkpoint_every=1, validate_every=3, tensorboard=False
            ),
        }
    )
    return lambda: (torch.set_num_threads(1), run_config(config, resume=True))


def left_by(run: Path) -> tuple[Any, ...]:
    """All that a run leaves, but for the clock."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = tuple((run / f"{name}.safetensors").read_bytes() for name in ("binder", "last", "best"))
    return *files, [{key: value for key, value in record.items() if key != "seconds"} for record in log]


def kill_training(folder: Path, data: Path, rounds: int, draw: random.Random, steps: int = 10) -> dict[str, Any]:
    """Random times; each round is one run, killed until it is done."""
    phases: Counter[str] = Counter()
    identical = 0
    for number in range(rounds):
        kind = {"objective": OBJECTIVES[number % len(OBJECTIVES)], "seed": number // len(OBJECTIVES), "steps": steps}
        whole, run = folder / f"whole {number}", folder / f"killed {number}"
        began = time.monotonic()
        assert Victim(training(data, whole, **kind)).wait() is None
        seconds = time.monotonic() - began
        for _ in range(30):  # a victim that only ever lives for a moment would never be done
            phase = Victim(training(data, run, **kind)).wait(draw.uniform(0, 0.8 * seconds))
            if phase is None:
                break
            phases[phase] += 1
        else:
            assert Victim(training(data, run, **kind)).wait() is None
        identical += left_by(run) == left_by(whole)
        shutil.rmtree(run)
        shutil.rmtree(whole)
    return {"rounds": rounds, "kills": phases.total(), "landed": dict(phases.most_common()), "identical": identical}


def kill_at_every_point(folder: Path, data: Path, points: list[int] | None = None) -> dict[str, Any]:
    """Before the n-th change to the run's folder, for every n (or these); one resume must finish the run."""
    kind = {"objective": "random", "seed": 5, "steps": 4}
    whole, run = folder / "whole", folder / "killed"
    assert Victim(training(data, whole, **kind)).wait() is None
    expected = left_by(whole)
    phases: Counter[str] = Counter()
    identical = number = 0
    for number in points or range(1, 10_000):
        phase = Victim(training(data, run, **kind), die_at=number, inside=run).wait()
        if phase is None:
            break
        phases[phase] += 1
        assert Victim(training(data, run, **kind)).wait() is None
        identical += left_by(run) == expected
        shutil.rmtree(run)
    kills = phases.total()
    return {"rounds": kills, "kills": kills, "landed": dict(phases.most_common()), "identical": identical}


# ---- import -----------------------------------------------------------------------------------------------------


def make_table(folder: Path, name: str, rows: int) -> Path:
    draw = np.random.default_rng(len(name))
    lines = [
        json.dumps({"id": f"{name}{i}", "v": [round(x, 3) for x in draw.normal(size=8).tolist()], "t": f"text {i}"})
        for i in range(rows)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder / f"{name}.jsonl"


def importing(source: Path, target: Path) -> Callable[[], Any]:
    return lambda: command_line.app(["import", str(source), str(target), "--force"], standalone_mode=False)


def kill_import(folder: Path, rounds: int, draw: random.Random, rows: int = 6000) -> dict[str, Any]:
    """Random times, half of them over a store that was there before."""
    sources = [make_table(folder, name, rows) for name in ("old", "new")]
    metas = {}
    for source in sources:
        began = time.monotonic()
        assert Victim(importing(source, folder / "whole")).wait() is None
        seconds = time.monotonic() - began
        metas[source.stem] = (folder / "whole" / "meta.json").read_bytes()
        shutil.rmtree(folder / "whole")
    target, phases, left, sound = folder / "target", Counter(), Counter(), 0
    for number in range(rounds):
        if number % 2:
            assert Victim(importing(sources[0], target)).wait() is None
        phase = Victim(importing(sources[1], target)).wait(draw.uniform(0, seconds))
        phases[phase or "done before the kill"] += 1
        with contextlib.suppress(StoreError):
            left[found := what_is(target, metas)] += 1
            assert found != "another", "a store that opens and is wrong"
        if not target.exists():
            left["no store" if not (folder / "target.old").exists() else "old store, set aside"] += 1
        assert Victim(importing(sources[1], target)).wait() is None
        whole = what_is(target, metas) == "new store"
        sound += whole and not list(folder.glob("target.*"))
        shutil.rmtree(target)
    kills = phases.total() - phases["done before the kill"]
    landed = {phase: count for phase, count in phases.most_common() if phase != "done before the kill"}
    return {"rounds": rounds, "kills": kills, "landed": landed, "left": dict(left.most_common()), "identical": sound}


def kill_import_at_every_point(folder: Path, most: int) -> dict[str, Any]:
    """Before the n-th change to any file, a store being there already; it must be there still, or be set aside."""
    sources = [make_table(folder, name, 40) for name in ("old", "new")]
    metas = {}
    for source in sources:
        store_of = write_store(folder / "whole", read_chunks(source), replace=True)
        metas[source.stem] = (store_of / "meta.json").read_bytes()
    target, phases, left, sound = folder / "target", Counter(), Counter(), 0
    for number in range(1, most + 1):
        write_store(target, read_chunks(sources[0]), replace=True)
        phase = Victim(importing(sources[1], target), die_at=number, inside=target).wait()
        if phase is None:
            break
        phases[phase] += 1
        aside = folder / "target.old"
        found = what_is(target if target.exists() else aside, metas) + (", set aside" if not target.exists() else "")
        assert not found.startswith("another"), "a store that opens and is wrong"
        left[found] += 1
        assert Victim(importing(sources[1], target)).wait() is None
        sound += what_is(target, metas) == "new store" and not list(folder.glob("target.*"))
    kills, landed = phases.total(), dict(phases.most_common())
    return {"rounds": kills, "kills": kills, "landed": landed, "left": dict(left.most_common()), "identical": sound}


def what_is(target: Path, metas: dict[str, bytes]) -> str:
    """Which store opens, every checksum verified; StoreError if none does."""
    open_store(target, verify=True)
    meta = (target / "meta.json").read_bytes()
    return next((f"{name} store" for name, expected in metas.items() if meta == expected), "another")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--points", type=int, nargs="*", help="only these points, and imports up to the last of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="centrobind-chaos-") as name:
        folder = Path(name)
        data = make_data(folder)

        def fresh(name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

        training(data, folder / "warm", objective="random", seed=0, steps=1)()  # torch imports more when first used
        found = {
            "training": kill_training(fresh("training"), data, options.rounds, draw),
            "every point": kill_at_every_point(fresh("points"), data, options.points),
            "import": kill_import(fresh("import"), options.rounds, draw),
            "every point of an import": kill_import_at_every_point(
                fresh("import points"), max(options.points or [10_000])
            ),
        }
    text = json.dumps({"seed": options.seed, **found}, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    if any(part["identical"] != part["rounds"] for part in found.values()):
        sys.exit("not everything came back the same")


if __name__ == "__main__":
    main()
