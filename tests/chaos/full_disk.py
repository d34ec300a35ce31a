"""Everything that writes, on a disk without room: python -m chaos.full_disk FOLDER prints what each of them said.

RLIMIT_FSIZE makes the system refuse to let a file grow beyond a size, in the middle of a write as a full disk does
(Python ignores SIGXFSZ, so that the write returns an error). It is a process of its own that has the limit.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from centrobind.binder.checkpoint import load, save
from centrobind.binder.embedding import embed_to
from centrobind.data import open_store, read_chunks, write_store
from centrobind.errors import CentrobindError
from centrobind.training.run_folder import RunFolder
from chaos.kills import left_by, make_data, make_table, training


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def said(work: Callable[[], Any]) -> str:
    """The message of our error; anything else is let through and fails the test."""
    try:
        work()
    except CentrobindError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def full_from(call: int, name: str, size: Callable[[Path], int], run: Path, work: Callable[[], Any]) -> str:
    """What training says on a disk that is full from the n-th call of a method of the run's folder on."""
    plain, calls, full = getattr(RunFolder, name), [0], contextlib.ExitStack()

    def counted(self: RunFolder, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            full.enter_context(room_for(size(run)))
        plain(self, *args)

    setattr(RunFolder, name, counted)
    try:
        with full:
            return said(work)
    finally:
        setattr(RunFolder, name, plain)


def main(folder: Path) -> None:
    data = make_data(folder)
    kind = {"objective": "random", "seed": 0, "steps": 9}
    training(data, folder / "whole", **kind)()
    whole = left_by(folder / "whole")
    found: dict[str, Any] = {}
    cases = {
        "checkpoint": (5, "write_last", lambda run: 9_000),
        "log": (6, "log", lambda run: (run / "metrics.jsonl").stat().st_size + 20),  # its first line is of step 0
    }
    for name, (time, where, size) in cases.items():
        run = folder / name
        message = full_from(time, where, size, run, training(data, run, **kind))
        last = RunFolder(run, resume=True).read_last()[1]["step"]
        training(data, run, **kind)()
        names = sorted(path.name for path in run.iterdir())
        found[name] = {"said": message, "step": last, "resumed": left_by(run) == whole, "names": names}

    table, binder = make_table(folder, "table", 3000), load(folder / "whole")
    target = folder / "store"
    with room_for(20_000):
        found["import"] = {"said": said(lambda: write_store(target, read_chunks(table))), "left": target.exists()}
    write_store(target, read_chunks(make_table(folder, "small", 30)))
    before = len(open_store(target, verify=True))
    with room_for(20_000):
        found["replace"] = {"said": said(lambda: write_store(target, read_chunks(table), replace=True))}
    found["replace"] |= {"left": len(open_store(target, verify=True)) == before}
    found["replace"]["names"] = sorted(path.name for path in folder.glob("store*"))
    samples = open_store(data)
    for name, work in {
        "binder": lambda: save(binder, folder / "binder"),
        "embeddings": lambda: embed_to(binder, samples, folder / "e.npz"),
    }.items():
        with room_for(5_000):
            found[name] = {"said": said(work)}
        found[name]["left"] = [path.name for pattern in ("binder*", "e.npz*") for path in folder.glob(pattern)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
