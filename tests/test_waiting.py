"""On a GPU every number that is read waits for all its work: how often a step reads one, and that nothing is lost by it."""

import collections
import math
import traceback

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import load
from centrobind.data import Samples, train_and_valid
from centrobind.errors import DataError, RunError
from centrobind.objectives.anchored import AnchorInfoNCE
from centrobind.objectives.table import LeaveOneOut
from centrobind.training import loop
from centrobind.training.config import TrainConfig
from centrobind.training.loop import train
from centrobind.training.replay import replay
from centrobind.training.run_folder import RunFolder
from test_replay import Breaks
from test_train import go, log_of, same_weights

READS = ("_local_scalar_dense", "nonzero", "masked_select")


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU, by the file of ours that does it."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def read(self, what):
        files = [frame.filename for frame in traceback.extract_stack() if "/centrobind/" in frame.filename]
        self.counts[files[-1].rpartition("/centrobind/")[2] if files else what] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_bool = any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for each in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        name = str(function)
        if any(read in name for read in READS) or (name.startswith("aten.index") and by_bool):
            self.read(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waiting(monkeypatch):
    """As on a GPU: looked at every ten steps."""
    monkeypatch.setattr(loop, "look_every", lambda device, divided: 10)


def reads(steps, missing, monkeypatch, chunk):
    draw = np.random.default_rng(0)
    columns = {m: draw.normal(size=(600, 8 + i)) for i, m in enumerate("abc")}
    columns["t"] = [f"word{i % 40} word{i % 7}" for i in range(600)]
    present = {m: draw.random(600) > missing for m in "bt"}
    samples = Samples.of(columns, present=present)
    binder = build_binder(samples, dim=8)
    mode = Reads()
    plain = torch.Tensor.tolist
    with monkeypatch.context() as patch, mode:
        patch.setattr(torch.Tensor, "tolist", lambda self: mode.read("tolist") or plain(self))
        train(
            binder, LeaveOneOut(), samples, None, TrainConfig(steps=steps, batch_size=200, log_every=1000, chunk=chunk)
        )
    return mode.counts


@pytest.mark.parametrize("chunk", [None, 64])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_how_often_a_step_waits(waiting, missing, chunk, monkeypatch):
    """Once in ten steps for training, and once in each for the comparison, which looks how far its exponents reach."""
    few, more = (reads(steps, missing, monkeypatch, chunk) for steps in (10, 30))
    per_step = {name: (more[name] - few[name]) / 20 for name in more}
    outside = {name: count for name, count in per_step.items() if not name.startswith("objectives/")}
    assert outside["training/finite.py"] == 0.1
    assert sum(outside.values()) <= 0.1 + 1e-9, per_step
    assert sum(per_step.values()) <= 2, per_step


def test_looking_seldom_changes_no_number(mixed, tmp_path, monkeypatch):
    folders = [RunFolder(tmp_path / name) for name in ("often", "seldom")]
    often = go(mixed, run=folders[0], log_every=5, steps=23)
    monkeypatch.setattr(loop, "look_every", lambda device, divided: 10)
    seldom = go(mixed, run=folders[1], log_every=5, steps=23)
    assert same_weights(often, seldom)
    assert log_of(folders[0]) == log_of(folders[1])


@pytest.mark.parametrize("how", [math.nan, math.inf, "gradient"])
def test_a_step_that_is_not_finite_is_found_at_the_next_look_and_can_be_done_again(mixed, tmp_path, waiting, how):
    mixed = mixed.only(["series", "vector"])
    learn, valid = train_and_valid(mixed)
    settings = TrainConfig(
        steps=40, batch_size=16, log_every=40, validate_every=40, checkpoint_every=12, tensorboard=False
    )

    def run(name, objective, **more):
        folder = RunFolder(tmp_path / name)
        binder = build_binder(learn, dim=8)
        return (
            folder,
            binder,
            lambda: train(binder, objective, learn, valid, settings.model_copy(update=more), run=folder),
        )

    _, _, sound = run("sound", Breaks(100, math.nan), steps=40, keep="last")
    monitor = []
    plain = loop.advance

    def advance(state, *args):
        if state.step == 13:
            monitor.append({name: value.clone() for name, value in state.modules["towers"].state_dict().items()})
        return plain(state, *args)

    loop.advance = advance
    try:
        sound()
    finally:
        loop.advance = plain
    breaks = Breaks(13, how)
    folder, binder, broken = run("broken", breaks)
    with pytest.raises(RunError, match="step 14 is not finite"):
        broken()
    assert len(breaks.seen) > 14, "it was found later"
    assert all(torch.equal(value, monitor[0][name]) for name, value in binder.state_dict().items()), (
        "nothing was updated"
    )
    again = replay(tmp_path / "broken", objective=Breaks(0, how))
    assert again.step == 14 and not (math.isfinite(again.loss) and math.isfinite(again.gradient))
    _, state = folder.read_last()
    assert state["step"] == 12 and all(torch.isfinite(value).all() for value in load(tmp_path / "broken").parameters())


def test_a_batch_without_a_positive_is_named_though_nobody_asks(mixed, waiting):
    """Its loss is not finite, and doing the step again says why."""
    learn, _ = train_and_valid(mixed)

    def nobody(views):
        return views.with_z(views.z, views.present & False)

    settings = TrainConfig(steps=20, batch_size=16)
    with pytest.raises(DataError, match="nothing to learn from in this batch"):
        train(build_binder(learn, dim=4), AnchorInfoNCE(nobody), learn, None, settings)
