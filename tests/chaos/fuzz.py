"""Ten thousand broken stores, checkpoints, manifests, tokens and requests, and what becomes of them.

    python -m chaos.fuzz --cases 10000 --out benchmarks/results/fuzz.json       (make fuzz)

Each case is a sound store, checkpoint, binder or bundle in a folder of its own, with one thing wrong: bytes flipped,
cut or added, a hostile value in its JSON (with sizes and checksums made to fit again, so that it gets past the first
check), an .npy header that lies, a pickle or a link in the place of a file. It is opened and, if it opens, read to the
end. The only errors may be our own. An audit hook sees every file that Python opens and every class that a pickle asks
for: nothing outside the folder may be touched. (safetensors opens files from Rust, where no hook sees it: one file,
named by us.) Manifests are in fuzz_manifests.py, tokens and requests in fuzz_requests.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import load, read_tensors, write_tensors
from centrobind.data import Sampler, Samples, assign_splits, inspect_samples, open_store, train_and_valid, write_store
from centrobind.data.store import checksum
from centrobind.errors import CentrobindError, RunError
from centrobind.objectives.table import LeaveOneOut
from centrobind.training.config import TrainConfig
from centrobind.training.finite import FiniteSteps
from centrobind.training.loop import train
from centrobind.training.optimizer import make_optimizer
from centrobind.training.replay import replay
from centrobind.training.run_folder import RunFolder
from centrobind.training.state import Best, TrainingState
from chaos import fuzz_manifests, fuzz_requests

HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", "", "x" * 5000, "\0", "\ud800", "vector", "text", "image", "mlp", "custom",
    -1, 0, 1, 7, 2**31, 2**63, 10**30, -(2**70), 0.5, 1e308, float("nan"), float("inf"), True, None, [], {}, [[]],
    [-1, 4], [2**40, 2**40], {"kind": "vector", "values": 3}, {"bytes": -1, "sha256": 0}, ["a", "a"], {"../x": {}},
]  # fmt: skip
SHAPES = ["(-1,)", "(0,)", "()", "(4611686018427387904,)", "(1000000000, 1000000000)", "(3,)", "(-5, -5)", "(2, 0)"]
TYPES = [
    "'|O'",
    "'>f4'",
    "'<f8'",
    "'<U10'",
    "'|V8'",
    "[('a', '<i4')]",
    "'<M8[s]'",
    "'<c8'",
    "'|b1'",
    "'nonsense'",
    "'<f16'",
]


LONGEST = 20  # seconds of processor time: a busy or paused machine is no flaw of ours
CONFIG = "data: store\nout: run\nobjective: {name: leave_one_out}\n"


class Bomb:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("pickle_was_opened",)


class Watch:
    """What Python does to files and pickles while it is on."""

    def __init__(self, inside: Path):
        self.inside, self.on = os.path.realpath(inside), False
        self.outside: list[str] = []
        self.unpickled: list[str] = []
        # Modules that are imported when first needed lie there; reading them is no harm.
        self.readable = [
            os.path.realpath(path) for path in {sys.prefix, sys.base_prefix, *sys.path, "/proc", "/dev"} if path
        ]
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in (
            "pickle.find_class",
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "socket.connect",
            "shutil.unpack_archive",
        ):
            self.unpickled.append(f"{event} {arguments}")
        elif event == "open" or event.startswith(("os.", "shutil.")):
            reads = event == "open" and not set(str(arguments[1])) & set("wax+")
            folder = ""
            if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] >= 0:  # relative to an open folder
                folder = os.readlink(f"/proc/self/fd/{arguments[-1]}")
            for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
                if isinstance(path, str | bytes | os.PathLike) and path:
                    self._saw(event, os.path.realpath(os.path.join(folder, os.fsdecode(path))), reads)

    def _saw(self, event: str, path: str, reads: bool) -> None:
        under = [self.inside, *(self.readable if reads else [])]
        if not any(path == root or path.startswith(root + os.sep) for root in under):
            self.outside.append(f"{event} {path}")

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


# ---- sound things to break ----------------------------------------------------------------------------------------


def make_sound(folder: Path) -> None:
    """`store`, `run` (with last, best, binder) and `run/nonfinite.safetensors`, all small."""
    draw = np.random.default_rng(0)
    label = np.arange(24) % 3
    samples = Samples.of(
        {
            "picture": (40 * label[:, None, None] + draw.integers(0, 40, (24, 4, 4))).astype(np.uint8),
            "series": (label[:, None, None] + draw.normal(size=(24, 6, 2))).astype(np.float16),
            "text": [f"{['red', 'green', 'blue'][c]} thing {i % 7}" for i, c in enumerate(label)],
            "vector": label[:, None] + draw.normal(size=(24, 3)),
        },
        present={"picture": draw.random(24) > 0.2, "text": draw.random(24) > 0.3},
        label=label,
        group=np.arange(24) // 2,
    )
    write_store(folder / "store", assign_splits(samples))
    settings = TrainConfig(steps=3, batch_size=6, checkpoint_every=1, validate_every=1, tensorboard=False)
    learn, valid = train_and_valid(open_store(folder / "store"))
    run = RunFolder(folder / "run")
    run.write_config(CONFIG)
    train(small_binder(learn), LeaveOneOut(), learn, valid, settings, run=run)
    broken = small_binder(learn)
    with torch.no_grad():
        broken.towers["vector"].head.weight.fill_(torch.nan)
    stopped = RunFolder(folder / "stopped")
    stopped.write_config(CONFIG)
    with contextlib.suppress(RunError):
        train(broken, LeaveOneOut(), learn, None, settings, run=stopped)
    os.replace(folder / "stopped" / "nonfinite.safetensors", folder / "run" / "nonfinite.safetensors")
    shutil.rmtree(folder / "stopped")
    fuzz_requests.make_sound(folder / "request")
    fuzz_manifests.make_sound(folder / "manifest")


def small_binder(samples: Samples) -> Any:
    encoders = {name: {"encoder": "bag" if name == "text" else "linear", "width": 4} for name in samples.modalities}
    return build_binder(samples, dim=4, encoders=encoders)


def use_store(path: Path) -> None:
    """Open it and read all of it, as training, embedding and inspecting would."""
    samples = open_store(path)
    samples.ids[:], samples.batch(np.arange(len(samples)))
    inspect_samples(samples)
    learn, _ = train_and_valid(samples)
    small_binder(learn).embed(samples)
    open_store(path, verify=True)


def use_run(path: Path) -> None:
    """Open its binder, go on from its last checkpoint, and do its stopped step again."""
    errors = []
    for use in (load, go_on, replay):
        try:
            use(path)
        except CentrobindError as error:  # one damaged file must not keep the others from being tried
            errors.append(error)
    if errors:
        raise errors[0]


def go_on(path: Path) -> None:
    tensors, state = RunFolder(path, resume=True).read_last()
    binder = load(path / "best.safetensors")
    modules = torch.nn.ModuleDict({"towers": binder, "objective": LeaveOneOut()})
    optimizer = make_optimizer(modules, TrainConfig())
    finite = FiniteSteps(optimizer, binder.device, 1)
    TrainingState(modules, optimizer, Sampler(16, 6), Best(), state.get("data", {}), finite).restore(tensors, state)
    for parameter in modules.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


# ---- ways to break them -------------------------------------------------------------------------------------------


def break_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped, a piece cut out, doubled, zeroed or replaced, or the end gone."""
    data = bytearray(content)
    a = draw.randrange(len(data) + 1)
    b = min(len(data), a + draw.choice([1, 2, 8, 64, 1000]))
    how = draw.randrange(6)
    if how == 0:
        for _ in range(draw.choice([1, 1, 3, 20])):
            if data:
                data[draw.randrange(min(len(data), draw.choice([8, 128, 10**9])))] ^= 1 << draw.randrange(8)
    elif how == 1:
        del data[a:]
    elif how == 2:
        del data[a:b]
    elif how == 3:
        data[b:b] = data[a:b]
    elif how == 4:
        data[a:b] = bytes(b - a)
    else:
        data[a:b] = draw.randbytes(b - a)
    return bytes(data)


