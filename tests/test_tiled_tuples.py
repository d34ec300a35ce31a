"""Scores of tuples, made in tiles, give what one matrix gives; the battery of objectives holds that to the formulas."""

import pytest
import torch

from centrobind.objectives import tiled_tuples, tiles
from centrobind.objectives.table import OBJECTIVES
from centrobind.training.memory import allocations
from centrobind.types import Embeddings, unit
from test_objectives import data, make, value
from twins import loop_joint

CASES = [(name, count) for name in ("symile", "gram", "triangle") for count in (2, 3, 5) if name != "triangle"]
CASES.append(("triangle", 3))
SAMPLES = 13  # of which some are not complete


@pytest.fixture(params=[(3, 0), (1, 0), (100, 0), (3, 1000)], ids=["tiles", "single scores", "one tile", "dense"])
def form(request, monkeypatch):
    monkeypatch.setattr(tiled_tuples, "TILE", request.param[0])
    monkeypatch.setattr(tiled_tuples, "DENSE_UP_TO", request.param[1])


GROUPS = [None, torch.arange(SAMPLES) % 4, torch.zeros(SAMPLES, dtype=torch.int64)]


@pytest.mark.parametrize("groups", GROUPS, ids=["no groups", "groups", "one group"])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_equals_the_loop(name, count, groups, form):
    z, views = data(count, samples=SAMPLES)
    complete = int(z.present.all(0).sum())
    assert 2 <= complete < SAMPLES and complete % 3, "the last tile is a narrower one"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = loop_joint(name, z.z, views.z, z.present, 0.3, groups)
    assert value(make(name, count), z, views, groups).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("groups", GROUPS[:2], ids=["no groups", "groups"])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_gradients_are_those_of_one_matrix(name, count, groups, form, monkeypatch):
    z, views = data(count, samples=SAMPLES)
    found = []
    for _ in range(2):
        leaves = [part.z.clone().requires_grad_() for part in (z, views)]
        objective = make(name, count, learn_temperature=True)
        total = value(objective, z.with_z(leaves[0]), views.with_z(leaves[1]), groups)
        found.append([total.detach(), *torch.autograd.grad(3 * total, [*leaves, objective.temperature.log])])
        monkeypatch.setattr(tiled_tuples, "DENSE_UP_TO", 1000)
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert all(each.abs().max() > 1e-4 for each in found[0])


@pytest.mark.parametrize(("name", "count"), CASES)
def test_gradients_are_right(name, count, monkeypatch):
    monkeypatch.setattr(tiled_tuples, "TILE", 3)
    monkeypatch.setattr(tiled_tuples, "DENSE_UP_TO", 0)
    z, views = data(count, samples=9, dim=3)
    objective = make(name, count, learn_temperature=True)

    def total(a, b, _):
        return value(objective, z.with_z(a), views.with_z(b), torch.arange(9) % 4)

    given = (z.z.requires_grad_(), views.z.requires_grad_(), objective.temperature.log)
    assert torch.autograd.gradcheck(total, given, fast_mode=True)


@pytest.mark.parametrize("name", ["symile", "gram", "triangle"])
def test_half_precision_is_compared_in_float32(name, form):
    z, views = (part.with_z(part.z.bfloat16()) for part in data(3, samples=SAMPLES))
    objective = make(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = value(objective, z, views)
    exact = value(objective, *(part.with_z(part.z.float()) for part in (z, views)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["symile", "gram", "triangle", "pmrl", "ova_ib"])
def test_memory_grows_with_the_samples_and_not_with_their_square(name, monkeypatch):
    monkeypatch.setattr(tiled_tuples, "TILE", 128)
    monkeypatch.setitem(tiles.TILES, "cpu", (128, 128))

    def peak(samples):
        made = [unit(torch.randn(3, samples, 8)).requires_grad_() for _ in range(2)]
        there = torch.ones(3, samples, dtype=torch.bool)

        def both_ways():
            z, views = (Embeddings(each, there, tuple("abc")) for each in made)
            objective = OBJECTIVES[name]()
            objective.memory = 0
            objective(z, views=views).total.backward()

        return allocations(both_ways)[2]

    few, more = peak(384), peak(768)
    assert more < 2.3 * few and more < 4 * 768**2, "less than one matrix of scores"
