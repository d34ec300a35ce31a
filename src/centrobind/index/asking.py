"""What is asked for, as one vector: the centroid of what is given, in any modalities, without what is not wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from centrobind.data import decode_image, decode_npy, decode_series, decode_sound, decode_text
from centrobind.errors import DataError
from centrobind.index.opening import Index
from centrobind.model import Binder
from centrobind.types import unit

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
KINDS = {  # the ending of a file -> the kind of modality it can be; an array can be any, by its shape
    **dict.fromkeys(PICTURES, "image"),
    **dict.fromkeys((*SOUNDS, ".csv"), "sequence"),
    ".txt": "text",
    ".npy": "array",
}
SAME = 1e-3  # a query that keeps less of its length than this is made of rounding, not of meaning


def query(binder: Binder, inputs: Mapping[str, Any], *, minus: Mapping[str, Any] | None = None) -> Tensor:
    """One (D,) unit query from values in any subset of the binder's modalities: {"name": "knight", "image": pixels}.

    A tuple or list holds several values of one modality. The query is the centroid of all unit embeddings;
    what `minus` holds is taken out of it, see `without`. Raises DataError.
    """
    given = embedded(binder, inputs)
    if len(given) == 0:
        raise DataError(f"expected something to look for in some of the modalities {list(binder.modalities)}")
    return combined(given, embedded(binder, minus or {}))


def embedded(binder: Binder, inputs: Mapping[str, Any]) -> Tensor:
    """(n, D) unit embeddings of all the values."""
    rows = [torch.zeros(0, binder.dim)]
    for name, value in inputs.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if values:
            rows.append(binder.embed({name: values})[name])
    return torch.cat(rows)


def combined(given: Tensor, unwanted: Tensor | None = None) -> Tensor:
    """(D,) unit: the centroid of (n, D) unit vectors, without the (u, D) unwanted ones."""
    centre = given.mean(0)
    if centre.norm() < SAME:
        raise DataError("what is looked for points in opposite directions, nothing is near all of it; ask for one")
    return without(unit(centre), unwanted) if unwanted is not None and len(unwanted) else unit(centre)


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
        self.rows: dict[bool, list[Tensor]] = {True: [], False: []}

    def add(self, way: str, value: str, *, wanted: bool = True) -> None:
        """`way` is text, file or id; a value may say its modality first: "name=black knight". Raises DataError."""
        name, equals, rest = value.partition("=")
        name, value = (name, rest) if equals and name in self.binder.modalities else (None, value)
        made = {"text": self._text, "file": self._file, "id": self._sample}[way](name, value)
        self.rows[wanted].append(made)

    def vector(self) -> Tensor:
        """(D,) unit; DataError if nothing was asked for."""
        if not self.rows[True]:
            raise DataError("expected something to look for: --text, --file or --id")
        return combined(torch.cat(self.rows[True]), torch.cat(self.rows[False]) if self.rows[False] else None)

    def _text(self, name: str | None, value: str) -> Tensor:
        name = name or self._only("text", f"the text {value!r}")
        if self.binder.kinds[name] != "text":
            raise DataError(f"{name}={value}: {name!r} is {self.binder.kinds[name]}, not text; give a file")
        return self.binder.embed({name: [value]})[name]

    def _file(self, name: str | None, value: str) -> Tensor:
        path = Path(value)
        kind = KINDS.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path}: expected a file ending with one of {' '.join(KINDS)}")
        try:
            array = decode_npy(path) if kind == "array" else None
            name = name or self._only(kind, str(path), None if array is None else array.shape)
            shape = self.binder.towers[name].inputs.raw_shape
            decoded = array if array is not None else _decoded(kind, path, shape)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        return self.binder.embed({name: [decoded]})[name]

    def _sample(self, name: str | None, value: str) -> Tensor:
        """All that a sample has, or one modality of it."""
        if name is not None:
            return self.index.vectors(name, [value])
        emb = self.index.embeddings([value])
        return emb.z[emb.present]

    def _only(self, kind: str, what: str, shape: tuple[int, ...] | None = None) -> str:
        """The one modality that a value of this kind can be."""
        fits = [
            name
            for name, tower in self.binder.towers.items()
            if (tower.inputs.raw_shape == shape if kind == "array" else tower.inputs.kind == kind)
        ]
        if len(fits) == 1:
            return fits[0]
        has = ", ".join(f"{name} ({tower.inputs.kind})" for name, tower in self.binder.towers.items())
        of = f"{kind} of shape {shape}" if shape is not None else kind
        raise DataError(
            f"{what} could be any of {fits}; say which: {fits[0]}=..."
            if fits
            else f"{what}: the binder has no modality for {of}, its modalities are {has}"
        )


def _decoded(kind: str, path: Path, shape: tuple[int, ...]) -> Any:
    if kind == "image":
        return decode_image(path, shape)
    if kind == "text":
        return decode_text(path)
    return decode_sound(path, shape) if path.suffix.lower() in SOUNDS else decode_series(path, shape)
