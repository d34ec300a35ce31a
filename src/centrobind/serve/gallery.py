"""What is served: a binder, the samples it embedded, the index they are found in and the map they are seen on."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.binder.binder import Binder
from centrobind.binder.checkpoint import load
from centrobind.binder.embedding import embed_views
from centrobind.data import Samples
from centrobind.errors import CheckpointError, ConfigError, DataError, StoreError
from centrobind.evaluation.diagnose import examine
from centrobind.evaluation.metrics import geometry, retrieval
from centrobind.index import Index, build_index, open_index
from centrobind.index.asking import Given, combined, embedded, unknown_words
from centrobind.objectives.base import Objective
from centrobind.progress import Watch, silent
from centrobind.report.atlas import STEPS, Atlas, cached_atlas
from centrobind.serve.values import File, as_file, shows
from centrobind.training.config import load_config
from centrobind.training.fit import open_data, run_objective
from centrobind.types import unit

MOST_MEASURED = 4000  # samples that the report looks at
MOST_WORDS = 20  # unknown ones that are named
CAPTION = 200  # letters
CANDIDATES = 200  # of each modality, for the samples that are nearest in all of them together


@dataclass(frozen=True)
class Part:
    """A piece of a query: a value of some modality, or a sample that is there, in one modality or all it has."""

    modality: str | None = None
    value: Any = None
    id: str | None = None


@dataclass
class Gallery:
    """Everything that a page about a space can show. Read only, and any number of threads may ask at once."""

    binder: Binder
    samples: Samples
    index: Index
    atlas: Atlas
    name: str = ""
    trained_with: str | None = None
    objective: Objective | None = None
    page: Path | None = None  # the run's own report
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _report: dict[str, Any] | None = field(default=None, repr=False)
    _worth: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.samples.modalities

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {one: row for row, one in enumerate(self.samples.ids[:])}

    @cached_property
    def captions_from(self) -> str | None:
        """The modality that says in words what a sample is."""
        return next((name for name in self.modalities if self.samples.columns[name].kind == "text"), None)

    def about(self) -> dict[str, Any]:
        """What there is, in numbers and names; what a program asks first."""
        modalities = [
            {
                "name": name,
                "shows": shows(column),
                "kind": column.kind,
                "shape": list(column.shape),
                "present": int(column.present.sum()),
            }
            for name, column in self.samples.columns.items()
        ]
        kept = self.atlas.share_kept
        return {
            "name": self.name,
            "fingerprint": self.binder.fingerprint,
            "dim": self.binder.dim,
            "samples": len(self.samples),
            "modalities": modalities,
            "labels": [] if self.samples.label is None else list(self.samples.label.names),
            "splits": [] if self.samples.split is None else list(self.samples.split.names),
            "map": {"points": len(self.atlas), "share_kept": None if math.isnan(kept) else round(kept, 4)},
            "page": self.page is not None,
        }

    def points(self) -> dict[str, Any]:
        """The map, column by column; `sample` counts into `ids`."""
        rows, sample = np.unique(self.atlas.row, return_inverse=True)
        categories = {"label": self.samples.label, "split": self.samples.split}
        return {
            "ids": self.samples.ids[rows],
            **{name: [] if codes is None else codes.codes[rows].tolist() for name, codes in categories.items()},
            "x": np.round(self.atlas.xy[:, 0].astype(np.float64), 5).tolist(),
            "y": np.round(self.atlas.xy[:, 1].astype(np.float64), 5).tolist(),
            "sample": sample.tolist(),
            "modality": self.atlas.modality.tolist(),
            "kept": self.atlas.kept.tolist(),
        }

    def row(self, one: str) -> int:
        """DataError for an id that is not here."""
        if one not in self.row_of:
            raise DataError(f"no sample {one[:80]!r} here")
        return self.row_of[one]

    def describe(self, one: str) -> dict[str, Any]:
        """A sample: what it is called and what it has; DataError for an unknown id."""
        row = self.row(one)
        has = [name for name, column in self.samples.columns.items() if column.present[row]]
        return {**self._cards([row])[0], "split": self._categories("split", [row])[0], "modalities": has}

    def _cards(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Id, label and caption of samples, all read at once."""
        picked = np.asarray(rows, np.int64)
        labels = self._categories("label", picked)
        captions: list[str | None] = list(labels)
        if self.captions_from is not None:
            column = self.samples.columns[self.captions_from]
            for place, text in zip(np.flatnonzero(column.present[picked]), column.take(picked)):
                captions[place] = str(text)[:CAPTION]
        cards = zip(self.samples.ids[picked], labels, captions)
        return [{"id": name, "label": label, "caption": caption} for name, label, caption in cards]

    def _categories(self, what: str, rows: Sequence[int] | np.ndarray) -> list[str | None]:
        codes = getattr(self.samples, what)
        if codes is None:
            return [None] * len(rows)
        return [codes.names[code] if code >= 0 else None for code in codes.codes[rows].tolist()]

    def value(self, modality: str, one: str, *, sketch: bool = False) -> File:
        """A value as a file, see `as_file`; DataError if there is none."""
        column = self.column(modality)
        row = self.row(one)
        if not column.present[row]:
            raise DataError(f"sample {one[:80]!r} has no {modality}")
        return as_file(column, row, sketch=sketch)

    def column(self, modality: Any) -> Any:
        """DataError for a modality that is not here."""
        if modality not in self.samples.columns:
            raise DataError(f"no modality {modality!r} here, expected one of {list(self.modalities)}")
        return self.samples.columns[modality]

    def given(self, parts: Sequence[Part]) -> Given:
        """What parts say, by modality; DataError if one does not say what to look for."""
        return [found for part in parts for found in self._given(part)]

    def _given(self, part: Part) -> Given:
        if part.id is None:
            return embedded(self.binder, {part.modality: [part.value]})
        row = self.row(part.id)
        names = [name for name, column in self.samples.columns.items() if column.present[row]]
        if part.modality is not None:
            self.column(part.modality)
            names = [name for name in names if name == part.modality]
        if not names:
            raise DataError(f"sample {part.id[:80]!r} has no {part.modality}")
        return [(name, self.index.vectors(name, [part.id])) for name in names]

    def query(self, wanted: Given, unwanted: Given, want: str | None = None) -> Tensor:
        """(D,) unit: the centroid of what is given, without what is not wanted; for looking in one modality with the
        weights of `Index.weights`. DataError as in `centrobind.query`."""
        if not wanted:
            raise DataError("expected something to look for: a text, a file, numbers or an id")
        return combined(wanted, unwanted, None if want is None else self._weights(want))

    def _weights(self, want: str) -> dict[str, float]:
        if want not in self._worth:
            self._worth[want] = self.index.weights(want)
        return self._worth[want]

    def search(
        self,
        parts: Sequence[Part],
        minus: Sequence[Part] = (),
        *,
        want: Sequence[str] | None = None,
        k: int = 12,
        where: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`hits`, the k nearest in each wanted modality, `samples`, the k nearest in all of these together, and the
        words that are `unknown`.

        What was asked with is not found again in its own modality.
        """
        wanted, unwanted = self.given(parts), self.given(minus)
        vector = self.query(wanted, unwanted)
        own = {(part.id, part.modality) for part in parts if part.id is not None}
        names = list(self.modalities if want is None else want)
        wide = {}
        for modality in names:
            self.column(modality)
            towards = self.query(wanted, unwanted, modality)
            found = self.index.search(towards, want=modality, k=max(k + len(own), CANDIDATES), where=where)
            wide[modality] = [pair for pair in zip(found.ids[0], found.scores[0]) if pair[0] in self.row_of]
        hits = {
            modality: self._hits([pair for pair in pairs if (pair[0], modality) not in own][:k])
            for modality, pairs in wide.items()
        }
        together = self._together(vector, wide, {part.id for part in parts}, k)
        return {"hits": hits, "samples": together, "unknown": self._unknown_words([*parts, *minus])}

    def _unknown_words(self, parts: Sequence[Part]) -> list[str]:
        asked = [(part.modality, part.value) for part in parts if part.modality is not None and part.id is None]
        unknown = [word for modality, value in asked for word in unknown_words(self.binder, modality, value)]
        return list(dict.fromkeys(unknown))[:MOST_WORDS]

    def _hits(self, pairs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
        """Ids and their scores as cards."""
        cards = self._cards([self.row_of[name] for name, _ in pairs])
        return [{**card, "score": round(score, 5)} for card, (_, score) in zip(cards, pairs)]

    def _together(
        self, vector: Tensor, wide: Mapping[str, Sequence[tuple[str, float]]], asked: Set[str | None], k: int
    ) -> list[dict[str, Any]]:
        """The samples whose centroid over the wanted modalities is nearest, of those near in at least one of them."""
        ids = list(dict.fromkeys(one for pairs in wide.values() for one, _ in pairs if one not in asked))
        if not ids:
            return []
        rows = np.array([self.row_of[one] for one in ids])
        total = torch.zeros(len(ids), len(vector))
        for modality in wide:
            here = np.flatnonzero(self.samples.columns[modality].present[rows])
            if len(here):
                total[here] += self.index.vectors(modality, [ids[place] for place in here])
        scores = unit(total) @ vector
        best = scores.sort(descending=True, stable=True).indices[:k].tolist()
        return self._hits([(ids[place], float(scores[place])) for place in best])

    def report(self) -> dict[str, Any]:
        """Retrieval in every direction, geometry and findings, on held-out samples where there are any.

        Computed when first asked for, which takes seconds, and once.
        """
        with self._lock:
            if self._report is None:
                self._report = self._measure()
            return self._report

    def _measure(self) -> dict[str, Any]:
        split = "test" if self.samples.has("test") else None
        part = self.samples if split is None else self.samples.part(split)
        if len(part) > MOST_MEASURED:
            part = part.take(np.linspace(0, len(part) - 1, MOST_MEASURED).astype(np.int64))
        said: dict[str, Any] = {"samples": len(part), "split": split, "objective": None, "findings": []}
        if len(self.modalities) < 2:
            return said | {"matrix": {}, "geometry": {}}
        z = self.binder.embed(part)
        matrix: dict[str, dict[str, dict[str, float]]] = {}
        for (query, target), row in retrieval(z).pairs.items():
            matrix.setdefault(query, {})[target] = row.flat()
        said |= {"matrix": matrix, "geometry": geometry(z).flat()}
        if self.objective is not None:
            temperature = float(self.objective.temperature())
            said["objective"] = {"name": self.trained_with, "temperature": temperature}
        found = examine(z, embed_views(self.binder, part), objective=self.objective, resamples=200)
        return said | {"findings": [str(finding) for finding in found.findings]}


def open_gallery(
    run: str | Path,
    store: str | Path,
    *,
    split: str | None = None,
    index: str | Path | None = None,
    cache: str | Path | None = None,
    watch: Watch = silent,
) -> Gallery:
    """Open a run and its data to be looked at; index and map are made when there are none yet, else read again.

    Both lie in `cache`, default the folder `serve` beside the binder, under a name that changes with the binder and the
    store. `index` is one that was made before. Raises CentrobindErrors for whatever cannot be opened.
    """
    run = Path(run)
    binder = load(run)
    samples = open_data(store)
    samples = samples if split is None else samples.part(split)
    samples = samples.only([name for name in binder.modalities if name in samples.modalities])
    if not samples.columns:
        raise DataError(f"{store}: none of its modalities is one of the binder's, {list(binder.modalities)}")
    folder = Path(cache) if cache is not None else (run if run.is_dir() else run.parent) / "serve"
    folder = folder / _key(binder, store, samples, split)
    watch(0, title="embedding")
    opened = open_index(index, binder) if index is not None else _own_index(binder, samples, folder / "index")
    space = opened.embeddings().only(samples.modalities)
    rows = {one: row for row, one in enumerate(samples.ids[:])}
    here = np.array([rows.get(one, -1) for one in space.ids])
    if (here < 0).all():
        raise DataError(f"{index}: none of its {len(here)} ids is in {store}; it was made of other data")
    space, samples = space.take(here >= 0), samples.take(here[here >= 0])
    atlas = cached_atlas(folder, space, lambda step: watch(step, title="drawing the map"))
    watch(STEPS, title="ready")
    page = run / "report.html"
    trained_with, objective = _objective(run, binder)
    return Gallery(
        binder,
        samples,
        opened,
        atlas,
        name=f"{run.name} · {Path(store).name}{'' if split is None else ' · ' + split}",
        trained_with=trained_with,
        objective=objective,
        page=page if page.is_file() else None,
    )


def _key(binder: Binder, store: str | Path, samples: Samples, split: str | None) -> str:
    meta = Path(store) / "meta.json"  # it holds the checksums of all files
    digest = hashlib.sha256(meta.read_bytes() if meta.is_file() else f"{store} {len(samples)}".encode())
    digest.update(f"{binder.fingerprint} {split}".encode())
    return digest.hexdigest()[:16]


def _own_index(binder: Binder, samples: Samples, path: Path) -> Index:
    if (path / "index.json").is_file():
        try:
            return open_index(path, binder)
        except StoreError:
            shutil.rmtree(path)  # damaged, and it is ours: made again
    return build_index(binder, samples, path, replace=True)


def _objective(run: Path, binder: Binder) -> tuple[str | None, Objective | None]:
    """What the run was trained with and what that is called, as far as it says so.

    A demo's folder is no run of its own: its binder comes from the run that it chose.
    """
    folder = run
    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        chosen = next(row for row in results["rows"] if row["label"] == results["chosen"])
        folder = run / Path(chosen["config"]["out"]).name
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        pass
    try:
        objective = run_objective(folder, binder)
        return (None if objective is None else load_config(folder / "config.yaml").objective.name), objective
    except (ConfigError, CheckpointError):
        return None, None  # a page without it is better than none
