"""What is asked for, as one vector: the centroid of what is given, in any modalities, without what is not wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from centrobind.binder.binder import Binder
from centrobind.binder.inputs import Words
from centrobind.data import decode_npy
from centrobind.data.decoding import ENDINGS, decode_as, endings, ways
from centrobind.errors import DataError
from centrobind.index.opening import Index
from centrobind.types import unit

SAME = 1e-3  # a query that keeps less of its length than this is made of rounding, not of meaning


def query(
    binder: Binder,
    inputs: Mapping[str, Any],
    *,
    minus: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """One (D,) unit query from values in any subset of the binder's modalities: {"name": "knight", "image": pixels}.

    A tuple or list holds several values of one modality. The query is the centroid of all unit embeddings, by default
    all with the same weight; `Index.weights` says what each modality is worth. What `minus` holds is taken out of it,
    see `without`. Raises DataError.
    """
    given = embedded(binder, inputs)
    if not given:
        raise DataError(f"expected something to look for in some of the modalities {list(binder.modalities)}")
    return combined(given, embedded(binder, minus or {}), weights)


Given = list[tuple[str, Tensor]]  # modality, (n, D) unit vectors


def embedded(binder: Binder, inputs: Mapping[str, Any]) -> Given:
    """The unit embeddings of all values; DataError, too, for a text of which training saw no word."""
    found = []
    for name, value in inputs.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if values:
            for text in values if binder.kinds.get(name) == "text" else []:
                unknown_words(binder, name, text)
            found.append((name, binder.embed({name: values})[name]))
    return found


def unknown_words(binder: Binder, modality: str, text: Any) -> list[str]:
    """The words of a text that training never saw, where an encoder goes by words.

    DataError if those are all it has: every such text has the same embedding, and what is near that means nothing.
    """
    inputs = binder.towers[modality].inputs
    if not isinstance(text, str) or not isinstance(inputs, Words):
        return []
    unknown = inputs.unknown(text)
    if len(unknown) == len(set(inputs.split(text))):
        what = f"none of its words was seen in training ({', '.join(unknown[:5])})" if unknown else "has no word"
        raise DataError(f"{modality} {text[:60]!r}: {what}, so nothing is near it; use other words, or a file or an id")
    return unknown


def combined(given: Given, unwanted: Given = (), weights: Mapping[str, float] | None = None) -> Tensor:
    """(D,) unit: the weighted centroid of what is given, without what is unwanted."""
    sizes = {name: 1.0 for name, _ in given} if weights is None else weights
    if missing := [name for name, _ in given if name not in sizes]:
        raise DataError(f"weights: expected one for {missing}, got {list(sizes)}")
    centre = torch.cat([sizes[name] * vectors for name, vectors in given]).sum(0)
    if centre.norm() < SAME * sum(abs(sizes[name]) * len(vectors) for name, vectors in given):
        raise DataError("what is looked for points in opposite directions, nothing is near all of it; ask for one")
    return without(unit(centre), torch.cat([vectors for _, vectors in unwanted])) if unwanted else unit(centre)


def without(wanted: Tensor, unwanted: Tensor) -> Tensor:
    """(D,) unit: the part of `wanted` that is orthogonal to all (u, D) unwanted vectors.

    Orthogonal negation (Widdows, ACL 2003): a hit gains nothing by being like the unwanted, and is not punished for
    it either, so "knight, not black" does not become "anything white". No weight has to be chosen, and order does not
    matter. Subtracting with a weight would need one, and turns into a search for the opposite as it grows.
    """
    basis, scales, _ = torch.linalg.svd(unwanted.double().T, full_matrices=False)
    basis = basis[:, scales > SAME * scales.max()]
    left = wanted.double() - basis @ (basis.T @ wanted.double())
    if left.norm() < SAME:
        raise DataError("what is looked for and what is not wanted are the same, nothing is left to look for")
    return unit(left.float())


class Question:
    """What a person asks for, gathered word by word: texts, files and samples, wanted or not."""

    def __init__(self, binder: Binder, index: Index):
        self.binder, self.index = binder, index
        self.rows: dict[bool, Given] = {True: [], False: []}
        self.unknown: list[str] = []  # words that training never saw

    def add(self, way: str, value: str, *, wanted: bool = True) -> None:
        """`way` is text, file or id; a value may say its modality first: "name=black knight". Raises DataError."""
        name, equals, rest = value.partition("=")
        name, value = (name, rest) if equals and name in self.binder.modalities else (None, value)
        self.rows[wanted] += {"text": self._text, "file": self._file, "id": self._sample}[way](name, value)

    def vector(self, want: str) -> Tensor:
        """(D,) unit, for looking in one modality; DataError if nothing was asked for."""
        if not self.rows[True]:
            raise DataError("expected something to look for: --text, --file or --id")
        several = len({name for name, _ in self.rows[True]}) > 1
        return combined(self.rows[True], self.rows[False], self.index.weights(want) if several else None)

    def _text(self, name: str | None, value: str) -> Given:
        name = name or self._only("text", f"the text {value!r}")
        if self.binder.kinds[name] != "text":
            raise DataError(f"{name}={value}: {name!r} is {self.binder.kinds[name]}, not text; give a file")
        return self._embedded(name, value)

    def _embedded(self, name: str, value: Any) -> Given:
        given = embedded(self.binder, {name: [value]})
        self.unknown = list(dict.fromkeys([*self.unknown, *unknown_words(self.binder, name, value)]))
        return given

    def _file(self, name: str | None, value: str) -> Given:
        path = Path(value)
        ending = path.suffix.lower()
        try:
            name = name or self._of_file(path, ending)
            inputs = self.binder.towers[name].inputs
            reading = self.binder.readings.get(name, "")
            decoded = decode_as(inputs.kind, inputs.raw_shape, reading, path, ending=ending)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        return self._embedded(name, decoded)

    def _of_file(self, path: Path, ending: str) -> str:
        """The one modality that this file can be a value of; of an array, one of its shape before others."""
        if ending not in ENDINGS:
            raise DataError(f"expected a file ending with one of {' '.join(ENDINGS)}")
        inputs = {name: tower.inputs for name, tower in self.binder.towers.items()}
        known = {name: (each.kind, self.binder.readings.get(name, "")) for name, each in inputs.items()}
        fits, of = [name for name in known if ending in endings(*known[name])], f"{ending} files"
        if ending == ".npy":
            shape = decode_npy(path).shape
            same = [name for name in fits if inputs[name].raw_shape == shape]
            series = [
                name for name in fits if ways(*known[name])[0] == "series" and inputs[name].raw_shape[1:] == shape[1:]
            ]
            fits, of = same or series, f"array of shape {shape}"
        return self._one_of(fits, "it", of)

    def _sample(self, name: str | None, value: str) -> Given:
        """All that a sample has, or one modality of it."""
        if name is not None:
            return [(name, self.index.vectors(name, [value]))]
        emb = self.index.embeddings([value])
        return [(name, emb[name]) for name, here in zip(emb.modalities, emb.present) if here.all()]

    def _only(self, kind: str, what: str) -> str:
        """The one modality of this kind."""
        return self._one_of([name for name, known in self.binder.kinds.items() if known == kind], what, kind)

    def _one_of(self, fits: list[str], what: str, of: str) -> str:
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise DataError(f"{what} could be any of {fits}; say which: {fits[0]}=...")
        has = ", ".join(
            f"{name} ({self.binder.readings.get(name) or kind})" for name, kind in self.binder.kinds.items()
        )
        raise DataError(f"{what}: the binder has no modality for {of}, its modalities are {has}")
