"""Texts for the closed form: TF-IDF of hashed character n-grams and words, then principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from centrobind.closed_form.components import Components, directions
from centrobind.closed_form.features import Features
from centrobind.closed_form.grams import count_grams, count_words

MOST_BUCKETS = 50_000
SHARES = (1.0, 0.5)  # lengths of a text's n-grams and of its words: names of places lost one point at equal lengths


class TextFeatures(Features):
    """Character n-grams and words, hashed, each weighted by how rare it is; unknown ones are left out."""

    buckets_0: Tensor  # (n-grams,) ascending
    rarity_0: Tensor
    buckets_1: Tensor  # (words,)
    rarity_1: Tensor

    def learn(self, values: Sequence[str], most: int, seed: int = 0) -> Tensor:
        texts = list(values)
        counts = [count(texts) for count in (count_grams, count_words)]
        least = 2 if len(texts) > 20 else 1  # what only one text has says nothing about the others
        for number, table in enumerate(counts):
            holders = np.bincount(table.indices, minlength=table.shape[1])
            common = np.argsort(-holders, kind="stable")[:MOST_BUCKETS]
            buckets = np.sort(common[holders[common] >= least])
            rarity = np.log((1 + len(texts)) / (1 + holders[buckets])) + 1
            self.register_buffer(f"buckets_{number}", torch.from_numpy(buckets.astype(np.int64)))
            self.register_buffer(f"rarity_{number}", torch.from_numpy(rarity.astype(np.float32)))
        table = self._weighted(counts)
        mean = np.asarray(table.mean(0)).ravel()
        basis = _sparse_directions(table, mean, most, seed)
        self.components = Components(table.shape[1], basis.shape[1])
        self.components.basis.copy_(torch.from_numpy(basis))
        self.components.mean.copy_(torch.from_numpy(mean))
        return self.linear(texts)

    def linear(self, values: Sequence[str]) -> Tensor:
        table = self._weighted([count(list(values)) for count in (count_grams, count_words)])
        basis = self.components.basis
        projected = torch.from_numpy(table @ basis.cpu().numpy()).to(basis.device)
        return projected - self.components.mean @ basis

    def _weighted(self, counts: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
        """(n, raw) TF-IDF, the rows of each block of one length."""
        blocks = []
        for number, table in enumerate(counts):
            buckets, rarity = (getattr(self, f"{name}_{number}").cpu().numpy() for name in ("buckets", "rarity"))
            table = table[:, buckets]
            table.data = 1 + np.log(table.data)
            table = table.multiply(rarity[None]).tocsr()
            length = np.sqrt(np.asarray(table.multiply(table).sum(1)).ravel())
            blocks.append(sparse.diags(SHARES[number] / np.maximum(length, 1e-12)) @ table)
        joined: sparse.csr_matrix = sparse.hstack(blocks).tocsr().astype(np.float32)
        return joined

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"buckets": [len(self.buckets_0), len(self.buckets_1)]}

    def rebuild(self, description: Mapping[str, Any]) -> None:
        super().rebuild(description)
        for number, count in enumerate(description["buckets"]):
            self.register_buffer(f"buckets_{number}", torch.zeros(count, dtype=torch.long))
            self.register_buffer(f"rarity_{number}", torch.zeros(count))


def _sparse_directions(table: sparse.csr_matrix, mean: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(raw, k) leading principal directions of a sparse table whose mean is taken off without filling it."""
    rows, columns = table.shape
    if min(rows, columns) <= max(1200, 2 * most):
        dense = torch.from_numpy(table.toarray() - mean)
        return directions(dense.float(), most, seed=seed).numpy()
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((columns, most + 20), np.float32))[0]
    for _ in range(4):
        low = table @ basis - mean @ basis
        basis = np.linalg.qr(table.T @ low - np.outer(mean, low.sum(0)))[0]
    low = table @ basis - mean @ basis
    vectors = np.linalg.eigh((low.T @ low).astype(np.float64))[1][:, ::-1][:, :most]
    leading: np.ndarray = (basis @ vectors).astype(np.float32)
    return leading
