"""The exact engine: vectors memory-mapped as they were written, every one looked at, on the GPU when there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from centrobind.data import Codes, Samples
from centrobind.errors import DataError
from centrobind.index.engine import CAPTION, About
from centrobind.index.segments import (
    MANIFEST,
    Manifest,
    Segment,
    commit,
    living_chunks,
    read_manifest,
    read_said,
    to_merge,
    with_dead,
    write_segment,
    writing,
)
from centrobind.index.topk import BLOCK, QUERIES, Nearest


class Snapshot:
    """The index as one write left it. Rows number the living samples, in the order in which they were written."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.segments = manifest.segments
        self.alive = np.concatenate([one.alive for one in self.segments] or [np.zeros(0, bool)])
        self.starts = np.cumsum([0, *(len(one) for one in self.segments)])  # of segments, the dead counted
        self.rows = np.cumsum(self.alive) - 1  # of samples, the dead counted too
        self.places = np.flatnonzero(self.alive)  # of rows, among samples with the dead counted
        self._searched: dict[tuple[int, str], tuple[Tensor, np.ndarray | None]] = {}

    def __len__(self) -> int:
        return len(self.places)

    def parts(self, rows: np.ndarray) -> Iterator[tuple[Segment, np.ndarray, np.ndarray]]:
        """The segments that some rows lie in: segment, which of `rows`, and their places in it."""
        places = self.places[rows]
        owner = np.searchsorted(self.starts, places, side="right") - 1
        for number in np.unique(owner):
            which = np.flatnonzero(owner == number)
            yield self.segments[number], which, places[which] - self.starts[number]

    def owners(self, segment: Segment, modality: str) -> np.ndarray:
        """(n,) which of a segment's samples have the modality; its values lie in the order of the samples."""
        return np.flatnonzero(segment.samples.columns[modality].present)

    def searched(self, segment: Segment, modality: str) -> tuple[Tensor, np.ndarray | None]:
        """(n,) the rows of a segment's values, and which of them live, None for all; kept for the next search."""
        key = segment.number, modality
        if key not in self._searched:
            owners = self.owners(segment, modality)
            start = next(start for start, other in zip(self.starts, self.segments) if other is segment)
            living = segment.alive[owners]
            self._searched[key] = torch.from_numpy(self.rows[start + owners]), None if living.all() else living
        return self._searched[key]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Made when an id is first looked up: a second and 150 MB for a million of them."""
        return {one: row for row, one in enumerate(self.ids)}

    @cached_property
    def ids(self) -> list[str]:
        return [one for segment in self.segments for one in segment.samples.ids[np.flatnonzero(segment.alive)]]

    def codes(self, what: str) -> Codes | None:
        """The living samples' labels, splits or groups over all segments, None if none has any."""
        found = [getattr(one.samples, what) for one in self.segments]
        number: dict[str, int] = {}
        for codes in found:
            for name in () if codes is None else codes.names:
                number.setdefault(name, len(number))
        if not number:
            return None
        merged = [
            np.full(segment.living, -1, np.int32)
            if codes is None
            else np.array([number[name] for name in codes.names] + [-1], np.int32)[codes.codes[segment.alive]]
            for segment, codes in zip(self.segments, found)
        ]
        return Codes(np.concatenate(merged), tuple(number))

    def allowed(self, segment: Segment, where: Mapping[str, Sequence[str]]) -> np.ndarray:
        """(N,) bool: which samples of a segment live and are in these categories."""
        allowed = segment.alive
        for what, wanted in where.items():
            codes = getattr(segment.samples, what)
            numbers = [] if codes is None else [codes.names.index(name) for name in wanted if name in codes.names]
            allowed = allowed & (np.isin(codes.codes, numbers) if numbers else False)
        return allowed


