"""The fused form against the dense one in float64, with tiles so small that everything has several."""

import threading

import pytest
import torch

from centrobind import fused
from centrobind.fused import fused_infonce
from centrobind.infonce import dense_infonce
from twins import some_present, unit_vectors

PAIRS = [(0, 1), (1, 1), (2, 0), (1, 2)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(fused.TILES, "cpu", (3, 5))


def everyone(count, samples):
    return torch.ones(count, samples, dtype=torch.bool)


def outcome(form, query, key, has_q, has_k, tau, dtype=torch.float64, weights=(1.0, 0.5, 2.0, -1.0), **options):
    """Sums each way, and the gradients of a mixture of them by query, key and temperature."""
    query, key = (x.detach().to(dtype).requires_grad_() for x in (query, key))
    tau = torch.tensor([tau], dtype=dtype if dtype.is_floating_point and dtype.itemsize > 2 else torch.float32)
    tau.requires_grad_()
    ahead, back = form(query, key, has_q, has_k, tau, **options)
    weights = torch.tensor(weights, dtype=ahead.dtype)
    (weights @ ahead + weights.flip(0) @ back).backward()
    return [x.detach().double() for x in (ahead, back, query.grad, key.grad, tau.grad)]


class Together:
    """Threads that add and compare their tensors, as ranks do with all_reduce."""

    def __init__(self, count):
        self.barrier, self.given = threading.Barrier(count, timeout=20), {}

    def _reduce(self, x, how):
        self.given[threading.get_ident()] = x.clone()
        self.barrier.wait()
        made = how(torch.stack(list(self.given.values())))
        self.barrier.wait()
        x.copy_(made)  # in place, as all_reduce
        return x

    def sum(self, x):
        return self._reduce(x, lambda all_of_them: all_of_them.sum(0))

    def max(self, x):
        return self._reduce(x, lambda all_of_them: all_of_them.amax(0))


def in_ranks(sizes):
    """The fused form carried out by several threads; gradients come together as autograd adds them."""

    def form(query, key, *args, **options):
        ranks, shares, edges = Together(len(sizes)), [None] * len(sizes), [0]
        for size in sizes:
            edges.append(edges[-1] + size)

        def rank(r):
            own = query[:, edges[r] : edges[r + 1]]
            shares[r] = fused_infonce(own, key, *args, first=edges[r], ranks=ranks, **options)

        threads = [threading.Thread(target=rank, args=(r,)) for r in range(len(sizes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return tuple(torch.stack(parts).sum(0) for parts in zip(*shares))

    return form


@pytest.mark.parametrize("tau", [0.003, 0.01, 0.2])
@pytest.mark.parametrize("sizes", [(13,), (5, 8), (6, 0, 4, 3)])
def test_ranks_together_are_one(sizes, tau):
    query, key = unit_vectors(3, 13, 6), 1.5 * unit_vectors(3, 13, 6, seed=1)
    has_q, has_k = some_present(3, 13), some_present(3, 13, seed=1)
    options = {"pairs": PAIRS, "groups": torch.arange(13) % 9}
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 3e-4)):
        expected = outcome(dense_infonce, query.to(dtype), key.to(dtype), has_q, has_k, tau, **options)
        got = outcome(in_ranks(sizes), query, key, has_q, has_k, tau, dtype, **options)
        for one, other in zip(got, expected):
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * other.abs().max().item())
