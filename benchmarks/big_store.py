"""Train on a store that is larger than the memory the process may have, and on the same arrays in memory.

    python benchmarks/big_store.py          writes benchmarks/results/big_store.json; takes 5 GB of disk and of memory
    python benchmarks/big_store.py --gb 0.05 --steps 20 --out small.json

Three modalities of 1024 float32 each, read in random order: little arithmetic for many bytes, so a hard case for the
disk. The process that reads the store may have 1.5 GB resident, libraries and file pages included: it puts itself in a
memory cgroup (v1 or v2) whose limit is 1.5 GB less what it has when it begins; where no cgroup can be made, RLIMIT_DATA
limits its anonymous memory only, and the result says so. The store is dropped from the page cache first.

Both processes train at the same time but take turns of 50 steps, because the speed of a shared machine drifts by more
than the difference: each turn of one is held against the turn of the other right after it. Default: an epoch of each;
both must end with the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from centrobind.binder.binder import build_binder
from centrobind.data import Samples, open_store, write_store
from centrobind.objectives.table import LeaveOneOut
from centrobind.training.config import TrainConfig
from centrobind.training.loop import train

RESULTS = Path(__file__).parent / "results" / "big_store.json"
MODALITIES, WIDTH, CHUNK, BATCH = ("a", "b", "c"), 1024, 8192, 256
BYTES_A_SAMPLE = len(MODALITIES) * WIDTH * 4
GB = 1e9
TURN = 50
UNTIMED = 5  # steps of a turn before its clock starts: a batch was read while it waited


def made_up(count: int) -> Iterator[Samples]:
    """Chunks of samples, every row another one."""
    draw = np.random.default_rng(0)
    noise = {name: draw.normal(size=(CHUNK, WIDTH)).astype(np.float32) for name in MODALITIES}
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        shift = np.float32(draw.normal())
        yield Samples.of(
            {name: np.roll(values, start // CHUNK, axis=1)[:rows] + shift for name, values in noise.items()},
            ids=range(start, start + rows),
        )


def drop_from_page_cache(store: Path) -> None:
    for path in store.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, float]:
    """GB resident: all of it, private memory, and pages of files (shared with every process that maps them)."""
    wanted = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "file"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {wanted[line[0][:-1]]: int(line[1]) * 1024 / GB for line in lines if line[0][:-1] in wanted}


def limit_memory(total: float) -> str:
    """Keep this process below `gigabytes` GB resident; says how."""
    rest = int((total - memory()["resident"]) * GB)
    name = f"centrobind-{os.getpid()}"
    for root, file, how in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory cgroup v1"),
        (Path("/sys/fs/cgroup"), "memory.max", "memory cgroup v2"),
    ):
        with contextlib.suppress(OSError):
            group = root / name
            group.mkdir()
            try:
                (group / file).write_text(str(rest))
                (group / "cgroup.procs").write_text(str(os.getpid()))
                return how
            except OSError:
                group.rmdir()
                raise
    resource.setrlimit(resource.RLIMIT_DATA, (int(total * GB), resource.RLIM_INFINITY))
    return "RLIMIT_DATA, which limits anonymous memory only"


def leave_group(pid: int) -> None:
    for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        with contextlib.suppress(OSError):
            (Path(root) / f"centrobind-{pid}").rmdir()


def work(store: Path, where: str, steps: int, turn: int, limit: float, threads: int, parent: Any) -> None:
    """Train in this process, from the store or from memory, a turn whenever the parent says so."""
    torch.set_num_threads(threads)
    samples, how = open_store(store), "none"
    if where == "store":
        how = limit_memory(limit)
    else:
        columns = {name: replace(column, values=np.array(column.values)) for name, column in samples.columns.items()}
        samples = replace(samples, columns=columns)
    most = memory()
    clock = 0.0

    def watch(done: int, **numbers: float) -> None:
        nonlocal clock
        if done % 10 == 0 or done == steps:
            for key, value in memory().items():
                most[key] = max(most[key], value)
        if done % turn == UNTIMED:
            clock = time.perf_counter()
        if done % turn == 0:
            parent.send((turn - UNTIMED) / (time.perf_counter() - clock))
            parent.recv()

    settings = TrainConfig(steps=steps, batch_size=BATCH, tensorboard=False)
    binder = build_binder(samples)
    parent.send("ready")
    parent.recv()
    train(binder, LeaveOneOut(), samples, None, settings, watch=watch)
    parent.send({"limited_by": how, "fingerprint": binder.fingerprint, "peak_gb": most})


class Worker:
    """A forked process and the line to it."""

    def __init__(self, target: Any, *arguments: Any):
        context = multiprocessing.get_context("fork")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self) -> Any:
        try:
            return self.line.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(f"a process that trained ended with {self.process.exitcode}; out of memory?") from None

    def go_on(self) -> Any:
        self.line.send("go on")
        return self.answer()

    def end(self) -> None:
        self.process.join()
        leave_group(self.process.pid)


def shared_pages(store: Path, answer: Any) -> None:
    """Touch the same rows in two processes; one answers with what its smaps says of their pages."""
    column = open_store(store).columns[MODALITIES[0]]
    rows = np.arange(min(len(column.rows), 20_000))
    column.take(rows)
    other = os.fork()
    if other == 0:  # it maps the file anew, as any other process would
        again = open_store(store).columns[MODALITIES[0]]
        again.take(rows)
        time.sleep(60)
        os._exit(0)
    del column
    mine = open_store(store).columns[MODALITIES[0]]
    mine.take(rows)
    time.sleep(1)
    found = {"rss_mb": 0.0, "pss_mb": 0.0, "shared_mb": 0.0, "private_mb": 0.0}
    keys = {"Rss:": "rss_mb", "Pss:": "pss_mb", "Shared_Clean:": "shared_mb", "Private_Clean:": "private_mb"}
    keys |= {"Shared_Dirty:": "shared_mb", "Private_Dirty:": "private_mb"}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            inside = bool(rest) and rest[-1] == str(store / f"x_{MODALITIES[0]}.npy")
        elif inside and first in keys:
            found[keys[first]] += int(rest[0]) * 1024 / 1e6
    os.kill(other, 9)
    os.waitpid(other, 0)
    answer.send({key: round(value, 1) for key, value in found.items()})


def measure(folder: Path, gb: float, steps: int | None, turn: int, limit: float, threads: int) -> dict[str, Any]:
    count = max(2 * BATCH, round(gb * GB / BYTES_A_SAMPLE))
    began = time.perf_counter()
    store = write_store(folder / "store", made_up(count))
    written = time.perf_counter() - began
    size = sum(path.stat().st_size for path in store.iterdir())
    steps = -(-(steps or -(-count // BATCH)) // turn) * turn
    drop_from_page_cache(store)
    workers = {}
    for where in ("memory", "store"):  # the store last, so that the other has not just read all of it
        workers[where] = Worker(work, store, where, steps, turn, limit, threads)
        assert workers[where].answer() == "ready"
        drop_from_page_cache(store)
    rates: dict[str, list[float]] = {"store": [], "memory": []}
    for one in range(steps // turn):
        for where in ("store", "memory") if one % 2 == 0 else ("memory", "store"):
            rates[where].append(workers[where].go_on())
        print(one, *(f"{where} {rate[-1]:.2f}" for where, rate in rates.items()), flush=True)
    ends = {where: worker.go_on() for where, worker in workers.items()}
    for worker in workers.values():
        worker.end()
    sharing = Worker(shared_pages, store)
    pages = sharing.answer()
    sharing.end()
    ratios = [one / other for one, other in zip(rates["store"], rates["memory"])]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {
        "store_gb": round(size / GB, 2),
        "samples": count,
        "bytes_a_sample": BYTES_A_SAMPLE,
        "batch": BATCH,
        "steps": steps,
        "threads": threads,
        "import_seconds": round(written, 1),
        "limit_gb": limit,
        "limited_by": ends["store"]["limited_by"],
        "peak_gb": {where: {key: round(gb, 3) for key, gb in end["peak_gb"].items()} for where, end in ends.items()},
        "steps_a_second": {where: round(statistics.median(rate), 2) for where, rate in rates.items()},
        "turns": len(ratios),
        "store_to_memory": round(statistics.median(ratios), 3),
        "middle_half_of_turns": [round(low, 3), round(high, 3)],
        "same_weights": ends["store"]["fingerprint"] == ends["memory"]["fingerprint"],
        "pages_of_one_of_two_processes": pages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.2, help="size of the store")
    parser.add_argument("--steps", type=int, help="rounded up to whole turns; default: an epoch")
    parser.add_argument("--turn", type=int, default=TURN, help=f"steps, more than {UNTIMED}")
    parser.add_argument("--limit-gb", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=1, help="of torch; the read-ahead has one of its own")
    parser.add_argument("--folder", type=Path, help="where the store goes for the while; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="centrobind-big-", dir=options.folder) as name:
        free = shutil.disk_usage(name).free
        if free < options.gb * GB * 1.1:
            raise SystemExit(
                f"{name}: expected {options.gb * 1.1:.1f} GB free, got {free / GB:.1f}; say --folder or --gb"
            )
        found = measure(Path(name), options.gb, options.steps, options.turn, options.limit_gb, options.threads)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
