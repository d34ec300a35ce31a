"""A step that is not finite stops the run, says why, and can be done again from what it leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import read_tensors
from centrobind.data import Sampler, Samples
from centrobind.errors import CheckpointError, RunError
from centrobind.objectives.anchored import AnchorInfoNCE
from centrobind.objectives.anchors import random_modality
from centrobind.objectives.base import Loss
from centrobind.training import replay as module
from centrobind.training.config import TrainConfig, check_config, make_objective
from centrobind.training.fit import run_config
from centrobind.training.loop import train
from centrobind.training.replay import replay
from centrobind.training.run_folder import RunFolder

FAST = TrainConfig(steps=12, batch_size=20, checkpoint_every=2, tensorboard=False)


class Breaks(AnchorInfoNCE):
    """An objective whose loss or gradient breaks at its n-th step; remembers what the loss was before that."""

    def __init__(self, at, how):
        super().__init__(random_modality, temperature=0.1, learn_temperature=True)
        self.at, self.how, self.seen = at, how, []

    def compare(self, z, views, groups=None):
        loss = super().compare(z, views, groups)
        self.seen.append(loss.total.item())
        if len(self.seen) <= self.at:
            return loss
        # The gradient of a square root at zero is infinite, and 0 * inf is NaN, while its value is fine.
        broken = loss.total + (0 * loss.total).sqrt() if self.how == "gradient" else loss.total * torch.tensor(self.how)
        return Loss(broken, loss.measure)


@pytest.mark.parametrize("how", ["gradient", float("inf"), float("-inf"), float("nan")])
def test_the_step_is_done_again_bit_for_bit(mixed, tmp_path, how):
    """With dropped words, gaps and a random anchor: the loop's step, the one of the report, and the replayed one."""
    binder = build_binder(mixed, dim=8)
    objective = Breaks(7, how)
    with pytest.raises(RunError, match=r"step 8 is not finite.*`centrobind replay .*run` does this step again"):
        train(binder, objective, mixed, None, FAST, run=RunFolder(tmp_path / "run"))
    assert len(objective.seen) == 9 and objective.seen[7] == objective.seen[8]
    assert all(torch.isfinite(value).all() for value in binder.parameters()), "the step was not taken"

    fresh = Breaks(0, how)
    again = replay(tmp_path / "run", objective=fresh)
    assert fresh.seen == [objective.seen[7]] and again.step == 8
    told = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert (str(again.loss), str(again.gradient), again.found) == (told["loss"], told["gradient"], told["found"])
    assert np.isfinite(again.loss) == (how == "gradient") and not np.isfinite(again.gradient)
    assert again.found[0].startswith("gradient of")
    rows = [rows for _, rows in zip(range(8), Sampler(60, 20, 0))][-1]
    assert told["rows"] == rows.tolist() and told["ids"] == mixed.ids[rows] and (told["step"], told["seed"]) == (7, 0)
    with pytest.raises(CheckpointError, match="hand its objective in"):
        replay(tmp_path / "run")


def test_weights_and_batch_are_those_before_the_step(mixed, tmp_path):
    train(good := build_binder(mixed, dim=8), Breaks(99, 0), mixed, None, FAST.model_copy(update={"steps": 12}))
    binder = build_binder(mixed, dim=8)
    with pytest.raises(RunError):
        train(binder, Breaks(7, "gradient"), mixed, None, FAST, run=RunFolder(tmp_path / "run"))
    kept, _ = read_tensors(tmp_path / "run" / "nonfinite.safetensors", prefix="towers/")
    assert all(torch.equal(kept[f"towers/{name}"], value) for name, value in binder.state_dict().items())
    assert not all(torch.equal(kept[f"towers/{name}"], value) for name, value in good.state_dict().items())