def break_json(tree: Any, draw: random.Random) -> Any:
    """One place in a tree of JSON replaced, removed, renamed or added to."""
    tree = json.loads(json.dumps(tree))
    places = [(tree, key) for tree in _inner(tree) for key in (tree if isinstance(tree, dict) else range(len(tree)))]
    if not places:
        return draw.choice(HOSTILE)
    holder, key = draw.choice(places)
    how = draw.randrange(5)
    if how <= 2:
        holder[key] = draw.choice(HOSTILE)
    elif how == 3:
        del holder[key]
    elif isinstance(holder, dict):
        holder[str(draw.choice(HOSTILE))] = holder.pop(key) if draw.random() < 0.5 else draw.choice(HOSTILE)
    else:
        holder.append(draw.choice(HOSTILE))
    return tree


def _inner(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _inner(value)


def break_header(content: bytes, draw: random.Random) -> bytes:
    """An .npy header that says something else about the same bytes."""
    length = struct.unpack("<H", content[8:10])[0]
    said = content[10 : 10 + length].decode("latin1")
    which = draw.randrange(3)
    if which == 0:
        said = said[: said.index("'shape'")] + f"'shape': {draw.choice(SHAPES)}, }}"
    elif which == 1:
        said = f"{{'descr': {draw.choice(TYPES)}," + said[said.index(" 'fortran_order'") :]
    else:
        said = said.replace("False", draw.choice(["True", "None", "[]"]))
    said = said.rstrip().ljust(length)[:length]
    return content[:10] + said.encode("latin1") + content[10 + length :]


def break_store_bytes(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.iterdir()))
    file.write_bytes(break_bytes(file.read_bytes(), draw))
    _fit(path, draw)


