"""Which answers are right. Candidates are the distinct values of the wanted modality; right for a query is every value
that a sample of its group has. A group is what was given as one, else the samples that share the query's value.

So of a picture with five captions any caption is right, the picture is one candidate instead of five, and equal
pictures of different samples are both right: what is known as the COCO protocol, and where nothing repeats, the plain
one in which every sample has one right answer, its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from centrobind.data import MISSING, Codes, digests
from centrobind.errors import CentrobindWarning, DataError
from centrobind.evaluation.ranks import Right
from centrobind.types import Embeddings

# Embeddings alone do not say whether equal ones are of equal values or of an encoder that is dead. A vector that more
# than this share of samples have is taken for the latter: then nothing is a repeated value, and ties count against.
MOST_REPEATED = 0.5


@dataclass(frozen=True)
class Question:
    """One direction: who asks, among what, and what is right."""

    asked: np.ndarray  # (S,) samples that have the query and its target
    query: np.ndarray  # (S,) which of the Q different queries each of them asks
    queries: np.ndarray  # (Q,) a sample that asks it
    candidates: np.ndarray  # (C,) a sample of each distinct value
    right: Right  # of the Q queries, among the C candidates

    def spread(self, by_query: Tensor, count: int) -> np.ndarray:
        """(Q,) numbers of queries as (N,) of samples, inf where a sample does not ask."""
        by_sample = np.full(count, np.inf)
        by_sample[self.asked] = by_query.double().cpu().numpy()[self.query]
        return by_sample

    def chance(self, k: int) -> float:
        """Recall@k of a random order, over samples: 1 - C(wrong, k) / C(all, k)."""
        count, right = len(self.candidates), self.right.counts.cpu().numpy()
        wrong = count - right
        depth = min(k, count)
        with np.errstate(invalid="ignore"):
            missed = gammaln(wrong + 1) - gammaln(wrong - depth + 1) - gammaln(count + 1) + gammaln(count - depth + 1)
        by_query = np.where(wrong < depth, 1.0, 1 - np.exp(missed))
        return float(by_query[self.query].mean())


def question(embeddings: Embeddings, sources: Sequence[int], target: int) -> Question:
    """Ask for modality `target` with any of `sources` that a sample has, by row of z."""
    present = embeddings.present.cpu().numpy()
    values = embeddings.values
    if values is None:
        raise DataError("expected embeddings with digests of their values, see with_values")
    sources = list(sources)
    asks = present[sources].any(0) & present[target]
    things = _codes(*np.where(present[sources], values[sources], MISSING))
    left = _alone(embeddings.groups) if embeddings.groups is not None else np.where(present[sources].any(0), things, -1)
    wanted = np.flatnonzero(present[target])
    _, first, place = np.unique(values[target][wanted], return_index=True, return_inverse=True)
    order = np.argsort(first)  # candidates in the order of the samples
    candidates, rank = wanted[first[order]], np.argsort(order)
    candidate = np.full(len(embeddings), -1)
    candidate[wanted] = rank[place]

    asked = np.flatnonzero(asks)
    _, first, query = np.unique(_codes(left[asked], things[asked]), return_index=True, return_inverse=True)
    queries = asked[first]
    known = np.flatnonzero(present[target] & (left >= 0))
    _, links = np.unique(_codes(left[known], candidate[known]), return_index=True)
    groups, answers = left[known][links], candidate[known][links]  # sorted by group, then by candidate
    begin = np.searchsorted(groups, left[queries])
    counts = np.searchsorted(groups, left[queries], side="right") - begin
    starts = np.concatenate([[0], np.cumsum(counts)])
    places = answers[np.repeat(begin - starts[:-1], counts) + np.arange(starts[-1])]
    device = embeddings.z.device
    right = Right(torch.from_numpy(starts).to(device), torch.from_numpy(places).to(device))
    return Question(asked, query.ravel(), queries, candidates, right)


def with_relevance(embeddings: Embeddings, groups: Sequence[Any] | np.ndarray | Tensor | None = None) -> Embeddings:
    """These embeddings with groups and digests of values, as far as they are not known yet.

    `groups`: a number or a string per sample, None for a sample alone; they replace those that came with the data.
    Without digests, equal embeddings of one group are one value; without groups either, equal embeddings are, with a
    CentrobindWarning. Raises DataError for another number of groups than of samples.
    """
    if groups is not None:
        embeddings = replace(embeddings, groups=group_codes(groups, len(embeddings)))
    if embeddings.values is not None:
        return embeddings
    z, present = embeddings.z.detach().cpu().numpy(), embeddings.present.cpu().numpy()
    values = np.full(present.shape, MISSING, np.int64)
    for row, vectors, here in zip(values, z, present):
        row[here] = digests(vectors[here] + 0.0)  # -0.0 is 0.0
    if embeddings.groups is not None:
        alone = _alone(embeddings.groups)
        values = np.stack([np.where(here, 1 + _codes(alone, row), MISSING) for row, here in zip(values, present)])
        return replace(embeddings, values=values)
    repeated = []
    for row, vectors, here, name in zip(values, z, present, embeddings.modalities):
        count, different = int(here.sum()), len(np.unique(row[here]))
        if different == count:
            continue
        _, alike = np.unique(digests(np.round(vectors[here], 4) + 0.0), return_counts=True)  # but for rounding
        if alike.max() > max(1, MOST_REPEATED * count):
            row[here] = 1 + np.flatnonzero(here)  # every sample is a thing of its own
        else:
            repeated.append(f"{name} ({different} of {count} differ)")
    if repeated:
        warnings.warn(
            f"equal embeddings count as one value, any of its samples as right: {', '.join(repeated)}. Say groups= "
            "if you know which samples are the same thing, groups=range(n) if none are",
            CentrobindWarning,
            stacklevel=3,
        )
    return replace(embeddings, values=values)


def group_codes(groups: Sequence[Any] | np.ndarray | Tensor | Codes, count: int) -> np.ndarray:
    """(N,) int64 codes of groups, -1 for a sample alone; DataError for another number than of samples."""
    if isinstance(groups, Tensor):
        groups = groups.detach().cpu().numpy()
    codes = groups if isinstance(groups, Codes) else Codes.of(list(groups))
    if len(codes) != count:
        raise DataError(f"groups: expected {count}, one per sample, got {len(codes)}")
    return codes.codes.astype(np.int64)


def _alone(groups: np.ndarray) -> np.ndarray:
    """Groups with a new one for every sample that has none."""
    return np.where(groups >= 0, groups, groups.max(initial=-1) + 1 + np.arange(len(groups)))


def _codes(*columns: np.ndarray) -> np.ndarray:
    """(N,) equal where all columns are, in the order of the first column, then the second, and so on."""
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        names, place = np.unique(column, return_inverse=True)
        _, codes = np.unique(codes * max(1, len(names)) + place, return_inverse=True)
    return codes