@pytest.mark.parametrize("kind", ["vector", "picture", "series"])
def test_what_is_not_finite_is_named_with_its_samples(mixed, tmp_path, kind):
    binder = build_binder(mixed, dim=8)
    column = mixed.columns[kind]
    owner = int(np.flatnonzero(column.present)[5])
    values = np.array(column.values, np.float32)
    values[column.rows[owner]] = np.nan  # as a flipped bit on the disk would, behind the back of the checks
    broken = replace(mixed, columns=mixed.columns | {kind: replace(column, values=values)})
    with pytest.raises(RunError, match=rf"began with inputs of {kind} \(samples '{owner}'\)"):
        train(binder, Breaks(99, 0), broken, None, FAST)


def test_weights_and_embeddings_are_named_by_modality(mixed):
    binder = build_binder(mixed, dim=8)
    with torch.no_grad():
        binder.towers["series"].head.weight[0, 0] = torch.inf
    with pytest.raises(RunError, match="began with weights of series"):
        train(binder, Breaks(99, 0), mixed, None, FAST)
    binder = build_binder(mixed, dim=8)
    with torch.no_grad():
        binder.towers["text"].head.weight.fill_(1e38)  # finite, but their products are not
        binder.towers["text"].encoder.mix[1].weight.mul_(1e6)
    with pytest.raises(RunError, match="began with embeddings of text"):
        train(binder, Breaks(99, 0), mixed, None, FAST)


def test_by_the_command_line(mixed, tmp_path, monkeypatch):
    """A run with a config needs nothing but its folder: neither the data nor a line of Python."""
    from typer.testing import CliRunner

    from centrobind.cli.main import app

    config = check_config(
        {
            "data": "-",
            "out": str(tmp_path / "run"),
            "dim": 8,
            "start": "scratch",
            "objective": {"name": "random", "learn_temperature": True},
            "train": {"steps": 9, "batch_size": 20, "tensorboard": False},
        }
    )
    column = mixed.columns["vector"]
    learns = build_binder
    mixed.columns["vector"].values[column.rows[np.flatnonzero(column.present)[40]]] = 3e38  # finite until it is squared
    monkeypatch.setattr("centrobind.training.recipe.build_binder", lambda samples, **o: calm(learns(samples, **o)))
    with pytest.raises(RunError, match="is not finite"):
        run_config(config, mixed)
    said = CliRunner().invoke(app, ["replay", str(tmp_path / "run")])
    told = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert said.exit_code == 0, said.output
    assert f"step {told['step'] + 1}: loss {told['loss']}" in said.output and "not finite: " in said.output
    assert isinstance(make_objective(config.objective, mixed.modalities), AnchorInfoNCE)
    RunFolder(tmp_path / "run", replace=True)
    with pytest.raises(CheckpointError, match="no such file"):
        replay(tmp_path / "run")


def calm(binder):
    """Inputs not standardised: the mean of a huge value would be huge as well."""
    inputs = binder.towers["vector"].inputs
    inputs.mean.zero_()
    inputs.std.fill_(1)
    return binder


def test_a_bundle_that_does_not_fit_together_is_refused(mixed, tmp_path):
    with pytest.raises(RunError):
        train(build_binder(mixed, dim=8), Breaks(1, "gradient"), mixed, None, FAST, run=RunFolder(tmp_path / "run"))
    tensors, state = read_tensors(tmp_path / "run" / "nonfinite.safetensors")
    for broken in (
        state | {"modalities": ["nowhere"]},
        state | {"binder": None},
        {key: value for key, value in state.items() if key != "seed"},
        state | {"config": {"objective": 3}},
    ):
        module.write_tensors(tmp_path / "x.safetensors", tensors, broken)
        chosen = None if broken["config"] else Breaks(0, "gradient")
        with pytest.raises((CheckpointError, ValueError), match="x.safetensors"):
            replay(tmp_path / "x.safetensors", objective=chosen)


def test_a_run_without_a_folder_is_stopped_the_same():
    samples = Samples.of({"a": np.eye(6), "b": np.eye(6), "c": np.eye(6)})
    with pytest.raises(RunError, match=r"step 3 is not finite: loss nan.*higher temperature$"):
        train(
            build_binder(samples, dim=4),
            Breaks(2, float("nan")),
            samples,
            None,
            FAST.model_copy(update={"batch_size": 3}),
        )
