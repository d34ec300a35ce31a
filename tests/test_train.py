import json
import math
import signal

import numpy as np
import pytest
import torch

from centrobind.binder.binder import build_binder
from centrobind.binder.checkpoint import load
from centrobind.data import Samples, fixed_sample, train_and_valid
from centrobind.data.builtin import synthetic, xor
from centrobind.errors import CentrobindWarning, CheckpointError, ConfigError, DataError, RunError, Stopped
from centrobind.evaluation.evaluate import evaluate
from centrobind.objectives.table import OBJECTIVES
from centrobind.training.config import TrainConfig, check_config, make_objective
from centrobind.training.loop import train, validate
from centrobind.training.optimizer import schedule
from centrobind.training.run_folder import RunFolder

FAST = {"steps": 12, "batch_size": 16, "log_every": 1, "validate_every": 4, "checkpoint_every": 3, "tensorboard": False}


def objective_for(name, modalities, **options):
    options |= {"anchor": modalities[0]} if name == "fabind" else {}
    config = check_config({"data": "-", "out": "-", "objective": {"name": name, **options}})
    return make_objective(config.objective, modalities)


def go(samples, name="leave_one_out", run=None, watch=None, *, seed=0, options=None, dim=8, **settings):
    learn, valid = train_and_valid(samples)
    binder = build_binder(learn, dim=dim, seed=seed)
    objective = objective_for(name, samples.modalities, **(options or {}))
    settings = TrainConfig(**(FAST | settings))
    more = {} if watch is None else {"watch": watch}
    return train(binder, objective, learn, valid, settings, seed=seed, run=run, **more)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.read_log()]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_is_uninterrupted_bit_for_bit(name, mixed, tmp_path):
    """With gaps, dropout of words, learned temperature and a random anchor: all draws hang on (seed, step)."""
    options = {"learn_temperature": True}
    mixed = mixed.only(["picture", "series", "text"])
    whole = RunFolder(tmp_path / "whole")
    expected = go(mixed, name, whole, options=options)
    for stop in (1, 5, 11) if name == "random" else (5,):
        path = tmp_path / f"stopped after {stop}"
        folder = RunFolder(path)
        folder.write_config("x: 1")

        def interrupt(done, stop=stop, **_):
            if done == stop:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Stopped, match=f"stopped after step {stop} of 12; continue with --resume"):
            go(mixed, name, folder, interrupt, options=options)
        resumed = RunFolder(path, resume=True)
        assert same_weights(go(mixed, name, resumed, options=options), expected)
        assert log_of(resumed) == log_of(whole)
        assert load(path).fingerprint == load(tmp_path / "whole").fingerprint


@pytest.mark.parametrize("step", [2, 8])  # before the first checkpoint; the one from step 6, and a log to step 7
def test_a_kill_between_checkpoints_changes_nothing_either(mixed, tmp_path, step):
    class Killed(BaseException):
        pass

    def kill(done, **_):
        if done == step:
            raise Killed

    expected = go(mixed, run=RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "killed")
    folder.write_config("x: 1")
    with pytest.raises(Killed):
        go(mixed, run=folder, watch=kill)
    resumed = RunFolder(tmp_path / "killed", resume=True)
    assert same_weights(go(mixed, run=resumed), expected)
    assert [record["step"] for record in resumed.read_log()] == list(range(1, 13))


def test_a_damaged_checkpoint_falls_back_on_the_one_before(mixed, tmp_path):
    expected = go(mixed, run=RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "r")
    folder.write_config("x: 1")
    go(mixed, run=folder)
    last = tmp_path / "r" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.warns(
        CentrobindWarning, match="(?s)last.safetensors: cannot be read.*going on from .*previous.* step 9"
    ):
        assert same_weights(go(mixed, run=RunFolder(tmp_path / "r", resume=True)), expected)
    for name in ("last", "previous"):
        (tmp_path / "r" / f"{name}.safetensors").write_bytes(b"gone")
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        go(mixed, run=RunFolder(tmp_path / "r", resume=True))


def test_a_kill_in_the_first_file_of_a_run_is_no_reason_to_refuse_its_folder(tmp_path):
    (tmp_path / "config.yaml.partial").write_text("da")
    for how in ({}, {"resume": True}):
        RunFolder(tmp_path, **how)
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(RunError, match="not a run"):
        RunFolder(tmp_path, resume=True)


