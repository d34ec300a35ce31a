import pytest
import torch

from centrobind.errors import DataError
from centrobind.objectives import comparison, tiles
from centrobind.objectives import infonce as module
from centrobind.objectives.infonce import infonce
from twins import one_way, some_present, unit_vectors

pytestmark = pytest.mark.usefixtures("form")


@pytest.fixture(params=["batched", "one tile", "kept", "some kept", "made again", "careful"])
def form(request, monkeypatch):
    """Every test here with all matrices at once, with one tile, with small ones, and in the form for extreme logits."""
    monkeypatch.setattr(module, "WHOLE", 2**20 if request.param == "batched" else 0)
    if request.param != "one tile":
        monkeypatch.setitem(tiles.TILES, "cpu", (4, 3))
        monkeypatch.setitem(tiles.STRIPS, "cpu", 3)
    memory = {"made again": 0, "some kept": 3 * 4 * 3 * 8}  # bytes
    monkeypatch.setitem(module.MEMORY, "cpu", memory.get(request.param, 2**20))
    if request.param == "careful":
        for dtype in comparison.LARGEST:
            monkeypatch.setitem(comparison.LARGEST, dtype, 0.0)


SIZES = [(1, 7, 4), (2, 9, 5), (3, 6, 8), (5, 5, 3)]  # M, N, D: all different


@pytest.mark.parametrize(("count", "samples", "dim"), SIZES)
@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_equals_the_loop(count, samples, dim, tau):
    query, key = unit_vectors(count, samples, dim), 0.7 * unit_vectors(count, samples, dim, seed=1)
    has_q, has_k = some_present(count, samples), some_present(count, samples, seed=1)
    got = infonce(query, key, has_q, has_k, torch.tensor([tau]))
    for m in range(count):
        ahead, positives = one_way(query[m], key[m], has_q[m], has_k[m], tau)
        back, _ = one_way(key[m], query[m], has_k[m], has_q[m], tau)
        assert got.forward[m].item() == pytest.approx(ahead, rel=1e-6)
        assert got.backward[m].item() == pytest.approx(back, rel=1e-6)
        assert got.count[m].item() == positives


def test_gradients_are_right_with_gaps():
    query, key = unit_vectors(2, 6, 3).requires_grad_(), unit_vectors(2, 6, 3, seed=1).requires_grad_()
    tau = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    has_q, has_k = some_present(2, 6), some_present(2, 6, seed=3)

    def total(q, k, t):
        terms = infonce(q, k, has_q, has_k, t)
        return terms.forward.sum() + 2 * terms.backward.sum()

    assert torch.autograd.gradcheck(total, (query, key, tau))


def test_a_modality_nobody_has_gives_zero_and_no_gradient():
    query = unit_vectors(2, 4, 3).requires_grad_()
    nobody = torch.tensor([[True] * 4, [False] * 4])
    got = infonce(query, unit_vectors(2, 4, 3, seed=1), nobody, nobody, torch.tensor([0.1]))
    assert got.count.tolist() == [4, 0] and got.forward[1] == 0
    (got.forward.sum() + got.backward.sum()).backward()
    assert torch.isfinite(query.grad).all() and query.grad[1].abs().max() == 0


