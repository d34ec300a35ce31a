"""The nouns. Everything left of `Embeddings` makes one, everything right of it eats one.

Shapes, here and in every file:  M modalities, N samples, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.unit import unit as unit  # passed on: whoever makes Embeddings needs it
from centrobind.unit import unit_stack


@dataclass(frozen=True)
class Batch:
    """Some samples, with what is missing left out rather than filled in.

    `inputs[m]` holds only the samples in which modality m is present, in batch order: an encoder
    never sees a placeholder, so it cannot learn from one. `present` says which samples those are.
    """

    inputs: Mapping[str, Any]  # modality -> (number present, ...)
    present: Tensor  # (M, N) bool
    ids: np.ndarray  # (N,)
    # Where several ranks share a batch, each has a part of the `whole` (its ids), and `place` says for each modality
    # how many of the whole's inputs lie before this part's, and how many there are.
    whole: np.ndarray | None = None
    place: Mapping[str, tuple[int, int]] | None = None
    groups: np.ndarray | None = None  # (N of the whole,) int64: samples of one group are no negatives of each other
    # What the linear paths of towers read: modality -> (number present, features); {} where no tower has one.
    features: Mapping[str, Tensor] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.inputs)

    @property
    def all_ids(self) -> np.ndarray:
        """Those of the other ranks' parts too."""
        return self.ids if self.whole is None else self.whole

    def __len__(self) -> int:
        return self.present.shape[1]


