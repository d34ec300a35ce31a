import pytest
import torch

from centrobind.binder.augment import VIEWS, augment
from centrobind.types import Batch

PREPARED = {
    "vector": lambda: torch.randn(40, 30),
    "sequence": lambda: torch.randn(40, 32, 3),
    "image": lambda: torch.rand(40, 3, 16, 12),
    "text": lambda: torch.randint(0, 50, (40, 6)).sort(1, descending=True).values,
}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", VIEWS)
def test_views_keep_shape_type_and_finiteness_and_change_something(kind):
    x = PREPARED[kind]()
    view = VIEWS[kind](x, 1.0, draw())
    assert view.shape == x.shape and view.dtype == x.dtype and torch.isfinite(view.float()).all()
    assert not torch.equal(view, x)
    assert len(VIEWS[kind](x[:0], 1.0, draw())) == 0


@pytest.mark.parametrize("kind", VIEWS)
def test_strength_zero_changes_nothing(kind):
    x = PREPARED[kind]()
    torch.testing.assert_close(VIEWS[kind](x, 0.0, draw()), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", VIEWS)
def test_stronger_is_further_from_the_original(kind):
    x = PREPARED[kind]()
    near, far = ((VIEWS[kind](x, s, draw()).float() - x.float()).abs().mean() for s in (0.3, 2.0))
    assert far > 1.5 * near


@pytest.mark.parametrize("kind", VIEWS)
def test_the_same_seed_is_the_same_view_and_no_other_randomness_is_touched(kind):
    x = PREPARED[kind]()
    state = torch.random.get_rng_state()
    assert torch.equal(VIEWS[kind](x, 1.0, draw(3)), VIEWS[kind](x, 1.0, draw(3)))
    assert not torch.equal(VIEWS[kind](x, 1.0, draw(3)), VIEWS[kind](x, 1.0, draw(4)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_text_never_loses_all_its_words_and_gains_none():
    x = torch.tensor([[7, 0, 0], [3, 4, 5], [0, 0, 0]]).repeat(200, 1)
    view = VIEWS["text"](x, 3.0, draw())
    assert ((view > 0).any(1) == (x > 0).any(1)).all()
    assert ((view == x) | (view == 0)).all() and (view != x).any()


def test_images_are_moved_by_a_little_and_one_rectangle_is_erased():
    x = torch.zeros(200, 1, 21, 21)
    x[:, :, 10, 10] = 1
    view = VIEWS["image"](x, 1.0, draw())
    where = view.flatten(1).argmax(1)
    kept = view.flatten(1).amax(1) > 0
    distance = torch.maximum((where // 21 - 10).abs(), (where % 21 - 10).abs())[kept]
    assert 0.7 < kept.float().mean() < 1 and 0 < distance.float().mean() < 2 and distance.max() <= 3


def test_sequences_lose_one_stretch_of_time():
    x = torch.full((100, 50, 2), 10.0)
    gone = (VIEWS["sequence"](x, 1.0, draw()) == 0).all(2)
    edges = (gone[:, 1:] != gone[:, :-1]).sum(1)
    assert edges.max() <= 2 and 0.08 < gone.float().mean() < 0.22


def test_a_batch_is_augmented_modality_by_modality():
    x = PREPARED["vector"]()
    batch = Batch({"a": x, "b": x}, torch.ones(2, 40, dtype=torch.bool), torch.arange(40).numpy())
    kinds = {"a": "vector", "b": "vector"}
    one, same, other = (augment(batch, kinds, seed=s) for s in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(one.inputs["a"], same.inputs["a"]) and not torch.equal(one.inputs["a"], other.inputs["a"])
    assert not torch.equal(one.inputs["a"], one.inputs["b"]), "modalities must not share their noise"
    assert torch.equal(batch.inputs["a"], x)
