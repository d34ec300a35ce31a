"""The calculator against what torch really allocates while training."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from centrobind.binder.binder import build_binder
from centrobind.cli.main import app, main
from centrobind.data import Samples
from centrobind.training.config import TrainConfig, check_config
from centrobind.training.loop import train
from centrobind.training.memory import allocations, needs, plan
from test_train import objective_for


def vectors(samples):
    draw = np.random.default_rng(0)
    return Samples.of({name: draw.normal(size=(samples, width)) for name, width in zip("abc", (30, 50, 70))})


def pictures(samples):
    draw = np.random.default_rng(0)
    return Samples.of(
        {
            "picture": draw.integers(0, 255, (samples, 16, 16)).astype(np.uint8),
            "series": draw.normal(size=(samples, 20, 3)),
            "text": [f"w{i % 37} x{i % 11} y" for i in range(samples)],
        }
    )


def test_allocations_are_counted():
    kept, live, peak = allocations(lambda: (torch.zeros(1000) + torch.zeros(1000)).sum(0, keepdim=True).expand(5))
    assert live == 4 * kept.untyped_storage().size() / 4 and peak == 3 * 4000
    assert allocations(lambda: None)[1:] == (0, 0)


@pytest.mark.parametrize(
    ("data", "name", "size", "settings", "encoder"),
    [
        (vectors, "leave_one_out", 512, {}, None),
        (vectors, "leave_one_out", 2048, {}, None),
        (vectors, "gram", 1024, {}, None),
        (vectors, "symile", 2048, {}, None),
        (vectors, "triangle", 300, {}, None),
        (vectors, "pmrl", 2048, {}, None),
        (vectors, "all_pairs", 32, {}, {"encoder": "mlp", "width": 1024}),
        (pictures, "all_pairs", 64, {}, None),
        (pictures, "centrobind", 256, {"augment": 0.0}, None),
        (pictures, "fabind", 256, {}, None),
        (pictures, "leave_one_out", 512, {"chunk": 64}, None),
        (vectors, "leave_one_out", 2048, {"chunk": 128}, None),
    ],
)
def test_the_calculator_is_right_within_a_fifth(data, name, size, settings, encoder):
    samples = data(size)
    settings = TrainConfig(steps=2, batch_size=size, tensorboard=False, log_every=100, **settings)
    binder = build_binder(samples, dim=32, encoders=None if encoder is None else dict.fromkeys("abc", encoder))
    objective = objective_for(name, samples.modalities, **({"frozen": True} if name == "fabind" else {}))
    (need,) = needs(binder, objective, samples, settings, [size])
    assert all(value.requires_grad for value in binder.parameters()), "left as it was"
    _, _, most = allocations(lambda: train(binder, objective, samples, None, settings))
    assert need.peak == pytest.approx(need.parameters + most, rel=0.2)
    assert need.parameters == sum(4 * value.numel() for value in [*binder.parameters(), *binder.buffers()]) + 4


def test_batch_sizes_around_the_asked_one(mixed):
    config = check_config(
        {"data": "-", "out": "-", "objective": {"name": "all_pairs"}, "train": {"batch_size": 12}, "dim": 8}
    )
    found = plan(config, mixed)
    assert [need.batch_size for need in found] == [2, 4, 8, 12, 16, 32]
    assert [need.peak for need in found] == sorted(need.peak for need in found)
    assert len({need.optimizer for need in found}) == 1 and found[0].optimizer == 2 * found[0].gradients


def test_command(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("data: synthetic\nout: r\nobjective: {name: leave_one_out}\ntrain: {batch_size: 64, chunk: 16}\n")
    shown = CliRunner().invoke(app, ["inspect", "--plan", str(path)]).output
    assert "batch size" in shown and "16 of them at a time" in shown
    numbers = json.loads(CliRunner().invoke(app, ["inspect", "--plan", str(path), "--json"]).output)
    assert 64 in [need["batch_size"] for need in numbers]
    for arguments in ([], ["synthetic", "--plan", str(path)]):
        monkeypatch.setattr("sys.argv", ["centrobind", "inspect", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2 and "expected a store, or --plan" in capsys.readouterr().err
