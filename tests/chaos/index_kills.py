"""Kill a process that writes to an index, again and again, and see what is left.

    python -m chaos.index_kills --rounds 30 --out benchmarks/results/index_kills.json       (make chaos-index)

The victim replaces twenty samples in all modalities and adds one, then deletes the one it added before, and so on, and
says after each write that it is done. After a SIGKILL the index must be what it was after the last write that was said
to be done, or after the next one: anything less is a lost write, anything else is half of one. The next victim goes on
from there without help. *Random*: after a random time. *Every point* (the exact engine): before the n-th time that the
victim opens, flushes, renames or removes a file, for every n there is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import centrobind as cb
from centrobind.index.engine import About
from centrobind.index.opening import ENGINES, as_samples
from centrobind.types import Embeddings
from chaos.kills import die_before_event

MODALITIES, DIM, FIXED = ("image", "sound", "name"), 8, 20


def vector(one: str, version: int, modality: str) -> np.ndarray | None:
    """What a sample has in a version, so that nobody has to remember it; None = missing."""
    draw = np.random.default_rng(zlib.crc32(f"{one} {version} {modality}".encode()))
    made = draw.normal(size=DIM).astype(np.float32)
    return made / np.linalg.norm(made) if modality == "image" or draw.random() < 0.7 else None


def embeddings(versions: dict[str, int]) -> Embeddings:
    rows = [[vector(one, version, name) for one, version in versions.items()] for name in MODALITIES]
    present = torch.tensor([[one is not None for one in row] for row in rows])
    z = torch.tensor(np.array([[np.zeros(DIM, np.float32) if one is None else one for one in row] for row in rows]))
    return Embeddings(z, present, MODALITIES, np.array(list(versions)))


def after(writes: int) -> dict[str, int]:
    """id -> version, after so many writes."""
    step = (writes + 1) // 2
    extra = {f"new {step}": step}
    if writes % 2:
        extra[f"new {step - 1}"] = step - 1
    return {f"fixed {i}": step for i in range(FIXED)} | extra


def write(index: Any, number: int) -> None:
    """The n-th write, n from 1."""
    step = (number + 1) // 2
    if number % 2:
        versions = {f"fixed {i}": step for i in range(FIXED)} | {f"new {step}": step}
        index.replace(embeddings(versions), label=[str(step)] * len(versions))
    else:
        index.delete([f"new {step - 1}"])


def what_is(path: Path, acknowledged: int) -> int:
    """The number of writes that the index holds; AssertionError if a write is lost, or half there."""
    index = cb.open_index(path)
    found = index.embeddings()
    for writes in (acknowledged + 1, acknowledged):
        expected = after(writes)
        if set(index.ids) == set(expected):
            wanted = embeddings({one: expected[one] for one in index.ids})
            labels = index.category("label")
            said = [labels.names[code] for code in labels.codes]
            if (
                torch.equal(found.present, wanted.present)
                and torch.equal(found.z, wanted.z)
                and said == [str(expected[one]) for one in index.ids]
            ):
                for m, name in enumerate(MODALITIES):
                    has = wanted.present[m]
                    near = index.search(wanted.z[m][has], name, 1)
                    assert [each[0] for each in near.ids] == [one for one, here in zip(index.ids, has) if here]
                return writes
    raise AssertionError(f"after {acknowledged} writes: {sorted(index.ids)} {index.category('label')}")


def begin(path: Path, engine: str) -> None:
    """The index that no victim has written to."""
    versions = after(0)
    first = as_samples(embeddings(versions), label=list(versions.values()))
    ENGINES[engine].create(path, About("chaos", DIM, MODALITIES), [first])


def victim(path: Path, done: int, die_at: int | None) -> None:
    """Write until killed; every number on its way out is a write that was done."""
    index = cb.open_index(path)
    if die_at is not None:
        die_before_event(die_at, path)
    print("ready", flush=True)
    while True:
        done += 1
        write(index, done)
        print(done, flush=True)


class Process:
    """A victim, and the last write that it said was done."""

    def __init__(self, path: Path, done: int, die_at: int | None = None):
        command = [sys.executable, "-m", "chaos.index_kills", "--victim", str(path), "--done", str(done)]
        command += [] if die_at is None else ["--die-at", str(die_at)]
        self.done = done
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()

    def kill(self, seconds: float | None) -> int:
        """Wait, kill, and return the last write that was done."""
        if seconds is not None:
            time.sleep(seconds)
            self.process.send_signal(signal.SIGKILL)
        said, trouble = self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL, trouble
        return max([self.done, *(int(line) for line in said.split("\n")[:-1])])


def kill_at_random(path: Path, engine: str, rounds: int, draw: random.Random) -> dict[str, Any]:
    begin(path, engine)
    writes, landed = 0, Counter()
    for _ in range(rounds):
        done = Process(path, writes).kill(draw.uniform(0, 0.7))
        held = what_is(path, done)
        landed["the write that it was at is there" if held > done else "the write that it was at is not there"] += 1
        writes = held
    return {"rounds": rounds, "writes": writes, "landed": dict(landed.most_common()), "whole": landed.total()}


def kill_at_every_point(path: Path, points: list[int] | None) -> dict[str, Any]:
    """Forked, because a thousand starts of python would take an hour; three writes, of which one merges segments."""
    landed: Counter[str] = Counter()
    kills = 0
    for number in points or range(1, 10_000):
        here = path / str(number)
        begin(here, "exact")
        pid = os.fork()
        if pid == 0:
            try:
                index = cb.open_index(here)
                die_before_event(number, here)
                for one in (1, 2, 3):
                    write(index, one)
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, status
            break
        kills += 1
        held = next(writes for writes in range(4) if _is(here, writes))
        landed[f"{held} of 3 writes there"] += 1
        write(cb.open_index(here), held + 1)
        assert what_is(here, held + 1) == held + 1
        names = {one.name for one in here.iterdir()}
        kept = {"index.json", "lock"}
        for one in json.loads((here / "index.json").read_text())["segments"]:
            kept |= {f"segment-{one['number']}", one["dead"]} - {None}
        assert names == kept, names ^ kept
    return {"rounds": kills, "landed": dict(sorted(landed.items())), "whole": landed.total()}


def _is(path: Path, writes: int) -> bool:
    try:
        return what_is(path, writes) == writes
    except AssertionError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--points", type=int, nargs="*", help="only these")
    parser.add_argument("--engines", nargs="*", default=["exact", "lancedb"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--victim", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--done", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--die-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.victim is not None:
        victim(options.victim, options.done, options.die_at)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="centrobind-chaos-") as name:
        found = {}
        if "exact" in options.engines:  # first, because it forks, and LanceDB's threads would not survive that
            found["exact, before every change to a file"] = kill_at_every_point(Path(name) / "points", options.points)
        for engine in options.engines:
            found[f"{engine}, at random moments"] = kill_at_random(Path(name) / engine, engine, options.rounds, draw)
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
