"""The one call: what it takes, what it refuses, and that it does what a run does."""

import inspect
from functools import partial
from typing import get_type_hints

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind import devices, distributed
from centrobind.devices import choose_device
from centrobind.errors import ConfigError
from centrobind.objectives.anchored import AnchorInfoNCE
from centrobind.objectives.table import OBJECTIVES
from centrobind.training import recipe
from centrobind.training.config import TrainConfig, check_config, make_objective
from centrobind.training.fit import TrainOptions, fit, run_config

QUICK = {"steps": 3, "batch_size": 16, "dim": 4, "show_progress": False}


@pytest.fixture
def data():
    return cb.synthetic(60, modalities=3, missing=0.2)


def same(one, other):
    return one.fingerprint == other.fingerprint


def test_every_setting_is_a_keyword_but_those_of_a_folder():
    fields = {name: field.annotation for name, field in TrainConfig.model_fields.items()}
    of_a_folder = {"checkpoint_every", "log_every", "tensorboard"}
    assert get_type_hints(TrainOptions) == {
        name: kind for name, kind in fields.items() if name not in {*of_a_folder, "valid"}
    }
    assert "valid" in inspect.signature(fit).parameters


def test_settings_reach_training_either_way(data, monkeypatch):
    seen = []
    plain = recipe.train
    monkeypatch.setattr(recipe, "train", lambda *args, **more: seen.append(args[4]) or plain(*args, **more))
    options = {"steps": 3, "batch_size": 16, "chunk": 8, "lr": 1e-2, "warmup": 0.5, "weight_decay": 0.1}
    options |= {"max_grad_norm": 0.5, "augment": 0.2, "precision": "fp32", "validate_every": 2, "keep": "last"}
    one = cb.fit(data, dim=4, show_progress=False, valid=0.3, **options)
    other = cb.fit(data, dim=4, show_progress=False, train=TrainConfig(valid=0.3, **options))
    assert seen == [TrainConfig(valid=0.3, **options)] * 2
    assert same(one, other)
    assert not same(one, cb.fit(data, dim=4, show_progress=False, **options | {"weight_decay": 0.0, "lr": 5e-3}))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batchsize": 4}, r"fit: batchsize: unknown key \(did you mean 'batch_size'\?\), got 4"),
        ({"lr": 99}, r"fit: lr: .*less than or equal to 10, got 99"),
        ({"steps": "many"}, r"fit: steps: .*valid integer"),
        ({"checkpoint_every": 5, "train": TrainConfig()}, r"either in train= or as keywords.*checkpoint_every"),
        ({"train": {"steps": 3}}, r"train= expects a TrainConfig, got dict"),
        ({"device": "gpu"}, r"fit: device: .*pattern.*got 'gpu'"),
        ({"device": "cuda:99"}, r"device: expected auto or one that is there \(.*cpu\), got 'cuda:99'"),
        ({"device": "mps"}, r"device: expected auto or one that is there"),
        ({"dim": 1}, r"fit: dim: .*greater than or equal to 2, got 1"),
        ({"seed": -1}, r"fit: seed: "),
        ({"valid": 1.5}, r"fit: valid: .*less than 1, got 1.5"),
        ({"objective": "leave_on_out"}, r"fit: objective.name: .*did you mean 'leave_one_out'"),
        ({"objective": None}, r"fit: objective.name: expected one of"),
        ({"objective": {"name": "fabind"}}, r"fit: objective.anchor: missing"),
        ({"objective": {"name": "gram", "tau": 1}}, r"fit: objective.tau: unknown key"),
    ],
)
def test_what_it_refuses(data, wrong, says):
    with pytest.raises(ConfigError, match=says):
        cb.fit(
            data,
            **{
                key: value
                for key, value in {**QUICK, **wrong}.items()
                if "train" not in wrong or key not in ("steps", "batch_size")
            },
        )


def test_a_named_objective_and_its_class_train_the_same(data):
    assert same(cb.fit(data, objective="centrobind", **QUICK), cb.fit(data, objective=cb.CentroBind(), **QUICK))
    fixed = {"name": "fabind", "anchor": "m1", "temperature": 0.3}
    own = cb.FABind(anchor="m1", temperature=0.3)
    assert same(cb.fit(data, objective=fixed, **QUICK), cb.fit(data, objective=own, **QUICK))


# ---- objectives as classes -----------------------------------------------------------------------------------------


def made(name):
    takes = inspect.signature(OBJECTIVES[name]).parameters
    return OBJECTIVES[name](
        **{key: value for key, value in {"anchor": "a", "modalities": ("a", "b")}.items() if key in takes}
    )


def test_objectives_are_classes_public_in_the_same_way():
    for name, kind in OBJECTIVES.items():
        assert isinstance(kind, type) and getattr(cb.objectives, kind.__name__) is kind, name
        assert isinstance(made(name), kind) and isinstance(made(name), cb.Objective)
        assert inspect.getdoc(kind) and kind.forward is cb.Objective.forward
    reprs = {repr(made(name)).split("\n")[0] for name in OBJECTIVES}
    assert len(reprs) == len(OBJECTIVES), "what it is stands in the first line"
    assert repr(cb.FABind(anchor="a")) != repr(cb.FABind(anchor="b")) != repr(cb.FABind(anchor="b", frozen=True))
    assert repr(cb.LeaveOneOut(temperature=0.1)) != repr(cb.LeaveOneOut(temperature=0.2))
    assert not isinstance(cb.LeaveOneOut(), cb.CentroBind) and isinstance(cb.LeaveOneOut(), AnchorInfoNCE)


