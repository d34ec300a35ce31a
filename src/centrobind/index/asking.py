"""What is asked for, as one vector: the centroid of what is given, in any modalities, without what is not wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from centrobind.errors import DataError
from centrobind.model import Binder
from centrobind.types import unit

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


def centroid_of(vectors: Iterable[Tensor]) -> Tensor:
    """(D,) unit: the centroid of some vectors, such as those of one sample."""
    return combined(torch.stack(list(vectors)))
