"""Chunks of any size give the gradient of the whole batch."""

from dataclasses import replace

import pytest
import torch

from centrobind.binder.augment import augment
from centrobind.binder.binder import build_binder
from centrobind.objectives.table import LeaveOneOut
from centrobind.seeds import seeded
from centrobind.training.gradcache import GradCache, chunks
from centrobind.training.run_folder import RunFolder
from test_train import Stopped, go, log_of, same_weights

SIZES = [1, 4, 7, 24, 100]


def batch_of(mixed, dropout=0.0):
    """24 samples in float64, with gaps and one modality that a whole chunk lacks; and their views."""
    binder = build_binder(mixed, dim=6, encoders={"vector": {"encoder": "mlp", "dropout": dropout}})
    batch = binder.prepare(mixed.batch(range(24)))
    view = augment(batch, binder.kinds, seed=(0, 1))
    return binder.double(), in_float64(batch), in_float64(view)


def in_float64(batch):
    return replace(batch, inputs={k: x.double() if x.is_floating_point() else x for k, x in batch.inputs.items()})


def gradients(binder):
    found = {name: value.grad.clone() for name, value in binder.named_parameters()}
    binder.zero_grad()
    return found


def test_chunks_are_the_batch(mixed):
    _, batch, _ = batch_of(mixed)
    for size in SIZES:
        parts = list(chunks(batch, size))
        assert all(len(part) <= size for _, part in parts)
        assert torch.equal(torch.cat([part.present for _, part in parts], 1), batch.present)
        assert [i for _, part in parts for i in part.ids] == list(batch.ids)
        for name, values in batch.inputs.items():
            assert torch.equal(torch.cat([part.inputs[name] for _, part in parts]), values)
        for _, part in parts:
            assert [len(values) for values in part.inputs.values()] == part.present.sum(1).tolist()


@pytest.mark.parametrize("size", SIZES)
def test_any_chunk_size_gives_the_gradient_of_the_whole_batch(mixed, size):
    binder, batch, view = batch_of(mixed)
    objective = LeaveOneOut(learn_temperature=True).double()
    expected = objective(binder(batch), views=binder(view))
    expected.total.backward()
    wanted, temperature = gradients(binder), gradients(objective)
    cache = GradCache(binder, size, 3)
    got = objective(cache(batch), views=cache(view))
    got.total.backward()
    assert all(value.grad is None for value in binder.parameters()), "nothing has reached the towers yet"
    cache.backward()
    torch.testing.assert_close(got.total, expected.total, rtol=1e-12, atol=0)
    for name, value in gradients(binder).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(gradients(objective), temperature)


def test_dropout_is_the_same_in_both_passes(mixed):
    binder, batch, view = batch_of(mixed, dropout=0.5)
    objective = LeaveOneOut().double()
    cache = GradCache(binder, 7, 3)
    one, other = cache(batch), cache(view)
    objective(one, views=other).total.backward()
    cache.backward()
    got = gradients(binder)
    made = []
    for call, whole in enumerate((batch, view)):  # the same draws with the graph of everything at once
        parts = []
        for place, (_, part) in enumerate(chunks(whole, 7)):
            with seeded(3, call, place):
                parts.append(binder(part).z)
        made.append(one.with_z(torch.cat(parts, 1)))
    assert torch.equal(made[0].z, one.z) and torch.equal(made[1].z, other.z)
    objective(made[0], views=made[1]).total.backward()
    for name, value in gradients(binder).items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12)


def test_a_frozen_tower_stays_out_of_it(mixed):
    binder, batch, _ = batch_of(mixed)
    binder.requires_grad_(False)
    cache = GradCache(binder, 5, 3)
    LeaveOneOut().double()(cache(batch)).total.backward()
    cache.backward()
    assert all(value.grad is None for value in binder.parameters())


def test_training_in_chunks_is_training(mixed, tmp_path):
    losses = {}
    for name, chunk in (("whole", None), ("chunked", 5), ("other", 5)):
        run = RunFolder(tmp_path / name)
        go(mixed, run=run, steps=4, chunk=chunk, augment=0.5 if name == "other" else 1.0)
        losses[name] = [record["loss"] for record in run.read_log()]
    assert losses["chunked"] == pytest.approx(losses["whole"], rel=1e-4)
    assert losses["chunked"] != pytest.approx(losses["other"], rel=1e-4), "a comparison that could not fail"


@pytest.mark.parametrize("name", ["leave_one_out", "random"])
def test_resumed_is_uninterrupted_in_chunks(name, mixed, tmp_path):
    def stop(done, **_):
        if done == 5:
            import signal

            signal.raise_signal(signal.SIGINT)

    whole = RunFolder(tmp_path / "whole")
    expected = go(mixed, name, whole, chunk=5)
    folder = RunFolder(tmp_path / "stopped")
    folder.write_config("x: 1")
    with pytest.raises(Stopped, match="stopped after step 5"):
        go(mixed, name, folder, stop, chunk=5)
    resumed = RunFolder(tmp_path / "stopped", resume=True)
    assert same_weights(go(mixed, name, resumed, chunk=5), expected)
    assert log_of(resumed) == log_of(whole)