@dataclass(frozen=True)
class Embeddings:
    """N samples in M modalities in one space: unit vectors where present, zeros elsewhere."""

    z: Tensor  # (M, N, D) float
    present: Tensor  # (M, N) bool, True = observed
    modalities: tuple[str, ...]
    ids: np.ndarray | None = None  # (N,), whatever identifies a sample
    groups: np.ndarray | None = None  # (N,) int64, samples of one group are right answers to each other, -1 = alone
    values: np.ndarray | None = None  # (M, N) int64, equal where the embedded values are, 0 = missing

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor] | Embeddings,
        present: Mapping[str, Tensor] | None = None,
        ids: Sequence[Any] | np.ndarray | None = None,
        *,
        finite: bool = True,
    ) -> Embeddings:
        """Stack a dict of (N, D) tensors, one per modality, and bring every row to unit length.

        `present[m]` is an (N,) bool tensor, True where modality m was observed; a modality that is
        not named there is present everywhere. Rows that are absent may hold anything, NaN included.
        Raises DataError when names or shapes do not agree, or a present row is not finite. `finite=False` lets
        those pass, for a loss: its value shows them, and looking would make every step wait for the device.
        """
        if isinstance(tensors, Embeddings):
            if present is not None or ids is not None:
                raise DataError(
                    "present= and ids= beside Embeddings: these have their own; change a copy with "
                    "dataclasses.replace(embeddings, present=...), or give a dict of tensors"
                )
            return tensors
        modalities = tuple(tensors)
        if not modalities:
            raise DataError("expected a dict with a [batch, dim] tensor per modality, got an empty one")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        first = shapes[modalities[0]]
        if len(first) != 2 or any(shape != first for shape in shapes.values()):
            raise DataError(
                f"expected one [batch, dim] shape for all modalities, got {shapes}; "
                "fill a missing row with anything and say so in present="
            )
        count = first[0]
        where = torch.ones(len(modalities), count, dtype=torch.bool, device=tensors[modalities[0]].device)
        for name, rows in (present or {}).items():
            if name not in tensors:
                raise DataError(f"present= names modality {name!r}, expected one of {list(modalities)}")
            rows = torch.as_tensor(rows)
            if rows.dtype != torch.bool or rows.shape != (count,):
                raise DataError(
                    f"present[{name!r}]: expected bool of shape ({count},), "
                    f"got {rows.dtype} of shape {tuple(rows.shape)}"
                )
            where[modalities.index(name)] = rows.to(where.device)
        z = unit_stack(list(tensors.values()), where if present else None)
        made = cls(z, where, modalities, None if ids is None else np.asarray(ids))
        made.__dict__["_source"] = _Source(tensors, present)
        if not present:
            made.__dict__["complete"] = True
        return made.checked() if finite else made

    def checked(self, where: str = "") -> Embeddings:
        """These embeddings, if every present row is finite; DataError names the modality and its first samples."""
        for name, rows, here in zip(self.modalities, self.z, self.present):
            bad = (here & ~rows.isfinite().all(1)).nonzero()[:, 0].cpu().numpy()
            if len(bad):
                named = (bad if self.ids is None else self.ids[bad])[:5].tolist()
                raise DataError(
                    f"{where or 'embeddings'}: {name!r} is NaN or infinite in {len(bad)} of {int(here.sum())} present "
                    f"samples, expected finite numbers; the first: {named}. Look at these samples and at the weights "
                    "that made them, or mark them as missing"
                )
        return self

    def __len__(self) -> int:
        return self.z.shape[1]

    def __repr__(self) -> str:
        seen = ", ".join(f"{name} {int(here.sum())}" for name, here in zip(self.modalities, self.present))
        return f"Embeddings({len(self)} samples x {self.dim}: {seen} present)"

    def __getitem__(self, modality: str) -> Tensor:
        """The (N, D) embeddings of one modality, zeros where it is missing."""
        return self.z[self.index(modality)]

    def index(self, modality: str) -> int:
        """The row of `z` that belongs to a modality; DataError if there is none."""
        try:
            return self.modalities.index(modality)
        except ValueError:
            raise DataError(f"no modality {modality!r} here, expected one of {list(self.modalities)}") from None

    @property
    def dim(self) -> int:
        return self.z.shape[-1]

    def with_z(self, z: Tensor, present: Tensor | None = None) -> Embeddings:
        """The same samples and modalities at other places."""
        moved = replace(self, z=z, present=self.present if present is None else present)
        if present is None and "complete" in self.__dict__:
            moved.__dict__["complete"] = self.complete
        return moved

    def knowing(self, complete: bool) -> Embeddings:
        """These embeddings, and whether nothing is missing, where that is known in main memory."""
        self.__dict__["complete"] = complete
        return self

    @cached_property
    def complete(self) -> bool:
        """Whether nothing is missing; only where that is not known from how these were made, the device is asked."""
        return bool(self.present.all())

    def detach(self) -> Embeddings:
        return self.with_z(self.z.detach())

    def later(self) -> Callable[[], Embeddings]:
        """These embeddings, detached, for callers that may never want them: made again, where they were made of
        tensors that are there in any case, rather than held until then."""
        source: _Source | None = self.__dict__.get("_source")
        if source is not None:
            return source.embeddings
        here = self.detach()
        return lambda: here

    def take(self, samples: Any) -> Embeddings:
        """The samples picked by a slice, an index or a bool tensor over N."""
        rows = samples if isinstance(samples, slice) else np.asarray(samples)
        ids, groups = (None if each is None else each[rows] for each in (self.ids, self.groups))
        values = None if self.values is None else self.values[:, rows]
        return Embeddings(self.z[:, samples], self.present[:, samples], self.modalities, ids, groups, values)

    def only(self, modalities: Sequence[str]) -> Embeddings:
        """These modalities, in this order."""
        rows = [self.index(name) for name in modalities]
        values = None if self.values is None else self.values[rows]
        return Embeddings(self.z[rows], self.present[rows], tuple(modalities), self.ids, self.groups, values)

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Every ordered pair of different modalities."""
        return [(a, b) for a in self.modalities for b in self.modalities if a != b]


class _Source:
    """The tensors that embeddings were made of, to make them again."""

    def __init__(self, tensors: Mapping[str, Tensor], present: Mapping[str, Tensor] | None):
        self.tensors = {name: x.detach() for name, x in tensors.items()}
        self.present = present
        self.versions = self.read()

    def read(self) -> list[int]:
        """How often each was changed in place."""
        return [0 if x.is_inference() else x._version for x in self.tensors.values()]

    def embeddings(self) -> Embeddings:
        """DataError if the tensors are not what they were."""
        if self.read() != self.versions:
            raise DataError(
                "the embeddings were changed in place after the loss was computed, so its parts are no longer known: "
                "ask for loss.parts before the step that changes them"
            )
        return Embeddings.of(self.tensors, self.present, finite=False)
