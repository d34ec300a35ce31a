"""What is served: a binder, the samples it embedded, the index they are found in and the map they are seen on."""

from __future__ import annotations

import math
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
from centrobind.binder.embedding import embed_views
from centrobind.binder.inputs import Words
from centrobind.data import Samples
from centrobind.data.decoding import endings
from centrobind.errors import DataError
from centrobind.evaluation.diagnose import examine
from centrobind.evaluation.findings import Finding
from centrobind.evaluation.metrics import geometry, retrieval
from centrobind.index import Index
from centrobind.index.asking import Given, combined, embedded, unknown_words
from centrobind.objectives.base import Objective
from centrobind.report.atlas import Atlas
from centrobind.serve.drawing import Drawing
from centrobind.serve.values import File, as_file, shows
from centrobind.types import unit

MOST_MEASURED = 4000  # samples that the report looks at
MOST_WORDS = 20  # unknown ones that are named
CAPTION = 200  # letters
EXAMPLES = 4
CANDIDATES = 200  # of each modality, for the samples that are nearest in all of them together


@dataclass(frozen=True)
class Part:
    """A piece of a query: a value of some modality, a text for any, or a sample, in one modality or all it has."""

    modality: str | None = None
    value: Any = None
    id: str | None = None


@dataclass
class Gallery:
    """Everything that a page about a space can show. Read only, and any number of threads may ask at once."""

    binder: Binder
    samples: Samples
    index: Index
    drawing: Drawing
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

    @property
    def atlas(self) -> Atlas:
        """The map; waits until it is drawn."""
        return self.drawing.atlas()

    @cached_property
    def texts(self) -> list[str]:
        """The modalities that say in words what a sample is."""
        return [name for name in self.modalities if self.samples.columns[name].kind == "text"]

    def about(self) -> dict[str, Any]:
        """What there is, in numbers and names; what a program asks first."""
        modalities = [
            {
                "name": name,
                "shows": shows(column),
                "kind": column.kind,
                "shape": list(column.shape),
                "present": int(column.present.sum()),
                "files": list(endings(column.kind, column.reading)),
            }
            for name, column in self.samples.columns.items()
        ]
        ready = self.drawing.ready
        kept = self.atlas.share_kept if ready else math.nan
        return {
            "name": self.name,
            "fingerprint": self.binder.fingerprint,
            "dim": self.binder.dim,
            "samples": len(self.samples),
            "modalities": modalities,
            "labels": [] if self.samples.label is None else list(self.samples.label.names),
            "splits": [] if self.samples.split is None else list(self.samples.split.names),
            "map": {
                "points": len(self.atlas) if ready else 0,
                "share_kept": None if math.isnan(kept) else round(kept, 4),
            },
            "page": self.page is not None,
            "examples": self.examples,
        }

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Some samples to begin with, evenly spread, if possible with a short text that training knows."""
        rows = np.unique(np.linspace(0, len(self.samples) - 1, 50 * EXAMPLES).astype(np.int64))
        cards = self._cards(rows.tolist())
        short = [card for card in cards if card["caption"] != card["label"] and len(card["caption"] or "") <= 40]
        known = [card for card in short if self._known(card["caption"])] if self.texts else []
        picked = known or short or cards
        return [picked[place] for place in np.unique(np.linspace(0, len(picked) - 1, EXAMPLES).astype(np.int64))]

    def _known(self, text: str) -> bool:
        """Whether training saw each of its words, in some modality of texts."""
        return any(not self._unknown_to(name, text) for name in self.texts)

    def points(self) -> dict[str, Any]:
        """The map, column by column; `sample` counts into `ids`. Without points while it is drawn."""
        if not self.drawing.ready:
            columns = ("ids", "label", "split", "x", "y", "sample", "modality", "kept")
            state = {"ready": False, "done": round(self.drawing.done, 3), "fault": self.drawing.fault}
            return state | {name: [] for name in columns}
        rows, sample = np.unique(self.atlas.row, return_inverse=True)
        categories = {"label": self.samples.label, "split": self.samples.split}
        return {
            "ready": True,
            "done": 1.0,
            "fault": None,
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
        """A sample: what it is called, what it has, and its texts; DataError for an unknown id."""
        row = self.row(one)
        has = [name for name, column in self.samples.columns.items() if column.present[row]]
        texts = {name: text for name in self.texts if (text := self._texts(name, [row])[0]) is not None}
        return {**self._cards([row])[0], "modalities": has, "texts": texts}

    def _cards(self, rows: Sequence[int], text: str | None = None) -> list[dict[str, Any]]:
        """Id, label, split and caption of samples, all read at once.

        The caption is in the modality `text` where a sample has it, else in the first text that it has, else its label.
        """
        picked = np.asarray(rows, np.int64)
        labels, splits = (self._categories(what, picked) for what in ("label", "split"))
        captions: list[str | None] = [None] * len(picked)
        for name in dict.fromkeys([text, *self.texts] if text in self.texts else self.texts):
            lacking = [place for place, caption in enumerate(captions) if caption is None]
            for place, caption in zip(lacking, self._texts(name, picked[lacking])):
                captions[place] = caption
        cards = zip(self.samples.ids[picked], labels, splits, captions)
        return [
            {"id": name, "label": label, "split": split, "caption": label if caption is None else caption}
            for name, label, split, caption in cards
        ]

    def _texts(self, modality: str, rows: Sequence[int] | np.ndarray) -> list[str | None]:
        """The beginnings of texts, None where there is none."""
        column = self.samples.columns[modality]
        found: list[str | None] = [None] * len(rows)
        for place, text in zip(np.flatnonzero(column.present[rows]), column.take(np.asarray(rows, np.int64))):
            found[place] = str(text)[:CAPTION]
        return found

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
        if part.id is None and part.modality is None:
            return self._any_text(part.value)
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

    def _any_text(self, value: Any) -> Given:
        """A text in every modality of texts that knows one of its words; DataError if none does."""
        given, reasons = [], []
        for name in self.texts:
            try:
                given += embedded(self.binder, {name: [value]})
            except DataError as error:
                reasons.append(str(error))
        if not given:
            raise DataError("; ".join(reasons) or "no modality here is text: ask with a file, numbers or an id")
        return given

    def embed(self, queries: Sequence[tuple[Sequence[Part], Sequence[Part]]]) -> Tensor:
        """(Q, D) unit vectors of queries, each given as what is wanted and what is not."""
        return torch.stack([self.query(self.given(wanted), self.given(unwanted)) for wanted, unwanted in queries])

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
            modality: self._hits([pair for pair in pairs if (pair[0], modality) not in own][:k], modality)
            for modality, pairs in wide.items()
        }
        asked_in = next((part.modality for part in parts if part.modality in self.texts), None)
        nearest = self._together(vector, wide, {part.id for part in parts}, k)
        together = self._hits(nearest, next((name for name in names if name in self.texts), asked_in))
        return {"hits": hits, "samples": together, "unknown": self._unknown_words([*parts, *minus])}

    def _unknown_words(self, parts: Sequence[Part]) -> list[str]:
        unknown: list[str] = []
        for part in parts:
            if part.id is None and part.modality is not None:
                unknown += unknown_words(self.binder, part.modality, part.value)
            elif part.id is None:  # known to one modality of texts is known
                each = [self._unknown_to(name, part.value) for name in self.texts]
                unknown += [word for word in each[0] if all(word in others for others in each)]
        return list(dict.fromkeys(unknown))[:MOST_WORDS]

    def _unknown_to(self, modality: str, text: str) -> list[str]:
        inputs = self.binder.towers[modality].inputs
        return inputs.unknown(text) if isinstance(inputs, Words) else []

    def _hits(self, pairs: Sequence[tuple[str, float]], modality: str | None) -> list[dict[str, Any]]:
        """Ids and their scores as cards, with captions in a modality if it is one of texts."""
        cards = self._cards([self.row_of[name] for name, _ in pairs], modality)
        return [{**card, "score": round(score, 5)} for card, (_, score) in zip(cards, pairs)]

    def _together(
        self, vector: Tensor, wide: Mapping[str, Sequence[tuple[str, float]]], asked: Set[str | None], k: int
    ) -> list[tuple[str, float]]:
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
        return [(ids[place], float(scores[place])) for place in best]

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
        return said | {"findings": _grouped(found.findings)}


def _grouped(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings of one kind together, faults before warnings, each kind with its advice once."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity != "fault"):
        title = {"severity": finding.severity, "name": finding.name, "advice": finding.advice, "sentences": []}
        group = groups.setdefault((finding.severity, finding.name), title)
        group["sentences"].append(f"{finding.sentence} (normal: {finding.normal})")
    return list(groups.values())
