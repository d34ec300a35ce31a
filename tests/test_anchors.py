"""Every anchor: the contract all of them keep, the loop each equals, and the property that defines it."""

import pytest
import torch

from centrobind.errors import DataError
from centrobind.objectives import anchors
from centrobind.types import Embeddings
from twins import loop_anchor, some_present, unit_vectors

NAMES = ("centrobind", "leave_one_out", "weighted", "learned", "random", "fabind", "unimodal")
WEIGHTS = [2.0, 1.0, 0.5, 1.0, 3.0]


def make(name, count):
    letters = "abcde"[:count]
    return {
        "centrobind": lambda: anchors.centroid,
        "leave_one_out": lambda: anchors.leave_one_out,
        "weighted": lambda: anchors.weighted(dict(zip(letters, WEIGHTS))),
        "learned": lambda: learned(count),
        "random": lambda: anchors.random_modality,
        "fabind": lambda: anchors.fixed(letters[count // 2]),
        "unimodal": lambda: anchors.own_view,
    }[name]()


def learned(count):
    made = anchors.LearnedWeights(count).double()
    with torch.no_grad():
        made.scores.copy_(torch.tensor(WEIGHTS[:count]).log())
    return made


def embeddings(count, samples=6, dim=4, seed=0, **options):
    present = some_present(count, samples, seed=seed, **options)
    z = unit_vectors(count, samples, dim, seed=seed) * present[..., None]
    return Embeddings(z, present, tuple("abcde"[:count]))


def drawn(count):
    """The modality that random_modality draws right after this seed."""
    torch.manual_seed(5)
    which = int(torch.randint(count, ()))
    torch.manual_seed(5)
    return which


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_loop(name, count):
    views = embeddings(count)
    with torch.random.fork_rng():
        which = drawn(count) if name == "random" else count // 2
        got = make(name, count)(views)
    weights = WEIGHTS if name in ("weighted", "learned") else None
    made, has = loop_anchor(name, views.z, views.present, which, weights)
    assert got.present.tolist() == has
    expected = torch.tensor(made, dtype=torch.float64)
    torch.testing.assert_close(torch.where(got.present[..., None], got.z, 0).double(), expected)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(name, count):
    views = embeddings(count)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        got = make(name, count)(views)
        order = torch.randperm(len(views), generator=torch.Generator().manual_seed(0))
        torch.manual_seed(5)
        shuffled = make(name, count)(views.take(order))
    assert got.z.shape == views.z.shape and got.present.shape == views.present.shape
    assert got.modalities == views.modalities
    torch.testing.assert_close(shuffled.z, got.z[:, order])  # samples do not see each other
    assert torch.equal(shuffled.present, got.present[:, order])
    lengths = got.z.norm(dim=-1)
    assert lengths.max() <= 1 + 1e-9  # a mean of unit vectors is no longer than one


def test_centroid_of_one_modality_is_no_anchor():
    views = embeddings(3)
    views.present[:, 4] = torch.tensor([True, False, False])
    assert not anchors.centroid(views).present[:, 4].any()


def test_leave_one_out_does_not_hear_its_own_modality():
    views = embeddings(3, share=1.0)
    before = anchors.leave_one_out(views).z[1]
    views.z[1] = unit_vectors(1, 6, 4, seed=9)[0]
    torch.testing.assert_close(anchors.leave_one_out(views).z[1], before)


def test_frozen_anchor_gets_no_gradient():
    views = embeddings(3)
    views.z.requires_grad_()
    assert not anchors.fixed("a", frozen=True)(views).z.requires_grad
    anchors.fixed("a")(views).z.sum().backward()
    assert views.z.grad[0].abs().sum() > 0 and views.z.grad[1:].abs().sum() == 0


def test_equal_weights_are_the_centroid_and_one_weight_is_that_modality():
    views = embeddings(3, share=1.0)
    torch.testing.assert_close(anchors.weighted({})(views).z, anchors.centroid(views).z)
    torch.testing.assert_close(anchors.LearnedWeights(3)(views).z, anchors.centroid(views).z)
    alone = anchors.weighted({"a": 1.0, "b": 0.0, "c": 0.0})(views)
    torch.testing.assert_close(alone.z[1], views.z[0])


def test_learned_weights_have_a_gradient_and_do_not_overflow():
    views = embeddings(3)
    made = anchors.LearnedWeights(3).double()
    made(views).z[..., 0].sum().backward()
    assert made.scores.grad.abs().sum() > 0
    with torch.no_grad():
        made.scores.copy_(torch.tensor([800.0, 0.0, -800.0]))
    assert torch.isfinite(made(views).z).all()


@pytest.mark.parametrize(
    ("make_anchor", "says"),
    [
        (lambda: anchors.weighted({"a": -1.0}), "not be negative"),
        (lambda: anchors.weighted({"z": 1.0}), "'z'"),
        (lambda: anchors.weighted({"a": 0.0, "b": 0.0, "c": 0.0}), "above 0"),
        (lambda: anchors.fixed("z"), "'z'"),
    ],
)
def test_errors_name_the_modality(make_anchor, says):
    with pytest.raises(DataError, match=says):
        make_anchor()(embeddings(3))


def test_a_random_anchor_is_one_that_somebody_can_be_drawn_to():
    """c is there, but never beside another; without any pair, whatever is drawn has no anchor to give."""
    present = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    views = Embeddings(torch.randn(3, 4, 5), present, ("a", "b", "c"))
    drawn = set()
    for seed in range(40):
        torch.manual_seed(seed)
        (itself,) = (~anchors.random_modality(views).present.any(1)).nonzero()  # the anchor has none
        drawn.add(int(itself))
    assert drawn == {0, 1}
    alone = Embeddings(views.z, torch.eye(3, 4).bool(), views.modalities)
    assert not (anchors.random_modality(alone).present & alone.present).any()
