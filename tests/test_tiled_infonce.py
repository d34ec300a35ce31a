"""Batched and tiled forms against the dense one in float64, with tiles so small that everything has several."""

import threading
from functools import partial

import pytest
import torch

from centrobind.objectives import comparison, tiled_infonce, tiles
from centrobind.objectives.dense_infonce import dense_infonce
from centrobind.training.memory import allocations
from forms import batched, tiled
from twins import some_present, unit_vectors

PAIRS = [(0, 1), (1, 1), (2, 0), (1, 2)]


FORMS = {
    "batched": batched,
    "made again": tiled,
    "some kept": partial(tiled, memory=800),
    "kept": partial(tiled, memory=2**30),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(tiles.TILES, "cpu", (3, 5))
    monkeypatch.setitem(tiles.STRIPS, "cpu", 2)


@pytest.fixture(params=FORMS)
def form(request):
    """All matrices at once, or tiles of which none, the first or all are kept for the backward pass."""
    return FORMS[request.param]


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


def in_ranks(form, sizes):
    """A form carried out by several threads; gradients come together as autograd adds them."""

    def shared(query, key, *args, **options):
        ranks, shares, edges = Together(len(sizes)), [None] * len(sizes), [0]
        for size in sizes:
            edges.append(edges[-1] + size)

        def rank(r):
            own = query[:, edges[r] : edges[r + 1]]
            shares[r] = form(own, key, *args, first=edges[r], ranks=ranks, **options)

        threads = [threading.Thread(target=rank, args=(r,)) for r in range(len(sizes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return torch.stack(shares).sum(0)

    return shared


@pytest.mark.parametrize("tau", [0.003, 0.01, 0.2])
@pytest.mark.parametrize("sizes", [(13,), (5, 8), (6, 0, 4, 3)])
def test_ranks_together_are_one(sizes, tau, form):
    query, key = unit_vectors(3, 13, 6), 1.5 * unit_vectors(3, 13, 6, seed=1)
    has_q, has_k = some_present(3, 13), some_present(3, 13, seed=1)
    options = {"pairs": PAIRS, "groups": torch.arange(13) % 9}
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 3e-4)):
        expected = outcome(dense_infonce, query.to(dtype), key.to(dtype), has_q, has_k, tau, **options)
        got = outcome(in_ranks(form, sizes), query, key, has_q, has_k, tau, dtype, **options)
        for one, other in zip(got, expected):
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * other.abs().max().item())


def made(kind, count=3, samples=13, dim=6):
    """Queries and keys as they are before, after and in case of failed training."""
    query, key = unit_vectors(count, samples, dim), unit_vectors(count, samples, dim, seed=1)
    if kind == "perfect":
        key = query.clone()
    elif kind == "collapsed":
        query = query[:1, :1].expand(count, samples, dim).clone()
        key = query.clone()
    elif kind == "opposite":
        key = -query
    elif kind == "centroid":
        key = 3 * query.mean(0).expand(count, samples, dim)  # the same for all, and longer than 1
    return query.float(), key.float()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kind", ["random", "perfect", "collapsed", "opposite", "centroid"])
@pytest.mark.parametrize("tau", [0.003, 0.01, 0.07, 1.0, 10.0])
def test_extremes_are_finite_and_equal_to_the_dense_form_in_float64(tau, kind, gaps, form):
    query, key = made(kind)
    has_q, has_k = (some_present(3, 13, seed=s) if gaps else everyone(3, 13) for s in (0, 1))
    for dtype in (torch.float32, torch.float64):
        got = outcome(form, query, key, has_q, has_k, tau, dtype, pairs=PAIRS)
        expected = outcome(dense_infonce, query, key, has_q, has_k, tau, pairs=PAIRS)
        # A logit is known to its rounding, a softmax as well as its logits, a gradient as well as its softmaxes.
        largest = (query.norm(dim=2).max() * key.norm(dim=2).max() / tau).item()
        known = 4 * torch.finfo(dtype).eps * (1 + largest)
        tolerance = [13 * known, 13 * known, 10 * known / tau, 10 * known / tau, 100 * known * largest / tau]
        for name, one, other, atol in zip(("ahead", "back", "query", "key", "tau"), got, expected, tolerance):
            assert torch.isfinite(one).all() and torch.isfinite(other).all(), name
            torch.testing.assert_close(one, other, rtol=20 * known, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_one_exponential_where_it_is_exact_and_two_where_not(monkeypatch):
    used = []
    plain = tiled_infonce._sums_careful
    monkeypatch.setattr(tiled_infonce, "_sums_careful", lambda *args: used.append(1) or plain(*args))

    def careful(query, key, tau):
        used.clear()
        tiled(query, key, everyone(3, 13), everyone(3, 13), torch.tensor([tau]), pairs=PAIRS)
        return bool(used)

    for kind in ("random", "perfect", "collapsed", "opposite", "centroid"):
        assert not careful(*made(kind), 0.07)
        assert not careful(*(x.double() for x in made(kind)), 0.003), "float64 reaches further"
    assert not careful(*made("perfect"), 0.01) and careful(*made("perfect"), 0.003)
    query, key = made("perfect")
    key[:] = query[:, :1]
    query[:, 5] = -query[:, 0]  # a row whose best logit is -100, where others have +100
    assert careful(query, key, 0.01)


@pytest.mark.parametrize("reaches", [550.0, 0.0])
def test_gradients_are_right(reaches, form, monkeypatch):
    monkeypatch.setitem(comparison.LARGEST, torch.float64, reaches)
    query, key = unit_vectors(3, 8, 3).requires_grad_(), unit_vectors(3, 8, 3, seed=1).requires_grad_()
    tau = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    has_q, has_k = some_present(3, 8), some_present(3, 8, seed=3)
    groups = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7])

    def sums(q, k, t):
        return form(q, k, has_q, has_k, t, pairs=PAIRS, groups=groups)

    assert torch.autograd.gradcheck(sums, (query, key, tau))