def break_store_meta(path: Path, draw: random.Random) -> None:
    meta = json.loads((path / "meta.json").read_text())
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        meta = break_json(meta, draw)
    (path / "meta.json").write_text(json.dumps(meta))


def break_store_header(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.glob("*.npy")))
    file.write_bytes(break_header(file.read_bytes(), draw))
    _fit(path, draw, always=True)


def break_store_file(path: Path, draw: random.Random) -> None:
    """Something else in the place of a file."""
    file = draw.choice(sorted(path.iterdir()))
    other = draw.choice(sorted(path.iterdir()))
    content = other.read_bytes()
    file.unlink()
    how = draw.randrange(6)
    if how == 0:
        with open(file, "wb") as pickled:
            np.save(pickled, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif how == 1:
        file.write_bytes(pickle.dumps(Bomb()))
    elif how == 2:
        file.mkdir()
    elif how == 3:
        file.symlink_to(path.parent.parent / "canary.npy")
    elif how == 4:
        file.write_bytes(content)
    _fit(path, draw, always=True)


def _fit(path: Path, draw: random.Random, always: bool = False) -> None:
    """Often make sizes and checksums in meta.json right again, as someone who means harm would."""
    if always or draw.random() < 0.7:
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, AttributeError):
            meta = json.loads((path / "meta.json").read_bytes())
            for name in meta["files"]:
                meta["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": checksum(path / name)}
            (path / "meta.json").write_text(json.dumps(meta))


def break_run_bytes(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.glob("*.safetensors")))
    file.write_bytes(break_bytes(file.read_bytes(), draw))


def break_run_header(path: Path, draw: random.Random) -> None:
    """Hostile values in the header that safetensors reads."""
    file = draw.choice(sorted(path.glob("*.safetensors")))
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(break_json(json.loads(content[8 : 8 + length]), draw)).encode()
    size = draw.choice([len(header)] * 8 + [2**63, 0, len(content) * 2])
    file.write_bytes(struct.pack("<Q", size) + header + content[8 + length :])


def break_run_state(path: Path, draw: random.Random) -> None:
    """Hostile values in what we say ourselves, under a checksum that fits."""
    file = draw.choice(sorted(path.glob("*.safetensors")))
    tensors, state = read_tensors(file)
    for _ in range(draw.choice([1, 1, 2, 4])):
        state = break_json(state, draw)
    with contextlib.suppress(UnicodeEncodeError):
        write_tensors(file, tensors, state)