@pytest.mark.parametrize(
    "harm",
    [
        lambda tensors, state: tensors.pop(next(name for name in tensors if name.endswith("/exp_avg"))),
        lambda tensors, state: tensors.update(
            {name: value[:1] for name, value in tensors.items() if "exp_avg" in name}
        ),
        lambda tensors, state: tensors.update(
            {name: value.double() for name, value in tensors.items() if "exp" in name}
        ),
        lambda tensors, state: tensors.update({name: value + 1j for name, value in tensors.items() if "step" in name}),
        lambda tensors, state: tensors.update({"elsewhere/x": torch.zeros(1)}),
        lambda tensors, state: state.update(step=-1),
        lambda tensors, state: state.update(step="9"),
        lambda tensors, state: state.update(sampler={"seed": 0, "epoch": 0, "seen": 10**9}),
        lambda tensors, state: state.update(sampler=None),
        lambda tensors, state: state.pop("best"),
        lambda tensors, state: state.update(step=True),
        lambda tensors, state: state.update(step=10**9),
        lambda tensors, state: state.update(step=1),
        lambda tensors, state: state.update(best={"score": math.nan, "step": 1}),
        lambda tensors, state: state.update(best={"score": math.inf, "step": 1}),
        lambda tensors, state: state.update(best={"score": "x", "step": 1}),
        lambda tensors, state: state.update(best={"score": 0.5, "step": 4}),
        lambda tensors, state: state.update(sampler={"seed": 5, "epoch": 0, "seen": 0}),
        lambda tensors, state: state.update(sampler=state["sampler"] | {"epoch": 7}),
        lambda tensors, state: state["binder"]["towers"]["vector"].update(encoder="linear"),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(mixed, tmp_path, harm):
    """Under a checksum that fits, as another version or someone who means harm would write it."""
    folder = RunFolder(tmp_path / "r")
    folder.write_config("x: 1")
    go(mixed.only(["series", "vector"]), run=folder, steps=3)
    tensors, state = folder.read_last()
    harm(tensors, state)
    folder.write_last(tensors, state)
    with pytest.raises((CheckpointError, DataError), match="other data or settings|place within"):
        go(mixed.only(["series", "vector"]), run=RunFolder(tmp_path / "r", resume=True), steps=3)


def test_a_checkpoint_of_another_run_is_refused(mixed, tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.write_config("x: 1")
    go(mixed, run=folder)
    with pytest.raises(CheckpointError, match="other data or settings"):
        go(mixed, run=RunFolder(tmp_path / "r", resume=True), dim=4)


def test_a_folder_that_holds_something_is_refused(mixed, tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.write_config("x: 1")
    with pytest.raises(RunError, match="already holds a run.*--resume.*--force"):
        RunFolder(tmp_path / "r")
    with pytest.raises(RunError, match=r"these differ: x: 1 then, 2 now"):
        RunFolder(tmp_path / "r", resume=True).write_config("x: 2", same=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("words")
    for how in ({}, {"replace": True}, {"resume": True}):
        with pytest.raises(RunError, match="not a run"):
            RunFolder(tmp_path / "other", **how)
    with pytest.raises(RunError, match="is a file"):
        RunFolder(tmp_path / "other" / "thesis.tex")
    folder.log({"step": 1})
    assert RunFolder(tmp_path / "r", replace=True).read_log() == []


def test_same_seed_same_weights_and_the_global_generator_is_untouched(mixed):
    state = torch.random.get_rng_state()
    one, same, other = go(mixed), go(mixed), go(mixed, seed=1)
    assert same_weights(one, same) and not same_weights(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_step_draws_anew(mixed, tmp_path, monkeypatch):
    """Dropout, random anchors and views: a step that repeated the draws of another would be a silent flaw."""
    from centrobind.training import step as loop

    seeds = []
    plain = loop.augment
    monkeypatch.setattr(loop, "augment", lambda *a, seed, **o: seeds.append(seed) or plain(*a, seed=seed, **o))
    run = RunFolder(tmp_path / "r")
    go(mixed, "random", run)
    assert len(set(seeds)) == 12
    anchors = {tuple(key for key in record if key.endswith("/to_anchor")) for record in run.read_log()}
    assert len(anchors) > 1, "the anchor is the modality that has no anchor"


def test_learned_numbers_are_bounded_after_every_step(mixed, monkeypatch):
    from centrobind.objectives.anchored import AnchorInfoNCE

    calls = []
    plain = AnchorInfoNCE.bound
    monkeypatch.setattr(AnchorInfoNCE, "bound", lambda self: calls.append(1) or plain(self))
    go(mixed)
    assert len(calls) == 12


def test_of_equal_scores_the_first_is_best():
    from centrobind.training.state import Best

    best = Best()
    assert best.improves(0.5, 1) and not best.improves(0.5, 2) and best.improves(0.6, 3) and best.step == 3


def test_the_log_has_what_people_plot(mixed, tmp_path):
    run = RunFolder(tmp_path / "r")
    go(mixed, "centrobind", run)
    records = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "lr", "gradient", "intra", "inter", "leak", "temperature", "seconds"} <= records[0].keys()
    validated = [record["step"] for record in records if "valid/mean/mrr" in record]
    assert validated == [4, 8, 12]


def test_best_is_kept_or_last_as_asked(mixed, tmp_path):
    scores = {}
    for keep in ("best", "last"):
        run = RunFolder(tmp_path / keep)
        binder = go(mixed, run=run, keep=keep, lr=0.3, validate_every=1)  # so fast that it gets worse again
        records = {record["step"]: record["valid/mean/mrr"] for record in run.read_log()}
        best = max(records, key=records.get)
        assert best < 12
        _, valid = train_and_valid(mixed)
        from centrobind.training.loop import validate

        scores[keep] = validate(binder, valid)["mean/mrr"]
        assert scores[keep] == pytest.approx(records[best if keep == "best" else 12])
        in_memory = go(mixed, keep=keep, lr=0.3, validate_every=1)
        assert same_weights(in_memory, binder)
    assert scores["best"] > scores["last"]


def test_a_frozen_tower_does_not_move_and_is_thawed_afterwards(mixed):
    learn, _ = train_and_valid(mixed)
    before = build_binder(learn, dim=8).towers["picture"].state_dict()
    after = go(mixed, "fabind", options={"frozen": True}, weight_decay=1.0)
    assert all(torch.equal(before[key], value) for key, value in after.towers["picture"].state_dict().items())
    assert all(parameter.requires_grad for parameter in after.parameters())
    moved = go(mixed, "fabind")
    assert not all(torch.equal(before[key], value) for key, value in moved.towers["picture"].state_dict().items())


def test_schedule_rises_then_falls_to_nothing():
    settings = TrainConfig(steps=100, warmup=0.1)
    rates = [schedule(step, settings) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == 1.0 and rates[99] < 0.001
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_weights_without_a_direction_do_not_decay(mixed):
    from centrobind.training.optimizer import make_optimizer

    binder = build_binder(mixed)
    decays = {
        id(p): group["weight_decay"]
        for group in make_optimizer(binder, TrainConfig()).param_groups
        for p in group["params"]
    }
    for name, parameter in binder.named_parameters():
        assert (decays[id(parameter)] > 0) == (parameter.ndim >= 2), name


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(mixed, monkeypatch):
    monkeypatch.setattr("centrobind.binder.binder.refuse_nonfinite", lambda *_: None)
    mixed.columns["vector"].values[:] = np.nan  # behind the back of the checks
    with pytest.raises(RunError, match=r"step 1 is not finite.*samples \[.*began with inputs of vector"):
        go(mixed)


def test_what_cannot_be_trained_is_said_before_the_first_step(mixed):
    with pytest.raises(DataError, match="at least two modalities"):
        go(mixed.only(["text"]))
    apart = Samples.of(
        {"a": np.eye(40), "b": np.eye(40)},
        present={"a": np.arange(40) % 2 == 0, "b": np.arange(40) % 2 == 1},
        split=["train"] * 30 + ["valid"] * 10,
    )
    with pytest.raises(DataError, match="only 0 of 30 training samples have two modalities.*LeaveOneOut"):
        go(apart)
    for name, says in (("gram", "have all modalities"), ("fabind", "have 'a' and another modality")):
        with pytest.raises(DataError, match=says):
            go(apart, name)
    with pytest.raises(DataError, match="triangle needs exactly three modalities, got 2"):
        go(apart, "triangle")
    with pytest.raises(ConfigError, match=r"augment must be above 0"):
        go(mixed, "unimodal", augment=0)
    with pytest.raises(DataError, match="batch_size must lie between"):
        go(mixed, batch_size=1000)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "triangle"])
@pytest.mark.parametrize("pairs", [2, 3, 9])
def test_few_pairs_train_to_the_end(name, pairs, tmp_path):
    """Nearly all samples have one modality; some have two or three. No batch may be without one."""
    draw = np.random.default_rng(pairs)
    present = np.zeros((3, 90), bool)
    present[draw.integers(0, 3, 90), np.arange(90)] = True
    present[:, draw.permutation(70)[:pairs]] = True
    columns = {m: draw.normal(size=(90, 4 + i)) for i, m in enumerate("abc")}
    samples = Samples.of(columns, present=dict(zip("abc", present)), split=["train"] * 80 + ["valid"] * 10)
    with pytest.warns(CentrobindWarning, match="none of the 10 validation samples has two modalities"):
        go(samples, name, dim=4, batch_size=10, steps=20)


def test_a_validation_part_without_a_pair_keeps_the_last_weights():
    draw = np.random.default_rng(0)
    samples = Samples.of(
        {"a": draw.normal(size=(60, 4)), "b": draw.normal(size=(60, 3))},
        present={"b": np.arange(60) < 50},
        split=["train"] * 50 + ["valid"] * 10,
    )
    with pytest.warns(CentrobindWarning, match="ends with its last weights"):
        kept = go(samples, dim=4)
    learn, _ = train_and_valid(samples)
    binder = train(build_binder(learn, dim=4), objective_for("leave_one_out", "ab"), learn, None, TrainConfig(**FAST))
    assert same_weights(kept, binder)


# ---- learning, on data with a known answer --------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnable():
    return synthetic(800, 3, noise=0.2, seed=1)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in ("unimodal", "symile", "gram", "pmrl")])
def test_every_objective_learns_to_retrieve(name, learnable):
    binder = go(learnable, name, steps=80, batch_size=128, lr=3e-3, dim=16, log_every=100, checkpoint_every=100)
    test = learnable.part("test")
    found = evaluate(binder.embed(test), test.label)
    assert found.mean.recall[1] > 0.25, "chance is 1 in 160"
    assert found.probe["all"] > 0.6, "chance is 1 in 10"


@pytest.mark.parametrize("name", ["symile", "gram", "triangle"])
def test_joint_objectives_retrieve_by_their_own_score(name, learnable):
    options = {"temperature": 0.05}
    binder = go(learnable, name, steps=80, batch_size=128, lr=3e-3, dim=16, validate_every=80, options=options)
    z = binder.embed(learnable.part("test")).z
    scores = objective_for(name, learnable.modalities).similarity(z[2], z[:2])
    assert (scores.argmax(0) == torch.arange(z.shape[1])).float().mean() > 0.3, "two modalities find the third"


def test_unimodal_learns_its_own_views_and_nothing_across(learnable):
    binder = go(learnable, "unimodal", steps=80, batch_size=128, lr=3e-3, dim=16, log_every=100, checkpoint_every=100)
    test = learnable.part("test")
    found = evaluate(binder.embed(test), test.label)
    assert found.mean.recall[1] < 0.05 and found.probe["all"] > 0.6


def test_a_missing_third_is_learned_around():
    samples = synthetic(800, 3, noise=0.2, seed=1, missing=0.35)
    binder = go(samples, steps=80, batch_size=128, lr=3e-3, dim=16, log_every=100, checkpoint_every=100)
    assert evaluate(binder.embed(samples.part("test"))).mean.recall[1] > 0.2


@pytest.mark.parametrize("name", ["centrobind", "leave_one_out", "all_pairs"])
def test_xor_is_beyond_pairs_and_centroids(name):
    samples = xor(600, bits=6)
    binder = go(samples, name, steps=60, batch_size=128, lr=3e-3, dim=16, log_every=100, checkpoint_every=100)
    assert evaluate(binder.embed(samples.part("test"))).mean.recall[1] < 0.06


def test_a_learned_temperature_moves_and_stays_in_bounds(learnable):
    learn, valid = train_and_valid(learnable)
    objective = objective_for("all_pairs", learnable.modalities, learn_temperature=True)
    before = objective.temperature().item()
    settings = TrainConfig(**(FAST | {"steps": 60, "batch_size": 128, "lr": 0.05}))
    train(build_binder(learn, dim=8), objective, learn, valid, settings)
    after = objective.temperature().item()
    assert abs(math.log(after / before)) > 0.05 and 0.003 * (1 - 1e-6) <= after <= 10


def test_validation_looks_at_the_same_few_samples_every_time(mixed, tmp_path, monkeypatch):
    from centrobind.training import loop

    seen = []
    monkeypatch.setattr(loop, "fixed_sample", lambda valid: fixed_sample(valid, 4))
    monkeypatch.setattr(loop, "validate", lambda binder, valid: seen.append(valid.ids[:]) or validate(binder, valid))
    run = RunFolder(tmp_path / "run")
    run.write_config("")
    go(mixed, run=run, validate_every=4)
    valid = train_and_valid(mixed)[1]
    assert len(valid) > 4 and seen == [fixed_sample(valid, 4).ids[:]] * 3
    go(mixed, run=RunFolder(tmp_path / "run", resume=True), validate_every=4, steps=16)
    assert len(set(map(tuple, seen))) == 1 and len(seen) == 4