def test_only_what_is_asked_for_is_differentiated(form):
    query, key, tau = unit_vectors(3, 8, 3), unit_vectors(3, 8, 3, seed=1), torch.tensor([0.2], dtype=torch.float64)
    there = everyone(3, 8)
    whole = [x.clone().requires_grad_() for x in (query, key, tau)]
    expected = torch.autograd.grad(form(*whole[:2], there, there, whole[2], pairs=PAIRS).sum(), whole)
    for asked in range(3):
        one = [x.clone().requires_grad_(n == asked) for n, x in enumerate((query, key, tau))]
        form(*one[:2], there, there, one[2], pairs=PAIRS).sum().backward()
        torch.testing.assert_close(one[asked].grad, expected[asked])


@pytest.mark.parametrize("tau", [0.01, 0.005])
def test_no_slope_is_subnormal(tau, form, monkeypatch):
    """Aligned embeddings, as after training: slopes of negatives are exp(-100) or so, and slow to multiply."""
    seen = []

    def watched(slopes):
        def through(*args):
            for tile, slope in slopes(*args):
                seen.append(slope.clone())
                yield tile, slope

        return through

    for name in ("_slopes_one_exponential", "_slopes_careful"):
        monkeypatch.setattr(tiled_infonce, name, watched(getattr(tiled_infonce, name)))
    query = unit_vectors(3, 13, 6, dtype=torch.float32)
    query[2] = -query[0]
    there = everyone(3, 13)
    for weights in ((1.0, 0.5, 2.0, -1.0), (1e-5,) * 4):
        options = {"pairs": [(0, 0), (1, 1), (2, 2), (0, 2)], "weights": weights}
        got = outcome(form, query, query, there, there, tau, torch.float32, **options)
        expected = outcome(dense_infonce, query, query, there, there, tau, **options)
        for one, other in zip(got[:4], expected):  # the temperature's own is a difference of large numbers
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
    slopes = torch.cat([slope.flatten() for slope in seen]).abs()
    assert not ((slopes > 0) & (slopes < torch.finfo(torch.float32).tiny)).any()
    assert (slopes == 0).float().mean() > 0.3 and (slopes > 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_its_gradient_is_half(dtype, form):
    query, key = (x.to(dtype) for x in made("random"))
    there = everyone(3, 13)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(form, query, key, there, there, 0.05, dtype, pairs=PAIRS)
    expected = outcome(dense_infonce, query, key, there, there, 0.05, pairs=PAIRS)
    for one, other, rtol in zip(got, expected, (1e-5, 1e-5, 1e-2, 1e-2, 1e-4)):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * other.abs().max().item())


