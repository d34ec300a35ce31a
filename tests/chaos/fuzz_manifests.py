"""Manifests with hostile cells and broken bytes, for chaos.fuzz: how they are broken, and what must hold.

A case is a folder with the same three samples as JSONL, Parquet and CSV, and the files they name. Beside the folder lies
a file with a secret: whatever a manifest says, no value of a store may hold it.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from centrobind.data import open_store, read_chunks, write_store
from centrobind.errors import CentrobindError, DataError

SECRET = "the content of a file that nobody named"
OUTSIDE = [
    "../../secret.txt",
    "link.txt",
    "..\\..\\secret.txt",
    "linked/secret.txt",
    "./a/../../../secret.txt",
    "SECRET",
    "SECRET",
    "secret.txt",
]
ENDINGS = ["", ".txt", ".png", ".npy", ".csv", ".wav", ".TXT", "/", "\0.txt"]
NAMES = [
    "a.png", "b.txt", "c.npy", "gone.png", "", ".", "..", "/etc/passwd", "C:\\x.txt", "\\\\host\\share\\x.txt", "//host/x.txt",
    "file:///etc/passwd", "FILE:///etc/passwd.txt", "x" * 300 + ".txt", "x/" * 3000 + "y.txt", "\ud800.txt", "~/x.txt", "a.png\0",
    "folder.png", "pipe.png", "loop.txt", "set.jsonl", "\x1b[2J.png", "dev/zero.npy", "$HOME/x.txt", "%2e%2e/secret.txt",
]  # fmt: skip
VALUES = [
    True, False, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), [], [[]], [1], [1, 2, 3], [[1], [2, 3]], ["a"], [None],
    {}, {"x": 1}, [{}], "[1, 2]", "[" * 3000, "[1e999]", "[" + "9" * 5000 + "]", "nan", "text", "\ud83d", "\0", "x" * 200_000,
    [True, False], [1, "2"], [2**70], {"array": [0.1, 0.2], "sampling_rate": 16_000}, {"array": {"x": 1}, "sampling_rate": 1e999},
    {"array": [[0.1] * 40], "sampling_rate": True}, {"array": "/etc/passwd", "sampling_rate": "16000"}, {"array": [], "sampling_rate": 0},
]  # fmt: skip


def make_sound(folder: Path) -> None:
    """Three samples with a picture, a text, an array and plain numbers each."""
    folder.mkdir()
    Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    (folder / "b.txt").write_text("a thing\n")
    np.save(folder / "c.npy", np.arange(3.0))
    rows = [
        {
            "id": f"s{i}",
            "label": "xy"[i % 2],
            "photo": "a.png",
            "words": "b.txt",
            "array": "c.npy",
            "numbers": [i, i + 1],
        }
        for i in range(3)
    ]
    write_manifests(folder, rows)


def write_manifests(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The rows in every format that can hold them; a format that cannot is left as it was."""
    for name, write in (("set.jsonl", _jsonl), ("set.parquet", _parquet), ("set.csv", _csv)):
        try:
            write(folder / name, rows)
        except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, AttributeError):
            continue


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    def plain(value: Any) -> Any:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    path.write_text("".join(json.dumps(row, default=plain) + "\n" for row in rows))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    pyarrow.parquet.write_table(table, path)


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [['"' + str(row.get(name, "")).replace('"', '""') + '"' for name in names] for row in rows]
    text = "\n".join(",".join(line) for line in [names, *cells])
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def break_cells(folder: Path, draw: random.Random) -> None:
    """A column, or one cell of it, that names, holds or is something else."""
    rows = [json.loads(line) for line in (folder / "set.jsonl").read_text().splitlines()]
    for _ in range(draw.choice([1, 1, 2, 4])):
        column = draw.choice([*rows[0], "new"])
        value = _cell(folder, draw)
        for row in draw.choice([rows, rows[:1], rows[1:2], rows[2:]]):
            row[column] = value
    _lay_traps(folder)
    write_manifests(folder, rows)


def break_paths(folder: Path, draw: random.Random) -> None:
    """A column whose cells lead to the secret, if any text in them is taken for a path."""
    rows = [json.loads(line) for line in (folder / "set.jsonl").read_text().splitlines()]
    name = draw.choice(OUTSIDE).replace("SECRET", str(folder.parent.parent / "secret.txt"))
    packed = [{"bytes": name, "path": draw.choice(["x.txt", "x.png", name, None])}, {"bytes": name}]
    cell = draw.choice([name, {"path": name}, {"bytes": None, "path": name}, *packed, *packed])
    column = draw.choice(["words", "new", "photo"])
    for row in draw.choice([rows, rows[:1], rows[1:]]):
        row[column] = cell
    _lay_traps(folder)
    write_manifests(folder, rows)


def _lay_traps(folder: Path) -> None:
    """The secret, links that lead to it, and things in the place of files."""
    (folder.parent.parent / "secret.txt").write_text(SECRET)
    os.symlink(folder.parent.parent / "secret.txt", folder / "link.txt")
    os.symlink(folder.parent.parent, folder / "linked")
    os.symlink("/dev", folder / "dev")
    os.symlink("loop.txt", folder / "loop.txt")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()


def _cell(folder: Path, draw: random.Random) -> Any:
    name = draw.choice(draw.choice([OUTSIDE, NAMES]))
    if name == "SECRET":
        name = str(folder.parent.parent / "secret.txt")
    if draw.random() < 0.2:
        name += draw.choice(ENDINGS)
    content = draw.choice(
        [None, name, name.encode("utf-8", "surrogatepass"), (folder / "a.png").read_bytes(), 5, [1, 2], {}, ""]
    )
    packed = [
        {"bytes": content, "path": draw.choice([None, name, "x.txt", "x.png", 5])},
        {"bytes": content},
        {"path": name},
    ]
    return draw.choice([name, name, *packed, *packed, draw.choice(VALUES), draw.choice(VALUES)])


def break_manifest_bytes(folder: Path, draw: random.Random) -> None:
    """Bytes of a manifest, or of a file that it names."""
    from chaos.fuzz import break_bytes

    file = draw.choice(sorted(folder.iterdir()))
    file.write_bytes(break_bytes(file.read_bytes(), draw))


def use_manifests(folder: Path) -> None:
    """Import all of them, and read what came of it; AssertionError where a value holds the secret."""
    errors: list[CentrobindError] = []
    for manifest in sorted(folder.glob("set.*")):
        try:
            store = write_store(folder / "store", read_chunks(manifest), replace=True)
            samples = open_store(store)
            everything = samples.batch(np.arange(len(samples))).inputs
            everything = {"ids": samples.ids[:], **everything}
            assert SECRET not in repr(everything), f"{manifest.name} read a file outside its folder"
        except CentrobindError as error:
            errors.append(error)
            assert SECRET not in str(error), f"{manifest.name}: the error tells what is in a file outside"
            str(error).encode()  # it is printed
    shutil.rmtree(folder / "store", ignore_errors=True)
    if errors:
        raise DataError(str(errors[0]))