def break_run_tensors(path: Path, draw: random.Random) -> None:
    """A tensor renamed, dropped, of another shape or type, under a checksum that fits."""
    file = draw.choice(sorted(path.glob("*.safetensors")))
    tensors, state = read_tensors(file)
    name = draw.choice(sorted(tensors))
    value = tensors.pop(name)
    how = draw.randrange(5)
    if how == 0:
        tensors[draw.choice(["", "/", "../x", "towers/", "optimizer/", "other/x", name + "/x"])] = value
    elif how == 1:
        tensors[name] = torch.zeros(draw.choice([(), (0,), (1,), (7, 3), (1, 1, 1, 1)]), dtype=value.dtype)
    elif how == 2:
        tensors[name] = value.to(draw.choice([torch.float64, torch.int8, torch.bool, torch.bfloat16, torch.complex64]))
    elif how == 3:
        tensors[name] = torch.full_like(value, -1) if value.dtype == torch.long else value * torch.nan
    write_tensors(file, tensors, state)


WAYS: dict[str, tuple[str, Callable[[Path, random.Random], None], Callable[[Path], None]]] = {
    "store: bytes": ("store", break_store_bytes, use_store),
    "store: meta.json": ("store", break_store_meta, use_store),
    "store: .npy headers": ("store", break_store_header, use_store),
    "store: pickles, links, other files": ("store", break_store_file, use_store),
    "checkpoint: bytes": ("run", break_run_bytes, use_run),
    "checkpoint: header": ("run", break_run_header, use_run),
    "checkpoint: state, checksum fits": ("run", break_run_state, use_run),
    "checkpoint: tensors, checksum fits": ("run", break_run_tensors, use_run),
    "server: tokens": ("request", fuzz_requests.break_token, fuzz_requests.use_request),
    "manifest: typed cells": ("manifest", fuzz_manifests.break_cells, fuzz_manifests.use_manifests),
    "manifest: paths": ("manifest", fuzz_manifests.break_paths, fuzz_manifests.use_manifests),
    "manifest: bytes": ("manifest", fuzz_manifests.break_manifest_bytes, fuzz_manifests.use_manifests),
    "server: heads of requests": ("request", fuzz_requests.break_head, fuzz_requests.use_request),
}


def too_long(*_: Any) -> None:
    raise TimeoutError(f"a case took more than {LONGEST} seconds of the processor")


def fuzz(folder: Path, cases: int, seed: int = 0) -> dict[str, Any]:
    """Break and open `cases` things; what came of them, by the way they were broken."""
    sound, inside = folder / "sound", folder / "inside"
    sound.mkdir()
    make_sound(sound)
    use_store(sound / "store")  # everything that is imported when first used is imported now
    use_run(sound / "run")
    fuzz_requests.use_request(sound / "request")
    fuzz_manifests.use_manifests(sound / "manifest")
    np.save(folder / "canary.npy", np.ones((24, 3), np.float32))
    watch = Watch(inside)
    counts = {way: Counter() for way in WAYS}
    crashes: list[str] = []
    os.chdir(folder)
    signal.signal(signal.SIGPROF, too_long)
    _limit_memory()
    for number in range(cases):
        way = list(WAYS)[number % len(WAYS)]
        what, harm, use = WAYS[way]
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(sound / what, inside / what)
        harm(inside / what, random.Random(f"{seed} {number}"))
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        try:
            with watch(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(inside / what)
            counts[way]["opened"] += 1
        except CentrobindError:
            counts[way]["refused"] += 1
        except Exception:
            counts[way]["crashed"] += 1
            crashes.append(f"case {number}, {way}\n{traceback.format_exc()}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    assert not (folder / "pickle_was_opened").exists()
    ways = {
        way: {result: found[result] for result in ("refused", "opened", "crashed")} for way, found in counts.items()
    }
    return {
        "cases": cases,
        "seed": seed,
        "ways": ways,
        "crashed": len(crashes),
        "unpickled": len(watch.unpickled),
        "outside": len(watch.outside),
        "details": [*crashes, *watch.unpickled, *watch.outside][:20],
    }


def _limit_memory() -> None:
    """An array of a terabyte must end in an error and not in the end of the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = None if options.out is None else options.out.resolve()
    with tempfile.TemporaryDirectory(prefix="centrobind-fuzz-") as name:
        found = fuzz(Path(name), options.cases, options.seed)
    details = found.pop("details")
    text = json.dumps(found, indent=1)
    print(text, *details, sep="\n")
    if out is not None:
        out.write_text(text + "\n")
    if found["crashed"] or found["unpickled"] or found["outside"]:
        sys.exit("something else than our own errors happened")


if __name__ == "__main__":
    main()
