import pytest
import torch

from centrobind.infonce import infonce
from twins import one_way, some_present, unit_vectors

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