class Exact:
    """The engine `exact`; see Engine for what its methods promise."""

    name = "exact"

    def __init__(self, path: str | Path, device: torch.device):
        self.path, self.device = Path(path), device
        self.now = Snapshot(read_manifest(self.path))
        self._copies: dict[tuple[int, str], Tensor] = {}  # on the GPU

    @classmethod
    def create(cls, path: Path, about: About, chunks: Iterable[Samples]) -> None:
        path = Path(path)
        with writing(path):
            writes = read_said(path)["writes"] if (path / MANIFEST).is_file() else 0
            segment = write_segment(path, writes, chunks)
            commit(path, Manifest(about, writes + 1, (segment,)))

    @property
    def about(self) -> About:
        return self.now.manifest.about

    def __len__(self) -> int:
        return len(self.now)

    def ids(self) -> list[str]:
        return self.now.ids

    def codes(self, what: str) -> Codes | None:
        return self.now.codes(what)

    def names(self, what: str) -> list[str]:
        found = (getattr(one.samples, what) for one in self.now.segments)
        return list(dict.fromkeys(name for codes in found if codes is not None for name in codes.names))

    def captions(self, rows: Sequence[int]) -> list[str | None]:
        found: list[str | None] = [None] * len(rows)
        for segment, which, places in self.now.parts(np.asarray(rows, np.int64)):
            column = segment.samples.columns.get(CAPTION)
            if column is not None and column.kind == "text":
                here = column.present[places]
                for place, text in zip(which[here], column.take(places[here])):
                    found[place] = str(text)
        return found

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self.now.row_of.get(one, -1) for one in ids], np.int64)

    def vectors(self, modality: str, rows: np.ndarray) -> np.ndarray:
        found = np.full((len(rows), self.about.dim), np.nan, np.float32)
        for segment, which, places in self.now.parts(np.asarray(rows)):
            column = segment.samples.columns.get(modality)
            if column is not None:
                here = column.present[places]
                found[which[here]] = column.take(places[here])
        return found

    def nearest(
        self, queries: Tensor, modality: str, k: int, where: Mapping[str, Sequence[str]]
    ) -> tuple[list[list[float]], list[list[int]], list[list[str]]]:
        now = self.now  # one snapshot to the end, whatever another thread refreshes meanwhile
        found = Nearest(queries.to(self.device), k)
        # What is picked is copied, so that only a whole block may be larger for fewer queries.
        whole = BLOCK * max(1, min(8, QUERIES // max(len(queries), 1)))
        for segment in now.segments:
            if modality not in segment.vectors:
                continue
            rows, living = now.searched(segment, modality)
            allowed = now.allowed(segment, where)[now.owners(segment, modality)] if where else living
            vectors = self._on_device(segment, modality)
            size = whole if allowed is None else BLOCK
            for begin in range(0, len(rows), size):
                part = slice(begin, begin + size)
                block, numbers = vectors[part], rows[part]
                if allowed is not None:
                    picked = torch.from_numpy(np.flatnonzero(allowed[part]))
                    if len(picked) == 0:
                        continue
                    block, numbers = block[picked.to(block.device)], numbers[picked]
                found.see(numbers.to(self.device), block.to(self.device))
        scores, hits = found.result()
        flat = np.array([row for one in hits for row in one], np.int64)
        names: list[str] = [""] * len(flat)
        for segment, which, places in now.parts(flat):
            for place, text in zip(which, segment.samples.ids[places]):
                names[place] = text
        ends = np.cumsum([len(one) for one in hits])
        return scores, hits, [names[end - len(one) : end] for end, one in zip(ends, hits)]

    def _on_device(self, segment: Segment, modality: str) -> Tensor:
        """A segment's vectors: the mapped file itself, or a copy on the GPU that is kept while half of it is free."""
        vectors = segment.vectors[modality]
        if self.device.type == "cpu":
            return vectors
        key = (segment.number, modality)
        if key not in self._copies:
            free, _ = torch.cuda.mem_get_info(self.device)
            if 2 * vectors.nbytes > free:
                return vectors
            self._copies[key] = vectors.to(self.device)
        return self._copies[key]

    def refresh(self) -> bool:
        if read_said(self.path)["writes"] == self.now.manifest.writes:
            return False
        self.now = Snapshot(read_manifest(self.path))
        numbers = {one.number for one in self.now.segments}
        self._copies = {key: value for key, value in self._copies.items() if key[0] in numbers}
        return True

    def write(self, chunks: Iterable[Samples], *, replacing: bool) -> None:
        with writing(self.path):
            now = Snapshot(read_manifest(self.path))
            segment = write_segment(self.path, now.manifest.writes, chunks)
            known = now.row_of
            old = np.array([known[one] for one in segment.samples.ids[:] if one in known], np.int64)
            if len(old) and not replacing:
                some = [now.ids[row] for row in old[:5]]
                raise DataError(f"{len(old)} of these ids are in the index already, first {some}; replace them instead")
            kept = self._without(now, old, now.manifest.writes + 1)
            self._commit(now.manifest, (*kept, segment))

    def delete(self, ids: Sequence[str]) -> None:
        with writing(self.path):
            now = Snapshot(read_manifest(self.path))
            rows = np.array([now.row_of.get(one, -1) for one in ids], np.int64)
            if (rows < 0).any():
                missing = [one for one, row in zip(ids, rows) if row < 0]
                raise DataError(f"{len(missing)} of these ids are not in the index, first {missing[:5]}")
            self._commit(now.manifest, self._without(now, rows, now.manifest.writes + 1))

    def _without(self, now: Snapshot, rows: np.ndarray, write: int) -> tuple[Segment, ...]:
        gone = {segment.number: places for segment, _, places in now.parts(rows)}
        return tuple(
            with_dead(self.path, one, gone[one.number], write) if one.number in gone else one for one in now.segments
        )

    def _commit(self, before: Manifest, segments: tuple[Segment, ...]) -> None:
        segments = tuple(one for one in segments if one.living)
        commit(self.path, replace(before, writes=before.writes + 1, segments=segments))
        if (first := to_merge(segments)) < len(segments):
            self._merge(first)
        self.refresh()

    def _merge(self, first: int) -> None:
        """One segment instead of those from `first` on; a write of its own, so that a kill loses nothing."""
        now = Snapshot(read_manifest(self.path))
        last = now.segments[first:]
        merged = write_segment(self.path, now.manifest.writes, living_chunks(last))
        manifest = replace(now.manifest, writes=now.manifest.writes + 1, segments=(*now.segments[:first], merged))
        commit(self.path, manifest)

    def compact(self) -> None:
        with writing(self.path):
            now = Snapshot(read_manifest(self.path))
            if len(now.segments) > 1 or any(len(one.dead) for one in now.segments):
                self._merge(0)
        self.refresh()