@pytest.mark.parametrize("memory", [0, 20_000, 2**30])
def test_no_tensor_is_larger_than_a_tile_or_the_gradients(memory, monkeypatch):
    monkeypatch.setitem(tiles.TILES, "cpu", (64, 50))

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    Largest.numel = max(Largest.numel, tensor.untyped_storage().nbytes() // tensor.itemsize)
            return result

    query, key = unit_vectors(3, 300, 4).requires_grad_(), unit_vectors(3, 300, 4, seed=1).requires_grad_()
    there = everyone(3, 300)
    with Largest():
        for tau in (0.1, 0.0001):
            tiled(query, key, there, there, torch.tensor([tau]), pairs=PAIRS, memory=memory).sum().backward()
    assert Largest.numel <= 3 * 300 * 4


def test_large_losses_keep_their_digits(monkeypatch):
    """5,000 samples in real tiles, by a formula: all keys alike, so every loss is log N."""
    monkeypatch.setitem(tiles.TILES, "cpu", (2048, 1000))
    query, key = unit_vectors(1, 5000, 8, dtype=torch.float32), unit_vectors(1, 1, 8, seed=1, dtype=torch.float32)
    there = everyone(1, 5000)
    ahead, _ = tiled(query, key.expand(1, 5000, 8), there, there, torch.tensor([0.05]), pairs=[(0, 0)])
    assert ahead.item() == pytest.approx(5000 * torch.tensor(5000.0).log().item(), rel=2e-7)


def test_one_key_for_all_is_compared_as_one_and_its_gradient_adds_up():
    """A centroid is the anchor of every modality: its gradient is held once, not once for each."""
    there, tau = everyone(3, 13), torch.tensor([0.2], dtype=torch.float64)
    gradients = []
    for expanded in (True, False):
        query, centre = unit_vectors(3, 13, 6).requires_grad_(), unit_vectors(1, 13, 6, seed=1)[0].requires_grad_()
        key = centre.expand(3, 13, 6) if expanded else torch.stack([centre] * 3)
        shared = there[:1].expand(3, 13) if expanded else there
        pairs = [(0, 0), (2, 1), (1, 2), (0, 2)]
        sums = tiled(query, key, there, shared, tau, pairs=pairs)
        gradients.append(
            [sums.detach(), *torch.autograd.grad((sums * torch.arange(8.0).view(2, 4)).sum(), (query, centre))]
        )
    for got, expected in zip(*gradients):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("memory", [0, 1000, 5000, 2**30])
def test_no_more_is_kept_than_memory_allows(memory):
    query, key, there = unit_vectors(3, 40, 2).requires_grad_(), unit_vectors(3, 40, 2, seed=1), everyone(3, 40)
    tau = torch.tensor([0.2], dtype=torch.float64)

    def left(allowed):
        return allocations(lambda: tiled(query, key, there, there, tau, pairs=PAIRS, memory=allowed))[1]

    tile, whole = 3 * 5 * 8, len(PAIRS) * 40 * 40 * 8
    kept = left(memory) - left(0)
    assert min(memory, whole) - tile < kept <= min(memory, whole)
