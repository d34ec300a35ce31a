"""The index: every modality of every sample findable from any other. Embeddings in, hits out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.binder.binder import Binder
from centrobind.binder.embedding import embedded_chunks
from centrobind.data import Codes, Column, Samples, Strings
from centrobind.data.store import CATEGORIES
from centrobind.errors import DataError, StoreError
from centrobind.files import named
from centrobind.index.engine import CAPTION, LONGEST_CAPTION, About, Engine
from centrobind.index.exact import Exact
from centrobind.index.lance import Lance, exists
from centrobind.index.segments import MANIFEST
from centrobind.progress import Watch, silent
from centrobind.types import Embeddings, unit

ENGINES: dict[str, type[Engine]] = {"exact": Exact, "lancedb": Lance}
MOST_PAIRS = 10_000
NOT_UNIT = 1e-2  # further from length 1 than rounding to 16 bits would bring a vector
ABOUT = CATEGORIES  # label, split, group: what a search can be narrowed by


@dataclass(frozen=True)
class Hits:
    """What was found for each of Q queries, best first: at most k each, fewer where there are fewer."""

    ids: list[list[str]]
    scores: list[list[float]]  # cosines
    rows: list[list[int]]  # into Index.ids

    def __len__(self) -> int:
        return len(self.ids)


class Index:
    """Embeddings on disk, searchable in every modality; made by `build_index`, opened by `open_index`.

    It shows what was there when it was opened; `refresh` looks again. Any number of processes and threads may read
    while one writes. Rows number the samples in the order of `ids`, until the next write or refresh.
    """

    def __init__(self, engine: Engine, binder: Binder | None = None):
        self._engine = engine
        self.binder = binder

    def __repr__(self) -> str:
        return f"Index({len(self)} samples x {self.dim}: {', '.join(self.modalities)}; {self.engine}, {self.path})"

    def __len__(self) -> int:
        return len(self._engine)

    @property
    def path(self) -> str | Path:
        return self._engine.path

    @property
    def engine(self) -> str:
        """exact or lancedb."""
        return self._engine.name

    @property
    def modalities(self) -> tuple[str, ...]:
        return self._engine.about.modalities

    @property
    def dim(self) -> int:
        return self._engine.about.dim

    @property
    def fingerprint(self) -> str:
        """The binder's whose embeddings these are."""
        return self._engine.about.fingerprint

    @property
    def ids(self) -> list[str]:
        """One string per sample; row i is ids[i]."""
        return self._engine.ids()

    def category(self, what: str) -> Codes | None:
        """label, split or group of every sample, None if none has one; DataError for another name."""
        if what not in ABOUT:
            raise DataError(f"expected one of {list(ABOUT)}, got {what!r}")
        return self._engine.codes(what)

    def captions(self, rows: Sequence[int]) -> list[str | None]:
        """What the samples of these rows are in words: the first text they had when they were indexed, else None."""
        return self._engine.captions(rows)

    def search(
        self,
        query: Tensor | np.ndarray,
        want: str,
        k: int = 5,
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> Hits:
        """The k samples whose modality `want` is nearest to each query (D,) or (Q, D), by cosine.

        `where` narrows it to categories: {"label": "chess"} or {"split": ["train", "test"]}. Ties go to the lower
        row. Raises DataError for an unknown modality or category, a query of another size, zero or not finite.
        """
        self._check_modality(want)
        queries = torch.as_tensor(query).detach().float()
        if queries.ndim not in (1, 2) or queries.shape[-1] != self.dim:
            raise DataError(f"query: expected shape ({self.dim},) or (Q, {self.dim}), got {tuple(queries.shape)}")
        queries = unit(queries.reshape(-1, self.dim))
        if len(bad := torch.nonzero(~((queries.norm(dim=1) - 1).abs() < 1e-3)).flatten()):
            raise DataError(f"query: expected vectors of unit length, got zero, NaN or inf in rows {bad[:5].tolist()}")
        if k < 1:
            raise DataError(f"k: expected at least 1, got {k}")
        scores, rows, ids = self._engine.nearest(queries, want, k, self._checked(where or {}))
        return Hits(ids, scores, rows)

    def vectors(self, modality: str, ids: Sequence[str]) -> Tensor:
        """(n, D) embeddings of some samples; DataError if one of them is not there or lacks the modality."""
        self._check_modality(modality)
        found = torch.from_numpy(self._engine.vectors(modality, self._rows(ids)))
        if lacking := torch.nonzero(found.isnan().any(1)).flatten().tolist():
            some = [ids[row] for row in lacking[:5]]
            raise DataError(f"{len(lacking)} of these samples have no {modality!r}, first {some}")
        return found

    def embeddings(self, ids: Sequence[str] | None = None) -> Embeddings:
        """All embeddings of some samples, or of all: (M, N, D) in memory."""
        rows = np.arange(len(self)) if ids is None else self._rows(ids)
        z = torch.stack([torch.from_numpy(self._engine.vectors(name, rows)) for name in self.modalities])
        present = ~z.isnan().any(2)
        z = torch.where(present[..., None], z, 0)
        return Embeddings(z, present, self.modalities, np.array(self.ids if ids is None else list(ids)))

    def weights(self, want: str) -> dict[str, float]:
        """What a value of each modality is worth when `want` is looked for: c / (1 - c^2).

        c is the mean cosine between the two over samples that have both: of the split `valid` if there is one, at most
        10,000. If what a modality says of `want` is c times the truth and the rest noise of its own, this is the
        likeliest centre. `want` itself counts as much as the best of the others.
        """
        self._check_modality(want)
        split = self._engine.codes("split")
        valid = None if split is None else split.called("valid")
        rows = np.arange(len(self)) if split is None or valid is None else split.where(valid)
        rows = rows[:: -(-len(rows) // MOST_PAIRS) or 1]
        wanted = self._engine.vectors(want, rows)
        found = {}
        for name in self.modalities:
            cosines = (self._engine.vectors(name, rows) * wanted).sum(1)
            cosines = cosines[np.isfinite(cosines)]
            c = float(cosines.mean().clip(0.01, 0.99)) if len(cosines) else 0.01
            found[name] = c / (1 - c * c)
        return found | {want: max([found[name] for name in found if name != want], default=1.0)}

    def add(
        self,
        data: Samples | Embeddings,
        *,
        label: Sequence[Any] | None = None,
        split: Sequence[Any] | None = None,
        group: Sequence[Any] | None = None,
        watch: Watch = silent,
    ) -> None:
        """Add samples, all of them or, if anything goes wrong, none.

        Embeddings (of this index's binder: that is yours to see to) bring their ids along, and label, split and group
        here; samples have them. Raises DataError for an id that is there already.
        """
        self._engine.write(self._chunks(data, label, split, group, watch), replacing=False)

    def replace(
        self,
        data: Samples | Embeddings,
        *,
        label: Sequence[Any] | None = None,
        split: Sequence[Any] | None = None,
        group: Sequence[Any] | None = None,
        watch: Watch = silent,
    ) -> None:
        """As `add`, but samples with ids that are there take their place, in all modalities, at one moment."""
        self._engine.write(self._chunks(data, label, split, group, watch), replacing=True)

    def delete(self, ids: Sequence[str]) -> None:
        """Take samples out; DataError if one of the ids is not there, and then none is taken out."""
        self._engine.delete(_list_of_ids(ids))

    def refresh(self) -> bool:
        """See what others wrote since; False if that is nothing."""
        return self._engine.refresh()

    def compact(self) -> None:
        """Give back the room of what was deleted or replaced; writes do it by themselves when much is."""
        self._engine.compact()

    def _check_modality(self, name: str) -> None:
        if name not in self.modalities:
            raise DataError(f"no modality {name!r} in this index, expected one of {list(self.modalities)}")

    def _rows(self, ids: Sequence[str]) -> np.ndarray:
        names = _list_of_ids(ids)
        rows = self._engine.rows(names)
        if (rows < 0).any():
            missing = [name for name, row in zip(names, rows) if row < 0]
            raise DataError(f"{len(missing)} of these ids are not in the index, first {missing[:5]}")
        return rows

    def _checked(self, where: Mapping[str, str | Sequence[str]]) -> dict[str, list[str]]:
        checked = {}
        for what, wanted in where.items():
            if what not in ABOUT:
                raise DataError(f"where: expected some of {list(ABOUT)}, got {what!r}")
            names = self._engine.names(what)
            checked[what] = [wanted] if isinstance(wanted, str) else [str(one) for one in wanted]
            if unknown := [one for one in checked[what] if one not in names]:
                raise DataError(f"where {what}: expected some of {names[:20]}, got {unknown}")
        return checked

    def _chunks(
        self, data: Samples | Embeddings, label: Any, split: Any, group: Any, watch: Watch
    ) -> Iterable[Samples]:
        if isinstance(data, Embeddings):
            return [self._fits(as_samples(data, label=label, split=split, group=group))]
        if label is not None or split is not None or group is not None:
            raise DataError("label=, split= and group= go with embeddings; samples have their own")
        if self.binder is None:
            raise DataError("to add samples, open the index with its binder: open_index(path, binder)")
        return _with_captions(self.binder, data, watch)

    def _fits(self, samples: Samples) -> Samples:
        for name, column in samples.columns.items():
            self._check_modality(name)
            if column.present.any() and column.shape != (self.dim,):
                raise DataError(f"{name!r}: expected embeddings of {self.dim} dimensions, got {column.shape[0]}")
            lengths = np.linalg.norm(column.take(np.arange(len(samples))).astype(np.float64), axis=1)
            if len(bad := np.flatnonzero(~(np.abs(lengths - 1) < NOT_UNIT))):
                some = [samples.ids[np.flatnonzero(column.present)[bad[:5]]], lengths[bad[:5]].round(4).tolist()]
                raise DataError(
                    f"{name!r}: expected vectors of unit length, as the binder makes them, got {len(bad)} others; ids "
                    f"and lengths of the first: {some}. Embeddings.of brings rows to unit length"
                )
        return samples


def build_index(
    binder: Binder,
    samples: Samples,
    path: str | Path,
    *,
    engine: str = "exact",
    replace: bool = False,
    watch: Watch = silent,
) -> Index:
    """Embed all samples in all modalities they have, and write an index of them with ids, labels, splits and groups.

    `engine`: "exact" looks at every vector, in one folder; "lancedb" (an extra) approximates, and `path` may also be a
    place in an object store, "s3://bucket/name". Raises StoreError if there is an index already (unless `replace`:
    then its readers see it whole until they refresh), DataError if no modality is the binder's.
    """
    if engine not in ENGINES:
        raise DataError(f"engine: expected one of {list(ENGINES)}, got {engine!r}")
    there = engine_at(path)
    if there is not None and not (replace and there is ENGINES[engine]):
        raise StoreError(
            f"{path} is an index already (engine {there.name}); choose another place, or say replace (--force) to "
            "overwrite one of the same engine"
        )
    about = About(binder.fingerprint, binder.dim, binder.modalities)
    ENGINES[engine].create(path, about, _with_captions(binder, samples, watch))
    return open_index(path, binder)


def _with_captions(binder: Binder, samples: Samples, watch: Watch) -> Iterator[Samples]:
    """The embeddings of samples, chunk by chunk, and beside them what each of them is in words."""
    texts = next((name for name, column in samples.columns.items() if column.kind == "text"), None)
    done = 0
    for chunk in embedded_chunks(binder, samples, watch):
        if texts is not None and CAPTION not in chunk.columns:
            source = samples.columns[texts].present[done : done + len(chunk)]
            words = samples.columns[texts].take(np.arange(done, done + len(chunk)))
            rows = np.where(source, np.cumsum(source) - 1, -1).astype(np.int32)
            column = Column(Strings.of([str(text)[:LONGEST_CAPTION] for text in words]), rows, "text")
            chunk = replace(chunk, columns={**chunk.columns, CAPTION: column})
        done += len(chunk)
        yield chunk


def _list_of_ids(ids: Sequence[Any] | np.ndarray) -> list[str]:
    """DataError for one text, which would be taken for the ids of its letters, and for what has no order."""
    if isinstance(ids, str | bytes | Mapping | Set):
        raise DataError(f"ids: expected a list of ids, got {type(ids).__name__} {str(ids)[:40]!r}; write [id] for one")
    return [str(name) for name in ids]


def engine_at(path: str | Path) -> type[Engine] | None:
    """The engine whose index lies in a place, None if none does."""
    if "://" in str(path):
        return Lance if exists(path) else None
    return Exact if (named(path, StoreError) / MANIFEST).exists() else Lance if exists(path) else None


def open_index(path: str | Path, binder: Binder | None = None, *, device: str | torch.device | None = None) -> Index:
    """Open an index; vectors stay on disk. `device`: where the exact engine compares, default a GPU if there is one.

    Raises StoreError if there is none, or if it holds another binder's embeddings.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    index = Index((engine_at(path) or Exact)(path, device), binder)
    if binder is not None and index.fingerprint != binder.fingerprint:
        raise StoreError(
            f"{path} holds embeddings of binder {index.fingerprint}, this binder is {binder.fingerprint}; they do not "
            "share a space. Open it with the binder it was built with, or build an index with this one"
        )
    return index


def as_samples(embeddings: Embeddings, **about: Sequence[Any] | None) -> Samples:
    """Embeddings as samples with a vector per modality; absent rows stay absent. DataError without ids."""
    if embeddings.ids is None:
        raise DataError("embeddings in an index need ids; give Embeddings ids, one string per sample")
    arrays = {name: embeddings[name].detach().float().cpu().numpy() for name in embeddings.modalities}
    present = {name: here.cpu().numpy() for name, here in zip(embeddings.modalities, embeddings.present)}
    return Samples.of(arrays, present=present, ids=embeddings.ids, **about)
