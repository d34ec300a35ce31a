"""Which samples hold equal values, and which are one thing: several of them are right where one is asked for.

A table has one row per sample and one value per modality, so a picture with five captions is five rows with one
picture. Its captions are then right answers to each other. A column `group` says more, in one of two meanings: its
samples are one thing (five photographs of a plate), or they only have to stay in one split (the plates of a patient).
Where most groups repeat a value, they are things: nothing else makes rows repeat. Other groups keep splits together
and are no right answers; `groups=` says otherwise where it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from centrobind.data.categories import Codes
from centrobind.data.samples import Samples

CHUNK = 4096
MOST_REPEATED = 0.5  # share of samples with one value, beyond which it is a constant and says nothing
MOST_BYTES = 2**31  # of one modality that are read before training, to see what repeats
CHAINED = 2  # times the largest group of equal values that a group may be, joined over modalities
MISSING = 0  # the digest of no value


def digests(values: np.ndarray | Sequence[str]) -> np.ndarray:
    """(n,) int64: equal for values that are equal in every byte, and never MISSING."""
    if isinstance(values, np.ndarray):
        rows = [row.tobytes() for row in values]
    else:
        rows = [text.encode("utf-8", "surrogatepass") for text in values]
    found = np.array([int.from_bytes(blake2b(row, digest_size=8).digest(), "little") for row in rows], np.uint64)
    return np.maximum(found, 1).view(np.int64)


def value_digests(samples: Samples) -> np.ndarray:
    """(M, N) int64: equal where two samples hold the same value of a modality, MISSING where there is none."""
    found = np.full((len(samples.columns), len(samples)), MISSING, np.int64)
    for row, column in zip(found, samples.columns.values()):
        for start in range(0, len(samples), CHUNK):
            picked = np.arange(start, min(start + CHUNK, len(samples)))
            row[picked[column.present[picked]]] = digests(column.take(picked))
    return found


def sameness(samples: Samples) -> tuple[np.ndarray | None, np.ndarray]:
    """The `groups` (N,) and `values` (M, N) of embeddings of these samples; reads every value once."""
    values = value_digests(samples)
    return same_things(samples.group, values), values


def same_things(group: Codes | None, values: np.ndarray) -> np.ndarray | None:
    """(N,) int64 codes of samples that are one thing, -1 for a sample alone; None where groups are no things.

    `values` are digests (M, N). A group is one thing if its samples hang together by values that they share; the
    column is taken for things if at least half of its groups of several samples are.
    """
    if group is None:
        return None
    codes = group.codes.astype(np.int64)
    rows = np.flatnonzero(codes >= 0)
    _, place, sizes = np.unique(codes[rows], return_inverse=True, return_counts=True)
    if len(rows) == 0 or sizes.max() < 2:
        return None
    samples, keys, count = [], [], len(rows)
    for digest in values[:, rows]:
        here = np.flatnonzero(digest != MISSING)
        pairs = np.stack([place[here], digest[here]], 1)
        _, key = np.unique(pairs, axis=0, return_inverse=True)
        samples.append(here)
        keys.append(key.ravel() + count)
        count += int(key.max(initial=-1)) + 1
    edges = np.concatenate(samples), np.concatenate(keys)
    _, part = connected_components(coo_array((np.ones(len(edges[0]), bool), edges), shape=(count, count)), False)
    parts = np.bincount(np.unique(np.stack([place, part[: len(rows)]], 1), axis=0)[:, 0])
    several = sizes > 1
    return codes if (parts[several] == 1).mean() >= 0.5 else None


def kinship(samples: Samples) -> np.ndarray | None:
    """(N,) int64 codes for training: samples of one code are no negatives of each other; None if all stand alone.

    They are one thing by the column `group`, or hold equal values in some modality. Equal values of several modalities
    would chain unlike samples together (a class and a colour: everything); so a modality joins in, those with most
    different values first, only while no group exceeds CHAINED times the largest group of equal values.
    """
    small = [name for name, column in samples.columns.items() if column.values_bytes <= MOST_BYTES]
    values = value_digests(samples.only(small))
    count = len(samples)
    links = []
    if (things := same_things(samples.group, values)) is not None:
        links.append(_links(things, things >= 0))
    rest = [_links(row, row != MISSING) for row in values]
    links += sorted(rest, key=lambda link: -int(link[1].max(initial=-1)))
    kin, largest = np.arange(count), 1
    used: list[tuple[np.ndarray, np.ndarray]] = []
    for link in links:
        own = int(np.bincount(link[1]).max(initial=0))
        if not 1 < own <= MOST_REPEATED * count:
            continue
        joined = _joined([*used, link], count)
        if np.bincount(joined).max() <= CHAINED * max(own, largest):
            kin, largest, used = joined, max(own, largest), [*used, link]
    return kin.astype(np.int64) if used else None


def _links(codes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples that have a code, and which of the different codes each has."""
    rows = np.flatnonzero(known)
    _, place = np.unique(codes[rows], return_inverse=True)
    return rows, place.ravel()


def _joined(links: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """(N,) codes, equal for samples that any chain of links connects."""
    edges, nodes = [], count
    for rows, place in links:
        edges.append(np.stack([rows, place + nodes]))
        nodes += int(place.max(initial=-1)) + 1
    ends = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(ends.shape[1], bool), (ends[0], ends[1])), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:count]
