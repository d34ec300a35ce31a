"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from centrobind.errors import CheckpointError


def write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        said = not_written(path, error, len(content))
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{said}; what was there before is intact. Make room, then continue") from None


def not_written(path: Path, error: OSError, needed: int | None = None) -> str:
    """The words for a file that could not be written: which, why, how much it needs and how much room is there."""
    try:
        free = f", {shutil.disk_usage(path.parent).free:,} bytes free on that disk"
    except OSError:
        free = ""
    wants = "" if needed is None else f", it needs {needed:,} bytes"
    return f"{path}: could not be written ({error.strerror or error}{wants}{free})"