def test_half_precision_input_is_compared_in_float32():
    query, key = unit_vectors(1, 8, 4), unit_vectors(1, 8, 4, seed=1)
    everyone = torch.ones(1, 8, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        got = infonce(query.bfloat16(), key.bfloat16(), everyone, everyone, torch.tensor([0.05]))
    exact = infonce(query.bfloat16().double(), key.bfloat16().double(), everyone, everyone, torch.tensor([0.05]))
    assert got.forward.dtype == torch.float32
    torch.testing.assert_close(got.forward.double(), exact.forward, rtol=1e-5, atol=1e-5)


def test_pairs_pick_their_modalities_and_gradients_find_their_way_back():
    query, key = unit_vectors(3, 7, 4).requires_grad_(), unit_vectors(2, 7, 4, seed=1).requires_grad_()
    has_q, has_k = some_present(3, 7), some_present(2, 7, seed=1)
    pairs, tau = [(2, 0), (0, 1), (2, 1), (2, 0)], torch.tensor([0.2])
    one, other = (list(side) for side in zip(*pairs))
    gradients = []
    for terms in (
        infonce(query, key, has_q, has_k, tau, pairs=pairs),
        infonce(query[one], key[other], has_q[one], has_k[other], tau),
    ):
        weights = torch.tensor([1.0, 2.0, 3.0, -4.0], dtype=torch.float64)
        loss = weights @ terms.forward + weights.flip(0) @ terms.backward
        gradients.append([loss.detach(), terms.count, *torch.autograd.grad(loss, (query, key))])
    for got, expected in zip(*gradients):
        torch.testing.assert_close(got, expected)
    assert gradients[0][2][1].abs().max() == 0, "query 1 is in no pair"


def test_a_group_is_no_negative_to_itself():
    query, key = unit_vectors(2, 7, 4), unit_vectors(2, 7, 4, seed=1)
    has_q, has_k = some_present(2, 7), some_present(2, 7, seed=1)
    groups = torch.tensor([4, 1, 4, 9, 1, 4, 0])
    got = infonce(query, key, has_q, has_k, torch.tensor([0.3]), groups=groups)
    for m in range(2):
        ahead, _ = one_way(query[m], key[m], has_q[m], has_k[m], 0.3, groups)
        back, _ = one_way(key[m], query[m], has_k[m], has_q[m], 0.3, groups)
        assert got.forward[m].item() == pytest.approx(ahead, rel=1e-6)
        assert got.backward[m].item() == pytest.approx(back, rel=1e-6)
    alone = infonce(query, key, has_q, has_k, torch.tensor([0.3]), groups=torch.zeros(7, dtype=torch.int64))
    assert alone.forward.abs().max() < 1e-6, "a positive and no negatives"


def test_what_an_absent_row_holds_does_not_leak():
    results = []
    for rubbish in (0.0, float("nan"), float("inf"), 1e30):
        query, key = unit_vectors(2, 6, 3), unit_vectors(2, 6, 3, seed=1)
        has_q, has_k = some_present(2, 6, share=0.3), some_present(2, 6, seed=3, share=0.3)
        query[~has_q], key[~has_k] = rubbish, rubbish
        tau = torch.tensor([0.2], dtype=torch.float64)
        for x in (query, key, tau):
            x.requires_grad_()
        terms = infonce(query, key, has_q, has_k, tau)
        (terms.forward.sum() + terms.backward.sum()).backward()
        results.append([terms.forward, terms.backward, query.grad, key.grad, tau.grad])
    assert results[0][2][~has_q].abs().max() == 0 and results[0][3][~has_k].abs().max() == 0
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other))


def test_shapes_that_do_not_fit_are_named():
    query, there = unit_vectors(2, 6, 3), some_present(2, 6)
    tau = torch.tensor([0.2])
    for args, options, words in (
        ((query, query[:1], there, there[:1]), {}, r"as many queries as keys, got 2 and 1.*pairs="),
        ((query, query[..., :2], there, there), {}, r"got \(2, 6, 3\), \(2, 6, 2\)"),
        ((query, query, there, there[:, :5]), {}, r"\(2, 5\)"),
        ((query[:, :3], query, there, there), {"first": 4}, "3 samples|n samples from 4"),
        ((query, query, there, there), {"groups": torch.zeros(5, dtype=torch.int64)}, r"groups: expected \(6,\)"),
        ((query, query, there, there), {"groups": torch.zeros(6)}, r"integers, got torch.float32"),
    ):
        with pytest.raises(DataError, match=words):
            infonce(*args, tau, **options)


@pytest.mark.parametrize("samples", [20, 21])
def test_the_form_is_chosen_by_the_whole_batch_not_by_a_ranks_part_of_it(samples, monkeypatch):
    """One process and several ranks must compute alike: float32 rounds differently in each form."""
    taken = []
    for name in ("batched_infonce", "tiled_infonce"):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, f=plain, name=name: taken.append(name) or f(*args))
    monkeypatch.setattr(module, "WHOLE", 2 * 20**2)
    x = unit_vectors(2, samples, 3)
    ranks = type("Ranks", (), {"sum": staticmethod(lambda x: x), "max": staticmethod(lambda x: x)})()
    for rows in (slice(0, samples), slice(0, 2), slice(5, 5)):
        taken.clear()
        infonce(x[:, rows], x, None, None, torch.tensor([0.3]), first=rows.start, ranks=ranks)
        assert taken[0] == ("batched_infonce" if samples == 20 else "tiled_infonce")


def test_by_default_nothing_is_kept_where_little_would_fit(monkeypatch):
    monkeypatch.setitem(module.MEMORY, "cpu", 1000)
    x = torch.zeros(2, 20, 3)
    assert module.default_memory(x, x, pairs=2) == module.default_memory(x, x, pairs=2, held=0) == 1000
    assert module.default_memory(x, x, pairs=2, held=300) == 700, "what the caller holds counts"
    assert module.default_memory(x, x, pairs=2, held=601) == 0, "less than an eighth of 2 * 20 * 20 * 4 bytes"
    assert module.default_memory(x[:, :5], x, pairs=2, held=601) == 399, "a rank makes its own rows only"
