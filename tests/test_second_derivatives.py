"""Gradients of gradients (gradient penalties, Hessian products): right above and below the sizes at which forms change.

All losses here are plain: the gradient of a squared one depends on the loss itself, and would be refused by what lets
a wrong second derivative of a plain one through.
"""

import pytest
import torch

from centrobind.errors import RunError
from centrobind.objectives import comparison, tiled_tuples, tiles
from centrobind.objectives.infonce import infonce
from centrobind.objectives.table import OBJECTIVES
from forms import batched, tiled
from test_objectives import make
from twins import some_present, unit_vectors

PAIRS = [(0, 1), (1, 1), (2, 0)]
COUNTS = [(name, count) for name in OBJECTIVES for count in (2, 3, 5) if name != "triangle" or count == 3]


def gradient(objective, inputs, present, **options):
    """Of the plain loss, by the raw embeddings, of which the views are made; the same draws each time."""
    views = {name: x + 0.3 * x.flip(1) for name, x in zip("abcde", inputs)}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        total = objective(dict(zip("abcde", inputs)), views=views, present=present).total
    return torch.autograd.grad(total, inputs, **options)


@pytest.mark.parametrize("samples", [40, 190])
@pytest.mark.parametrize(("name", "count"), COUNTS)
def test_hessian_products_are_differences_of_gradients(name, count, samples):
    draw = torch.Generator().manual_seed(count)
    common = torch.randn(samples, 6, generator=draw, dtype=torch.float64)
    inputs = [common + torch.randn(samples, 6, generator=draw, dtype=torch.float64) for _ in range(count)]
    present = {"b": torch.rand(samples, generator=draw) < 0.8}
    along = [torch.randn(samples, 6, generator=draw, dtype=torch.float64) for _ in inputs]
    objective = make(name, count)

    leaves = [x.clone().requires_grad_() for x in inputs]
    first = gradient(objective, leaves, present, create_graph=True)
    product = torch.autograd.grad(sum((g * v).sum() for g, v in zip(first, along)), leaves)

    step = 1e-5
    ahead, back = (
        gradient(objective, [(x + side * v).requires_grad_() for x, v in zip(inputs, along)], present)
        for side in (step, -step)
    )
    expected = [(one - other) / (2 * step) for one, other in zip(ahead, back)]
    scale = max(x.abs().max() for x in expected)
    assert scale > 1e-5
    for got, wanted in zip(product, expected):
        assert (got - wanted).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("reaches", [550.0, 0.0], ids=["one exponential", "careful"])
@pytest.mark.parametrize("form", [batched, tiled])
def test_second_derivatives_are_right_with_gaps_and_groups(form, reaches, monkeypatch):
    monkeypatch.setitem(tiles.TILES, "cpu", (3, 5))
    monkeypatch.setitem(comparison.LARGEST, torch.float64, reaches)
    query, key = unit_vectors(3, 7, 3).requires_grad_(), unit_vectors(3, 7, 3, seed=1).requires_grad_()
    tau = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    has_q, has_k = some_present(3, 7), some_present(3, 7, seed=3)
    has_q[2] = False  # nobody has it: a term without a positive, and columns without candidates
    groups = torch.tensor([0, 1, 2, 0, 4, 5, 1])

    def sums(q, k, t):
        return form(q, k, has_q, has_k, t, pairs=PAIRS, groups=groups)

    assert torch.autograd.gradgradcheck(sums, (query, key, tau))


@pytest.mark.parametrize(("name", "count"), [("symile", 3), ("gram", 3), ("triangle", 3), ("gram", 5)])
def test_second_derivatives_of_tuples_are_those_of_one_matrix(name, count, monkeypatch):
    inputs = [x.requires_grad_() for x in unit_vectors(count, 9, 4)]
    objective, found = make(name, count, learn_temperature=True), []
    for up_to in (0, 1000):
        monkeypatch.setattr(tiled_tuples, "DENSE_UP_TO", up_to)
        wanted = [*inputs, objective.temperature.log]
        first = gradient(objective, inputs, None, create_graph=True)
        found.append(torch.autograd.grad(sum(g[:, 0].sum() for g in first), wanted))
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_a_key_that_is_made_of_the_query_does_not_count_twice():
    x, there = unit_vectors(2, 6, 3).requires_grad_(), torch.ones(2, 6, dtype=torch.bool)
    tau = torch.tensor([0.3], dtype=torch.float64)

    def gradient_of(x, create_graph):
        total = infonce(x, 2 * x, there, there, tau, pairs=[(0, 1)]).forward.sum()
        return torch.autograd.grad(total, x, create_graph=create_graph)[0]

    torch.testing.assert_close(gradient_of(x, True), gradient_of(x, False))
    assert torch.autograd.gradcheck(lambda x: gradient_of(x, True), (x,))


def test_a_gradient_that_needs_no_graph_holds_no_matrix(monkeypatch):
    monkeypatch.setattr(comparison, "dense_gradients", pytest.fail)
    x, there = unit_vectors(2, 6, 3).requires_grad_(), torch.ones(2, 6, dtype=torch.bool)
    infonce(x, x, there, there, torch.tensor([0.3])).forward.sum().backward()
    assert x.grad.any()


def test_what_ranks_share_is_refused():
    """A rank has its rows of the matrix only, and exchanges nothing in the backward pass."""
    x, there = unit_vectors(2, 6, 3).requires_grad_(), torch.ones(2, 6, dtype=torch.bool)
    ranks = type("Ranks", (), {"sum": staticmethod(lambda x: x), "max": staticmethod(lambda x: x)})()
    loss = infonce(x[:, :4], x, there, there, torch.tensor([0.3]), ranks=ranks).forward.sum()
    with pytest.raises(RunError, match=r"create_graph=True.*one process"):
        torch.autograd.grad(loss, x, create_graph=True)
