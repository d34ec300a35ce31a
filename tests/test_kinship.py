"""Which samples are no negatives of each other in training, and that the loss is told on every way there is."""

import numpy as np
import pytest
import torch

import centrobind as cb
import test_train
from centrobind.data import kinship
from centrobind.errors import RunError
from centrobind.objectives.table import OBJECTIVES
from centrobind.training.replay import replay
from centrobind.training.run_folder import RunFolder
from test_train import go

DRAW = np.random.default_rng(0)
PICTURES, CAPTIONS = 12, 5


def captioned(**more):
    """Five captions each of twelve pictures, a third modality with gaps and sizes all different."""
    count = PICTURES * CAPTIONS
    columns = {
        "picture": np.repeat(DRAW.normal(size=(PICTURES, 8)), CAPTIONS, 0),
        "caption": [f"caption {i}" for i in range(count)],
        "sound": DRAW.normal(size=(count, 5)),
    }
    return cb.Samples.of(columns, present={"sound": DRAW.random(count) < 0.7}, **more)


def partition(codes):
    """The sets of samples of one code."""
    return {frozenset(np.flatnonzero(codes == code).tolist()) for code in np.unique(codes)}


def same_pictures():
    return {frozenset(range(k, k + CAPTIONS)) for k in range(0, PICTURES * CAPTIONS, CAPTIONS)}


def test_equal_values_are_kin():
    assert partition(kinship(captioned())) == same_pictures()


def test_a_group_that_is_a_thing_is_kin_and_one_that_is_not_is_none():
    things = np.repeat(np.arange(PICTURES), CAPTIONS)
    assert partition(kinship(captioned(group=things))) == same_pictures()
    apart = cb.Samples.of({"a": DRAW.normal(size=(40, 3)), "b": DRAW.normal(size=(40, 2))}, group=np.arange(40) % 8)
    assert kinship(apart) is None, "the recordings of a speaker repeat nothing"


def test_nothing_repeats_nothing_is_kin():
    assert kinship(cb.synthetic(50)) is None


def test_a_constant_and_what_is_missing_are_no_kin():
    count = 30
    columns = {"a": DRAW.normal(size=(count, 3)), "b": np.zeros((count, 2))}
    assert kinship(cb.Samples.of(columns)) is None, "all of them would be"
    columns["b"] = np.arange(2.0 * count).reshape(count, 2)
    columns["c"] = np.zeros((count, 1))
    missing = cb.Samples.of(columns, present={"c": np.arange(count) < 2})
    assert partition(kinship(missing)) == {frozenset([0, 1]), *(frozenset([i]) for i in range(2, count))}


def test_classes_and_colours_do_not_chain_everything_together():
    """A modality with few different values joins in only while it does not connect what is unlike."""
    count = 120
    kind, colour = np.arange(count) % 12, np.arange(count) // 2 % 5
    columns = {
        "x": DRAW.normal(size=(count, 3)),
        "kind": [f"kind {k}" for k in kind],
        "colour": [f"c{c}" for c in colour],
    }
    assert partition(kinship(cb.Samples.of(columns))) == {frozenset(np.flatnonzero(kind == k)) for k in range(12)}
    twice = columns | {"kind": [f"kind {k}" for k in colour]}  # the same classes twice chain nothing
    assert partition(kinship(cb.Samples.of(twice))) == {frozenset(np.flatnonzero(colour == c)) for c in range(5)}


class Spy(cb.AllPairs):
    """Remembers which samples it was told are kin."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, z, **more):
        self.told.append((z.ids, more.get("groups")))
        return super().forward(z, **more)


@pytest.mark.parametrize("chunk", [None, 7])
def test_training_tells_the_loss(chunk):
    spy, samples = Spy(), captioned()
    cb.fit(samples, objective=spy, dim=4, steps=4, batch_size=20, chunk=chunk, valid=samples, show_progress=False)
    pictures = np.repeat(np.arange(PICTURES), CAPTIONS)
    for ids, groups in spy.told:
        assert groups is not None
        expected = pictures[ids][:, None] == pictures[ids]
        assert ((groups[:, None] == groups).numpy() == expected).all()


def test_an_objective_that_knows_no_groups_trains_without():
    class Own(cb.AllPairs):
        takes_groups = False

    cb.fit(captioned(), objective=Own(), dim=4, steps=2, batch_size=20, show_progress=False)


def test_captions_of_one_picture_are_not_pushed_apart():
    """At a perfect alignment the loss as trained is nearly 0, not log 5."""
    loss = cb.AllPairs()
    e = torch.nn.functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    e = e.repeat_interleave(5, 0)
    kin = torch.arange(8).repeat_interleave(5)
    assert loss({"a": e, "b": e}, groups=kin).total < 0.01 < 1.6 < loss({"a": e, "b": e}).total


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_with_kin(name):
    samples = captioned(split=["train"] * 50 + ["valid"] * 10)
    go(samples, name, dim=4, steps=3)


def test_a_step_that_is_not_finite_is_replayed_with_its_kin(tmp_path, monkeypatch):
    samples, build = captioned(split=["train"] * 50 + ["valid"] * 10), test_train.build_binder

    def then_broken(*given, **more):
        binder = build(*given, **more)
        samples.columns["sound"].values[:] = np.nan  # after the means were learned
        return binder

    monkeypatch.setattr(test_train, "build_binder", then_broken)
    run = RunFolder(tmp_path / "r")
    with pytest.raises(RunError, match="began with inputs of sound"):
        go(samples, "all_pairs", run=run, dim=4, batch_size=20)
    spy = Spy()
    replay(tmp_path / "r", objective=spy)
    ((ids, groups),) = spy.told
    pictures = np.repeat(np.arange(PICTURES), CAPTIONS)[ids]
    assert ((groups[:, None] == groups).numpy() == (pictures[:, None] == pictures)).all()
