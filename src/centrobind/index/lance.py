"""The LanceDB engine: one table of an embedded database, on a local disk or in an object store.

One row per sample, one nullable vector column per modality with an index of its own, so that a write to all modalities
is one commit. (A table per modality would need two of them to be in step, which LanceDB does not promise.) A reader
stays at the version it opened. Below `LEAST_FOR_INDEX` vectors nothing is approximate.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from centrobind.data import Codes, Column, Samples
from centrobind.data.store import CATEGORIES
from centrobind.errors import DataError, StoreError
from centrobind.extras import extra
from centrobind.index.engine import CAPTION, About
from centrobind.index.segments import locked

TABLE, FORMAT, VERSION = "samples", "centrobind-index", 1
LEAST_FOR_INDEX = 20_000  # vectors; below, comparing with all of them takes milliseconds
PROBES = 24  # of the lists are looked into: a recall@10 of .98 at a million vectors, see docs/search.md
QUERIES = 100  # at a time: LanceDB is slower with a thousand
OPTIMIZE_EVERY = 32  # writes: folds what they added into the indices
KEPT = timedelta(hours=1)  # old versions, for the readers that are still at them, when an index is compacted


def connect(path: str | Path) -> Any:
    """Raises ExtraError where the package is not there."""
    return extra("lancedb", of="lancedb", to="an index in LanceDB").connect(str(path))


def exists(path: str | Path) -> bool:
    """Whether there is an index of this engine; a local folder is looked at without the package."""
    if "://" in str(path):
        return TABLE in connect(path).table_names()
    return (Path(path) / f"{TABLE}.lance").is_dir()


@dataclass(frozen=True)
class Version:
    """The table as one commit left it. Rows number the samples by their place in the table."""

    table: Any
    about: About

    @classmethod
    def latest(cls, path: str | Path) -> Version:
        """StoreError if there is none, or it was not made by centrobind."""
        try:
            table = connect(path).open_table(TABLE)
            table.checkout(table.version)
            said = json.loads((table.schema.metadata or {}).get(b"centrobind", b"{}"))
        except (ValueError, OSError, RuntimeError) as error:
            raise StoreError(
                f"{path} is not an index ({error}); make one with `centrobind index RUN STORE --out {path}`"
            ) from None
        if said.get("format") != FORMAT or said.get("version") != VERSION:
            raise StoreError(f"{path}: expected {FORMAT} {VERSION}, got {said}; build the index again")
        return cls(table, About(said["fingerprint"], said["dim"], tuple(said["modalities"])))

    @cached_property
    def count(self) -> int:
        return self.table.count_rows()

    @cached_property
    def places(self) -> tuple[np.ndarray, list[str]]:
        """LanceDB's row ids, ascending, and the samples' ids in that order."""
        found = self.table.search().select(["id"]).with_row_id(True).limit(max(self.count, 1)).to_arrow()
        places = found["_rowid"].to_numpy()
        order = np.argsort(places)
        return places[order], found["id"].take(order).to_pylist()

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {one: row for row, one in enumerate(self.places[1])}


class Lance:
    """The engine `lancedb`; see Engine for what its methods promise. Its neighbours are approximate."""

    name = "lancedb"

    def __init__(self, path: str | Path, device: Any = None):
        self.path = path
        self.now = Version.latest(path)

    @classmethod
    def create(cls, path: str | Path, about: About, chunks: Iterable[Samples]) -> None:
        """A new table in the place of an old one if there is one: readers of that see it whole."""
        import pyarrow as pa

        schema = _schema(about)
        with _one_writer(path):
            table = connect(path).create_table(
                TABLE,
                pa.RecordBatchReader.from_batches(schema, _batches(about, chunks, schema)),
                schema=schema,
                mode="overwrite" if exists(path) else "create",
                on_bad_vectors="null",  # its word for a missing one
            )
            _index(table, about)

    @property
    def about(self) -> About:
        return self.now.about

    def __len__(self) -> int:
        return self.now.count

    def ids(self) -> list[str]:
        return self.now.places[1]

    def codes(self, what: str) -> Codes | None:
        found = self.now.table.search().select([what]).with_row_id(True).limit(max(len(self), 1)).to_arrow()
        texts = found[what].combine_chunks().dictionary_encode()
        codes = texts.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        names = tuple(texts.dictionary.to_pylist())
        return Codes(codes[np.argsort(found["_rowid"].to_numpy())], names) if names else None

    def names(self, what: str) -> list[str]:
        codes = self.codes(what)
        return [] if codes is None else list(codes.names)

    def captions(self, rows: Sequence[int]) -> list[str | None]:
        now = self.now
        if "caption" not in now.table.schema.names or not len(rows):
            return [None] * len(rows)
        wanted = now.places[0][np.asarray(rows, np.int64)]
        taken = now.table.take_row_ids(np.unique(wanted).tolist()).select(["caption"]).with_row_id().to_arrow()
        texts = dict(zip(taken["_rowid"].to_pylist(), taken["caption"].to_pylist()))
        return [texts[place] for place in wanted.tolist()]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self.now.row_of.get(one, -1) for one in ids], np.int64)

    def vectors(self, modality: str, rows: np.ndarray) -> np.ndarray:
        now = self.now
        wanted = now.places[0][rows]
        found = np.full((len(rows), now.about.dim), np.nan, np.float32)
        if len(rows) == 0:
            return found
        unique, back = np.unique(wanted, return_inverse=True)
        taken = now.table.take_row_ids(unique.tolist()).select([f"x_{modality}"]).with_row_id().to_arrow()
        vectors = taken[f"x_{modality}"].combine_chunks()
        here = ~vectors.is_null().to_numpy(zero_copy_only=False)
        each = np.full((len(unique), now.about.dim), np.nan, np.float32)
        each[np.searchsorted(unique, taken["_rowid"].to_numpy()[here])] = (
            vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, now.about.dim)
        )
        return each[back]

    def nearest(
        self, queries: Tensor, modality: str, k: int, where: Mapping[str, Sequence[str]]
    ) -> tuple[list[list[float]], list[list[int]], list[list[str]]]:
        now = self.now  # one version to the end, whatever another thread refreshes meanwhile
        narrowed = " AND ".join(f"{what} IN ({_quoted(names)})" for what, names in where.items())
        scores, rows, ids = [], [], []
        for some in queries.cpu().split(QUERIES):
            search = now.table.search(list(some.numpy()), vector_column_name=f"x_{modality}")
            search = search.distance_type("dot").nprobes(PROBES).limit(k).with_row_id(True)
            found = (search.where(narrowed) if narrowed else search).select(["_distance"]).to_arrow()
            # One query comes without its number.
            query = found["query_index"].to_numpy() if len(some) > 1 else np.zeros(len(found), np.int32)
            score = (1 - found["_distance"].to_numpy()).astype(np.float32)
            row = np.searchsorted(now.places[0], found["_rowid"].to_numpy())
            order = np.lexsort((row, -score, query))
            ends = np.searchsorted(query[order], np.arange(len(some) + 1))
            for a, b in itertools.pairwise(ends):
                scores.append(score[order[a:b]].tolist())
                rows.append(row[order[a:b]].tolist())
                ids.append([now.places[1][one] for one in rows[-1]])
        return scores, rows, ids

    def refresh(self) -> bool:
        latest = Version.latest(self.path)
        if latest.table.version == self.now.table.version:
            return False
        self.now = latest
        return True

    def write(self, chunks: Iterable[Samples], *, replacing: bool) -> None:
        """The new rows are held in memory, because they must be one commit."""
        import pyarrow as pa

        with _one_writer(self.path):
            now = Version.latest(self.path)
            schema = _schema(now.about, captions="caption" in now.table.schema.names)
            new = pa.Table.from_batches(_batches(now.about, chunks, schema), schema)
            if not replacing and (twice := [one for one in new["id"].to_pylist() if one in now.row_of]):
                raise DataError(
                    f"{len(twice)} of these ids are in the index already, first {twice[:5]}; replace them instead"
                )
            now.table.checkout_latest()
            merge = now.table.merge_insert("id").when_not_matched_insert_all()
            (merge.when_matched_update_all() if replacing else merge).execute(new, on_bad_vectors="null")
            self._tidy(now)
        self.refresh()

    def delete(self, ids: Sequence[str]) -> None:
        with _one_writer(self.path):
            now = Version.latest(self.path)
            if missing := [one for one in ids if one not in now.row_of]:
                raise DataError(f"{len(missing)} of these ids are not in the index, first {missing[:5]}")
            now.table.checkout_latest()
            now.table.delete(f"id IN ({_quoted(ids)})")
            self._tidy(now)
        self.refresh()

    def _tidy(self, now: Version) -> None:
        if now.table.version % OPTIMIZE_EVERY == 0:
            now.table.optimize()
        _index(now.table, now.about)

    def compact(self) -> None:
        with _one_writer(self.path):
            table = connect(self.path).open_table(TABLE)
            table.optimize(cleanup_older_than=KEPT)
        self.refresh()


def _one_writer(path: str | Path) -> Any:
    """On a local disk a lock; in an object store LanceDB lets the first of two writes win, and the other one fails."""
    return nullcontext() if "://" in str(path) else locked(Path(path))


def _schema(about: About, *, captions: bool = True) -> Any:
    """`captions` is False for a table that was made before there were any."""
    import pyarrow as pa

    said = {"format": FORMAT, "version": VERSION, **about.as_dict()}
    vectors = [pa.field(f"x_{name}", pa.list_(pa.float32(), about.dim)) for name in about.modalities]
    texts = [pa.field(what, pa.string()) for what in (*CATEGORIES, *(["caption"] if captions else []))]
    return pa.schema(
        [pa.field("id", pa.string(), nullable=False), *texts, *vectors],
        metadata={"centrobind": json.dumps(said)},
    )


def _batches(about: About, chunks: Iterable[Samples], schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    for chunk in chunks:
        texts = [_texts(getattr(chunk, what), len(chunk)) for what in CATEGORIES]
        if "caption" in schema.names:
            texts.append(_captions(chunk))
        vectors = [_vectors(chunk.columns.get(name), len(chunk), about.dim) for name in about.modalities]
        yield pa.RecordBatch.from_arrays([pa.array(chunk.ids[:], pa.string()), *texts, *vectors], schema=schema)


def _texts(codes: Codes | None, count: int) -> Any:
    import pyarrow as pa

    if codes is None:
        return pa.nulls(count, pa.string())
    return pa.array(codes.names, pa.string()).take(pa.array(codes.codes, pa.int32(), mask=codes.codes < 0))


def _captions(chunk: Samples) -> Any:
    import pyarrow as pa

    column = chunk.columns.get(CAPTION)
    if column is None or column.kind != "text":
        return pa.nulls(len(chunk), pa.string())
    texts = iter(column.take(np.arange(len(chunk))))
    return pa.array([next(texts) if here else None for here in column.present], pa.string())


def _vectors(column: Column | None, count: int, dim: int) -> Any:
    """(count,) vectors, null where missing."""
    import pyarrow as pa

    present = np.zeros(count, bool) if column is None else column.present
    dense = np.zeros((count, dim), np.float32)
    if present.any():
        dense[present] = column.take(np.arange(count))
    return pa.FixedSizeListArray.from_arrays(pa.array(dense.reshape(-1)), dim, mask=pa.array(~present))


def _index(table: Any, about: About) -> None:
    """Index what is large enough and has none: vectors, and the columns that a search can be narrowed by."""
    from lancedb.index import Bitmap, BTree, IvfFlat

    if table.count_rows() < LEAST_FOR_INDEX:
        return
    there = {column for one in table.list_indices() for column in one.columns}
    for name in about.modalities:
        count = table.count_rows(f"x_{name} IS NOT NULL")
        if f"x_{name}" not in there and count >= LEAST_FOR_INDEX:
            table.create_index(
                f"x_{name}", config=IvfFlat(distance_type="dot", num_partitions=int(count**0.5), max_iterations=20)
            )
    for what in CATEGORIES:
        if what not in there and table.count_rows(f"{what} IS NOT NULL"):
            table.create_index(what, config=Bitmap())
    if "id" not in there:
        table.create_index("id", config=BTree())


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
