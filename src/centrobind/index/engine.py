"""What an engine of an index does: hold vectors, ids and categories, and find the nearest of one modality.

Each modality is searched on its own, so that "which sound is near this picture" needs no filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from centrobind.data import Codes, Samples

CAPTION = "caption-of-the-sample"  # a column beside the modalities; theirs are names that somebody would choose
LONGEST_CAPTION = 200  # characters


@dataclass(frozen=True)
class About:
    """Whose embeddings an index holds."""

    fingerprint: str  # of the binder
    dim: int
    modalities: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Engine(Protocol):
    """An index as one write left it, until `refresh`. Rows number its N samples; samples travel as vectors."""

    name: str
    path: str | Path

    @classmethod
    def create(cls, path: Path, about: About, chunks: Iterable[Samples]) -> None:
        """Write a new index, at one moment, in the place of an old one if there is one."""

    @property
    def about(self) -> About: ...

    def __len__(self) -> int: ...

    def ids(self) -> list[str]: ...

    def codes(self, what: str) -> Codes | None:
        """label, split or group of every row; None if no row has one."""

    def names(self, what: str) -> list[str]:
        """The categories there are; the engine may count some that only deleted samples had."""

    def captions(self, rows: Sequence[int]) -> list[str | None]:
        """What samples are in words, None where nothing says so."""

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(n,) rows, -1 for an id that is not there."""

    def vectors(self, modality: str, rows: np.ndarray) -> np.ndarray:
        """(n, D), NaN where the modality is missing."""

    def nearest(
        self, queries: Tensor, modality: str, k: int, where: Mapping[str, Sequence[str]]
    ) -> tuple[list[list[float]], list[list[int]], list[list[str]]]:
        """Cosines, rows and ids of the nearest to each of (Q, D) unit queries, best first, within the categories."""

    def write(self, chunks: Iterable[Samples], *, replacing: bool) -> None:
        """Add samples at one moment, in place of those with the same ids; DataError for such, if not `replacing`."""

    def delete(self, ids: Sequence[str]) -> None:
        """Take out all of these at one moment; DataError, and nothing is taken out, if one is not there."""

    def refresh(self) -> bool:
        """Go on to the last write, of whichever process; False if this is it."""

    def compact(self) -> None:
        """Give back the room of what is no more."""
