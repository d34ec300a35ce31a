"""Many texts as one blob of bytes, and reading ahead of what lies on a disk."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from centrobind.errors import StoreError

WORDS_READ = 64  # of a text, unless an encoder says otherwise


def will_need(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
    """Tell the system which rows of a memory-mapped array are read next, so that it fetches them all at once.

    Page faults come one after the other: 256 cold rows of 4 kB took 42 ms without this and 5 ms with it. Only a
    hint, and nothing at all for an array in memory. Not mmap.madvise, which keeps the interpreter to itself meanwhile.
    """
    if (
        not isinstance(values, np.memmap)
        or values.filename is None
        or not hasattr(os, "posix_fadvise")
        or len(starts) == 0
    ):
        return
    width = values.strides[0]
    first = (values.offset + np.asarray(starts, np.int64) * width) // mmap.PAGESIZE
    last = -(-(values.offset + np.asarray(stops, np.int64) * width) // mmap.PAGESIZE)
    order = np.argsort(first, kind="stable")
    first, last = first[order], np.maximum.accumulate(last[order])
    begins = np.concatenate([[True], first[1:] > last[:-1]])  # neighbours are asked for in one call
    ends = np.concatenate([begins[1:], [True]])
    with contextlib.suppress(OSError), open(values.filename, "rb", buffering=0) as file:
        for a, b in zip(first[begins].tolist(), last[ends].tolist()):
            if b > a:
                os.posix_fadvise(file.fileno(), a * mmap.PAGESIZE, (b - a) * mmap.PAGESIZE, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class Strings:
    """Many strings as one UTF-8 blob and where each lies in it: memory-mapped and picked like numbers."""

    blob: np.ndarray  # (bytes,) uint8
    starts: np.ndarray  # (N,) int64
    stops: np.ndarray  # (N,) int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        stops = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        blob = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(blob, stops - [len(text) for text in encoded], stops)

    @classmethod
    def numbered(cls, start: int, count: int) -> Strings:
        """The texts of whole numbers from `start` on."""
        return cls.of(map(str, range(start, start + count)))

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: Any) -> Strings:
        """Some of them, sharing the blob."""
        return Strings(self.blob, self.starts[rows], self.stops[rows])

    def __getitem__(self, rows: Any) -> list[str]:
        picked = self.take(rows)
        will_need(self.blob, picked.starts, picked.stops)
        view = memoryview(self.blob)  # a slice of a mapped array costs five times as much
        try:
            return [
                str(view[a:b], "utf-8", "surrogatepass") for a, b in zip(picked.starts.tolist(), picked.stops.tolist())
            ]
        except UnicodeDecodeError as error:
            raise StoreError(
                f"a text is not UTF-8 ({error.reason}): its file was damaged; `centrobind inspect STORE --verify` "
                "says which, import the data again"
            ) from None
