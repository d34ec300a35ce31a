"""The name of a file in a manifest -> its path, which never leads out of the manifest's folder.

A manifest is an untrusted file: whoever wrote it must not choose what is read from the disk of whoever imports it.
"""

from __future__ import annotations

import re
from pathlib import Path

from centrobind.errors import DataError

LONGEST_NAME = 4096  # characters: what Linux takes for a path; more is no name, and is not handed to the system
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
ELSEWHERE = re.compile(r"[a-z]:|//", re.IGNORECASE)  # a drive, or a machine on the net, as Windows writes them
SHOWN = 100  # characters of a cell that a message repeats


def path_inside(folder: Path, name: str) -> Path:
    """The file called `name` in or below a folder; DataError for a name that leads elsewhere, links included.

    Backslashes separate folders, as Windows writes them: a name that holds one otherwise is rare, and a path out of
    the folder that only one system sees would be worse.
    """
    if ADDRESS.match(name):
        raise DataError("an address on the net; download it first, files are read from the manifest's folder")
    if "\0" in name or len(name) > LONGEST_NAME:
        raise DataError("not the name of a file")
    name = name.replace("\\", "/")
    outside = DataError("leaves the folder of the manifest; only files in or below it are read")
    if ELSEWHERE.match(name):  # before it is resolved: on Windows that would ask the other machine
        raise outside
    root = folder.resolve()
    try:
        file = (root / name).resolve()  # follows links, so that none leads out
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        raise DataError("not the name of a file") from None
    if not file.is_relative_to(root):
        raise outside
    return file


def printable(text: str, longest: int = SHOWN) -> str:
    """A text of an untrusted file for a message: no control characters, which a terminal would obey, and not long."""
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