def test_a_new_anchor_is_a_function_and_a_row(monkeypatch):
    """In the table, it is in configs with all its options."""
    from centrobind.training import config

    def first_other(views):
        return views.with_z(views.z.roll(1, 0), views.present.roll(1, 0))

    monkeypatch.setitem(OBJECTIVES, "first_other", partial(AnchorInfoNCE, first_other))
    rows = {model.model_fields["name"].annotation.__args__[0]: model for model in config._objective_models()}
    config = rows["first_other"](name="first_other", temperature=0.4, weights={"a": 2.0})
    objective = make_objective(config, ("a", "b"))
    assert objective.anchor is first_other and objective.temperature().item() == pytest.approx(0.4)


# ---- fingerprints --------------------------------------------------------------------------------------------------


def hashed(binder, monkeypatch):
    """How often the weights are hashed from here on."""
    times = []
    plain = type(binder)._digest
    monkeypatch.setattr(type(binder), "_digest", lambda self: times.append(1) or plain(self))
    return times


def test_a_fingerprint_is_computed_once_per_weights(data, monkeypatch):
    binder = cb.fit(data, **QUICK)
    times = hashed(binder, monkeypatch)
    before = binder.fingerprint
    assert [binder.fingerprint for _ in range(5)] == [before] * 5 and len(times) == 1
    binder.embed(data)
    assert binder.fingerprint == before and len(times) == 1, "embedding changes no weight"


@pytest.mark.parametrize("change", ["in place", "optimizer", "fused optimizer", "load", "replace", "data", "double"])
def test_a_fingerprint_changes_with_the_weights(data, change):
    binder, other = cb.fit(data, **QUICK), cb.fit(data, seed=1, **QUICK)
    before = binder.fingerprint
    weight = binder.towers["m0"].head.weight
    if change == "in place":
        with torch.no_grad():
            weight[0, 0] += 1
    elif change in ("optimizer", "fused optimizer"):
        optimizer = torch.optim.AdamW(binder.parameters(), fused=change == "fused optimizer")
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    elif change == "load":
        binder.load_state_dict(other.state_dict())
        assert binder.fingerprint == other.fingerprint
    elif change == "replace":
        binder.towers["m0"].head.weight = torch.nn.Parameter(weight.detach() + 1)
    elif change == "data":
        weight.data = weight.data + 1
    else:
        binder.double()
    assert binder.fingerprint != before


def test_the_fingerprint_is_what_it_was(data, tmp_path):
    """Of a whole hash of description and weights, whatever is kept; and the same of what was saved and loaded."""
    binder = cb.fit(data, **QUICK)
    assert binder.fingerprint == binder._digest() == cb.load(cb.save(binder, tmp_path / "b")).fingerprint
    before = binder.fingerprint
    binder.towers["m0"].head.weight.detach().numpy()[0, 0] += np.float32(1)  # behind torch's back
    assert binder.train().fingerprint != before


# ---- devices -------------------------------------------------------------------------------------------------------


@pytest.fixture
def moves(monkeypatch):
    """Which modules were moved to which device."""
    seen = []
    plain = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, where: seen.append((type(self).__name__, str(where))) or plain(self, where)
    )
    return seen


def test_towers_and_objective_go_to_the_device(data, moves, tmp_path):
    here = str(choose_device())
    cb.fit(data, **QUICK)
    assert {("Binder", here), ("AllPairs", here)} <= set(moves)
    moves.clear()
    config = {
        "data": "-",
        "out": str(tmp_path / "r"),
        "dim": 4,
        "objective": {"name": "gram"},
        "train": {"steps": 2, "device": "cpu"},
    }
    binder = run_config(check_config(config), data)
    assert {("Binder", "cpu"), ("GRAM", "cpu")} <= set(moves)
    assert torch.equal(binder.embed(data, device="cpu").z, binder.embed(data).z) and binder.device.type == "cpu"


def test_auto_is_a_gpu_if_there_is_one_that_works(monkeypatch):
    own = torch.device("cpu")
    monkeypatch.setattr(type(distributed._team), "device", property(lambda self: own))
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(devices, "_mps_works", lambda: True)
    assert choose_device() == choose_device("mps") == torch.device("mps") and choose_device("cpu").type == "cpu"
    own = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device() == own and choose_device("cuda:1") == torch.device("cuda", 1)
    for wrong in ("cuda:2", "cuda:x", "gpu"):
        with pytest.raises(ConfigError, match=r"expected auto or one that is there \(cuda, mps, cpu\)"):
            choose_device(wrong)


def test_a_rank_computes_on_its_own_device(monkeypatch):
    monkeypatch.setattr(distributed, "_team", distributed.Team(1, 2))
    monkeypatch.setattr(distributed.Team, "device", property(lambda self: torch.device("cuda", 1)))
    assert choose_device() == choose_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"there \(cuda\), got 'cpu'"):
        choose_device("cpu")


def test_values_travel_as_they_are_stored_and_nobody_waits():
    """uint8 stays uint8 until it is there; without a GPU, what would be asked of torch is looked at."""

    class Stored:
        device, asked = torch.device("cpu"), ()

        def __getattr__(self, name):
            return lambda *args, **more: self.asked.append((name, args, more)) or self

    stored, there = Stored(), torch.device("cuda", 0)
    Stored.asked = []
    devices.moved(stored, there)
    assert [name for name, *_ in stored.asked] == ["contiguous", "pin_memory", "to"]
    assert stored.asked[-1][1:] == ((there,), {"non_blocking": True})
    here = torch.zeros(3, dtype=torch.uint8)
    assert devices.moved(here, torch.device("cpu")) is here
