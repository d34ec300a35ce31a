"""The default: the closed form as a start, what is learned beside it, and that a run of it can be interrupted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import centrobind as cb
from centrobind.binder.binder import build_binder
from centrobind.binder.linear import KeptFeatures
from centrobind.closed_form.bind import fit_closed_form
from centrobind.data import Samples
from centrobind.errors import ConfigError, Stopped
from centrobind.evaluation.ranks import ROUNDINGS
from centrobind.training import config as settings
from centrobind.training import loop, recipe
from centrobind.training.config import TrainConfig, check_config
from centrobind.training.fit import run_config
from centrobind.training.step import view_strength
from centrobind.training.validation import AMOUNTS, Validation


def related(count=150, modalities=3, seed=0, bent=False):
    """Modalities of different kinds and sizes around one latent, a fifth missing; `bent`: not linear in it."""
    draw = np.random.default_rng(seed)
    latent = draw.normal(size=(count, 4))
    data = {}
    for m in range(modalities):
        turned = latent @ draw.normal(size=(4, 6 + m))
        turned = np.sign(turned) * turned**2 if bent and m % 2 else turned
        data[f"m{m}"] = (turned + 0.3 * draw.normal(size=turned.shape)).astype(np.float32)
    if modalities > 2:
        data["m1"] = np.repeat(data["m1"][:, None], 5, 1) + 0.1 * draw.normal(size=(count, 5, 7)).astype(np.float32)
        data["words"] = ["".join("abcdef"[int(v > 0) + 2 * (i % 3)] for i, v in enumerate(row)) for row in latent]
    present = {name: draw.random(count) > 0.2 for name in data}
    for here in present.values():
        here[:4] = True
    return Samples.of(data, present=present)


def started(samples, **options):
    closed = fit_closed_form(samples)
    return closed, recipe.closed_binder(closed, samples, **{"dim": None, "encoders": None, "seed": 0, **options})


class Own(nn.Module):
    """Somebody's encoder."""

    width = 9

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 9)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_step_zero_is_the_closed_form(modalities):
    samples = related(modalities=modalities)
    encoders = {"m0": Own()} if modalities < 5 else {"m0": "mlp", "m1": "sequence", "words": "transformer"}
    closed, binder = started(samples, encoders=encoders)
    theirs, ours = closed.embed(samples), binder.embed(samples)
    assert ours.dim >= recipe.LEAST_DIM
    torch.testing.assert_close(ours.z @ ours.z.mT, theirs.z @ theirs.z.mT, atol=1e-5, rtol=0)
    assert torch.equal(ours.present, theirs.present)


