"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from centrobind.errors import CentrobindError, CheckpointError

NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def named(path: str | Path, error: type[CentrobindError]) -> Path:
    """The path, whether something lies there or not; `error` for a text that no file can be called.

    `Path.exists` and its like raise OSError or ValueError for those: names that are too long, hold a zero byte or a
    lone surrogate, or circles of links.
    """
    try:
        os.stat(path)
    except OSError as reason:
        if reason.errno in NO_NAME:
            raise error(f"{str(path)[:80]!r}: not the name of a file ({reason.strerror})") from None
    except ValueError as reason:
        raise error(f"{str(path)[:80]!r}: not the name of a file ({reason})") from None
    return Path(path)


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


def lock_of(path: Path, *, patience: float = 0, shared: bool = False) -> FileLock | None:
    """The lock that is the file at `path`, held; None if another holds it, also after so many seconds.

    `shared`: within a process it may be held several times. It dies with its process, on any system. OSError if the
    file cannot be made, or is a link to another one.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a link in the place of a lock")
    lock = FileLock(path, is_singleton=shared, thread_local=False)
    try:
        lock.acquire(timeout=patience, poll_interval=0.01)
    except Timeout:
        return None
    return lock


def not_written(path: Path, error: OSError, needed: int | None = None) -> str:
    """The words for a file that could not be written: which, why, how much it needs and how much room is there."""
    try:
        free = f", {shutil.disk_usage(path.parent).free:,} bytes free on that disk"
    except OSError:
        free = ""
    wants = "" if needed is None else f", it needs {needed:,} bytes"
    return f"{path}: could not be written ({error.strerror or error}{wants}{free})"