def test_frozen_path_and_trained_rest():
    samples = related()
    _, binder = started(samples)
    before = {name: value.clone() for name, value in binder.state_dict().items()}
    cb.AllPairs()(binder.train()(binder.prepare(samples.batch(np.arange(50))))).total.backward()
    assert not any(".linear." in name for name, _ in binder.named_parameters())
    loop.train(binder, cb.AllPairs(), samples, None, TrainConfig(steps=3, batch_size=32))
    changed = {name for name, value in binder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any(".linear." in name for name in changed)


def test_saved_and_loaded(tmp_path):
    samples = related()
    binder = cb.fit(samples, steps=5, show_progress=False)
    again = cb.load(cb.save(binder, tmp_path / "binder"))
    assert again.fingerprint == binder.fingerprint
    assert torch.equal(again.embed(samples).z, binder.embed(samples).z)


def test_a_binder_without_linear_paths_still_opens(tmp_path):
    samples = related()
    binder = cb.fit(samples, steps=2, start="scratch", show_progress=False)
    assert all("linear" not in about for about in binder.describe()["towers"].values())
    assert cb.load(cb.save(binder, tmp_path / "old")).fingerprint == binder.fingerprint


def test_kept_features_are_those_of_the_values():
    samples = related()
    _, binder = started(samples)
    paths = {name: tower.linear for name, tower in binder.towers.items()}
    kept, rows = KeptFeatures.of(paths, samples), np.array([7, 3, 90, 4, 149])
    batch = samples.batch(rows)
    features = kept.batch(rows, samples.modalities)
    for name, values in binder.prepare(batch).features.items():
        torch.testing.assert_close(features[name], values, atol=1e-5, rtol=1e-5)


def test_chunks_of_a_batch_carry_their_features():
    """GradCache's gradient is that of the whole batch."""
    samples = related()
    weights, quiet = [], {"encoder": "residual", "dropout": 0.0, "noise": 0.0}
    for chunk in (None, 7):
        _, binder = started(samples, encoders={name: dict(quiet) for name in samples.modalities})
        binder = loop.train(binder, cb.AllPairs(), samples, None, TrainConfig(steps=3, batch_size=40, chunk=chunk))
        weights.append(binder.state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=2e-4, rtol=1e-3)


def scores_twin(binder, samples, amount):
    """Mean reciprocal rank and recall from the definition, one query at a time."""
    heads = [tower.head.weight for tower in binder.towers.values()]
    plain = [head.detach().clone() for head in heads]
    with torch.no_grad():
        for head in heads:
            head *= amount
        z = binder.embed(samples)
        for head, weight in zip(heads, plain):
            head.copy_(weight)
    closest = ROUNDINGS * torch.finfo(torch.float32).eps * z.dim**0.5
    directions = []
    for a, b in z.pairs:
        both = (z.present[z.index(a)] & z.present[z.index(b)]).nonzero()[:, 0].tolist()
        candidates = z.present[z.index(b)].nonzero()[:, 0].tolist()
        reciprocal = []
        for i in both:
            right = float(z[a][i] @ z[b][i])
            reciprocal.append(1 / (1 + sum(float(z[a][i] @ z[b][j]) >= right - closest for j in candidates if j != i)))
        directions.append(sum(reciprocal) / len(reciprocal))
    return sum(directions) / len(directions)


@pytest.mark.parametrize("modalities", [2, 5])
def test_a_look_scores_every_amount(modalities):
    draw = np.random.default_rng(1)
    data = {f"m{m}": draw.normal(size=(40, 5 + m)).astype(np.float32) for m in range(modalities)}
    shared = draw.normal(size=(40, 5))
    samples = Samples.of(
        {name: x + 2 * np.pad(shared, ((0, 0), (0, x.shape[1] - 5))).astype(np.float32) for name, x in data.items()},
        present={"m0": draw.random(40) > 0.3},
    )
    _, binder = started(samples)
    loop.train(binder, cb.AllPairs(), samples, None, TrainConfig(steps=20, batch_size=32, lr=0.02))
    look = Validation(binder, samples).look(binder)
    paired = samples.take(np.flatnonzero(samples.present.sum(0) > 1))
    twins = {amount: scores_twin(binder, paired, amount) for amount in AMOUNTS}
    assert look.score == pytest.approx(max(twins.values()), abs=1e-6)
    assert twins[look.amount] == max(twins.values()) and look.start == pytest.approx(twins[0.0], abs=1e-6)
    assert len({round(value, 6) for value in twins.values()}) > 1


def test_what_does_not_help_is_not_kept(monkeypatch):
    """The best of many looks is best by luck: less than the error of the difference counts for nothing."""
    plain = Validation.look
    monkeypatch.setattr(Validation, "look", lambda self, binder: replace(plain(self, binder), sure=False))
    samples, said = related(), []
    binder = recipe.bind(plan_of(samples), say=said.append)
    closed = recipe.closed_binder(fit_closed_form(samples), samples, dim=None, encoders=None, seed=0)
    assert torch.equal(binder.embed(samples).z, closed.embed(samples).z)
    assert "training did not help" in said[-2] and "stopped at step 0" in said[-1]


def test_sure_means_more_than_the_error_of_the_difference(monkeypatch):
    samples = related(modalities=2)
    _, binder = started(samples)
    validation = Validation(binder, samples)
    for gain, sure in ((0.02, True), (0.001, False)):
        noise = 0.1 * np.random.default_rng(0).normal(size=len(validation.samples))
        shares = iter([noise - noise.mean() + gain, np.zeros(len(noise))])
        monkeypatch.setattr(Validation, "by_sample", lambda self, ranks, shares=shares: next(shares))
        assert validation.look(binder).sure == sure


def plan_of(samples, **options):
    learn, held_out = cb.data.train_and_valid(samples, valid=1 / 6)
    whole, start = samples, "auto"
    how = TrainConfig(batch_size=64, lr=0.02)
    return recipe.Plan(learn, held_out, whole, recipe.default_objective, start, how, fit_temperature=True, **options)


def let_it_help(monkeypatch):
    """Every look is better than the one before, at more than half of what was learned."""
    monkeypatch.setattr(settings, "MOST_STEPS", 40)
    plain = Validation.look

    def look(self, binder):
        learned = sum(tower.head.weight.abs().mean().item() for tower in binder.towers.values())
        return replace(plain(self, binder), numbers={"mean/mrr": learned}, amount=0.6, sure=True)

    monkeypatch.setattr(Validation, "look", look)


def test_what_helps_is_learned_on_everything(monkeypatch):
    let_it_help(monkeypatch)
    samples = related(300, modalities=2, bent=True)
    said = []
    binder = recipe.bind(plan_of(samples), say=said.append)
    assert len(said) == 4 and "after training" in said[2], said
    assert any(tower.head.weight.abs().max() > 0 for tower in binder.towers.values())
    again = recipe.bind(plan_of(samples))
    assert again.fingerprint == binder.fingerprint


def test_starts():
    samples = related()
    options = {"steps": 4, "batch_size": 32, "show_progress": False}
    auto, closed = cb.fit(samples, **options), cb.fit(samples, start="closed_form", **options)
    assert auto.fingerprint == closed.fingerprint
    scratch = cb.fit(samples, start="scratch", objective="centrobind", **options)
    assert all(tower.linear is None for tower in scratch.towers.values())
    unimodal = cb.fit(samples, start="unimodal", objective="centrobind", **options)
    assert unimodal.fingerprint != scratch.fingerprint
    with pytest.raises(ConfigError, match="start: "):
        cb.fit(samples, start="nowhere", **options)
    with pytest.raises(ConfigError, match="residual.*needs start"):
        cb.fit(samples, start="scratch", encoders={"m0": "residual"}, **options)


def test_from_scratch_is_the_recipe_of_the_paper():
    """Bit for bit: the same as fresh encoders and `train`, with views."""
    samples = related()
    learn, held_out = cb.data.train_and_valid(samples, valid=0.1)
    binder = build_binder(learn, dim=64)
    how = TrainConfig(steps=4, batch_size=32)
    assert view_strength(how, binder, cb.CentroBind()) == 1.0
    loop.train(binder, cb.CentroBind(), learn, held_out, how)
    ours = cb.fit(samples, start="scratch", objective="centrobind", steps=4, batch_size=32, show_progress=False)
    assert ours.fingerprint == binder.fingerprint


def config(out, **more):
    values = {"data": "synthetic", "out": str(out), "train": {"batch_size": 64, "tensorboard": False, "lr": 0.02}}
    return check_config({**values, **more})


@pytest.mark.parametrize("stop_at", [3, 25, 50], ids=["first looks", "later", "learning from everything"])
def test_a_run_that_was_stopped_ends_in_the_same_binder(tmp_path, monkeypatch, stop_at):
    let_it_help(monkeypatch)
    samples = related(200, modalities=2, bent=True)
    whole = run_config(config(tmp_path / "whole"), samples)
    plain, count = loop.advance, [0]

    def advance(*args):
        count[0] += 1
        if count[0] == stop_at:
            signalled.append(True)
        return plain(*args)

    signalled = []
    monkeypatch.setattr(loop, "advance", advance)
    monkeypatch.setattr(loop, "stop_on_signal", stopping(signalled))
    with pytest.raises(Stopped):
        run_config(config(tmp_path / "parts"), samples)
    signalled.clear()
    resumed = run_config(config(tmp_path / "parts"), samples, resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert cb.load(tmp_path / "parts").fingerprint == whole.fingerprint


def stopping(signalled):
    from contextlib import contextmanager

    @contextmanager
    def stop_on_signal(at_once=True):
        yield lambda: bool(signalled)

    return stop_on_signal
