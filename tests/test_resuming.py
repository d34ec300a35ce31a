"""What a run may be continued with, and what not: data, words, options, length; who may write; how it stops."""

import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

import centrobind as cb
from centrobind.data import Sampler, Samples, identity
from centrobind.data.identity import difference
from centrobind.errors import CentrobindError, CentrobindWarning, CheckpointError, ConfigError, RunError, Stopped
from centrobind.training.config import check_config
from centrobind.training.fit import Interrupted, run_config
from centrobind.training.run_folder import RunFolder
from centrobind.training.state import Best

COUNT = 90


def samples(words="a", *, count=COUNT, order=None, seed=0):
    draw = np.random.default_rng(seed)
    u = draw.normal(size=(COUNT, 3))
    texts = [f"{words}{i % 9} {words}{i % 7 + 9}" for i in range(COUNT)]
    b = u @ draw.normal(size=(3, 6))
    b = b if order is None else b[order]
    split = ["train"] * 70 + ["valid"] * 20
    whole = Samples.of({"t": texts, "b": b}, present={"b": np.arange(COUNT) % 5 > 0}, split=split)
    return whole.take(np.r_[0 : count - 20, 70:90])


def config(out, **more):
    train = {"steps": 12, "batch_size": 16, "checkpoint_every": 3, "validate_every": 4, "tensorboard": False}
    return check_config(
        {
            "data": "-",
            "out": str(out),
            "dim": 4,
            "objective": {"name": "leave_one_out"},
            "train": train | more.pop("train", {}),
            **more,
        }
    )


def stopped(out, data, at=5, **more):
    """A run that was interrupted after so many steps."""

    def interrupt(done, **_):
        if done == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        run_config(config(out, **more), data, watch=interrupt)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: samples("c"), "the data: other values"),
        (lambda: samples(count=88), "the data: 70 training samples then, 68 now"),
        (
            lambda: samples(order=np.random.default_rng(3).permutation(COUNT)),
            "the data: other values, ids or another order",
        ),
        (lambda: samples(seed=4), "the data: other values"),
        (lambda: samples().only(["b", "t"]), "the data: other values, ids or another order"),
    ],
    ids=["other words", "fewer samples", "shuffled", "other numbers", "another order of modalities"],
)
def test_resuming_with_other_data_is_refused(tmp_path, other, says):
    stopped(tmp_path / "r", samples())
    with pytest.raises(CheckpointError, match=f"other data or settings.*{says}"):
        run_config(config(tmp_path / "r"), other(), resume=True)


def test_an_identity_tells_data_apart_and_only_data():
    base = identity(samples())
    assert base == identity(samples()) and difference(base, identity(samples())) == ""
    changed = samples()
    changed.columns["b"].values[-1, 0] += 1
    for other in (changed, samples("c"), samples(order=np.arange(COUNT)[::-1]), samples().take(np.arange(COUNT)[::-1])):
        assert difference(base, identity(other)) == "other values, ids or another order than then"
    assert "b: {'kind'" in difference(base, identity(samples().only(["t"])))


def test_options_that_moved_between_modalities_are_refused(tmp_path):
    """Both lines are in the file still."""
    data = Samples.of(
        {m: np.random.default_rng(0).normal(size=(60, 4)) for m in "ab"}, split=["train"] * 45 + ["valid"] * 15
    )
    dropped, plain = {"encoder": "mlp", "dropout": 0.5}, {"encoder": "mlp"}
    stopped(tmp_path / "r", data, modalities={"a": dropped, "b": plain})
    with pytest.raises(
        RunError, match=r"these differ: modalities\.a\.dropout: 0\.5 then, None now; modalities\.b\.dropout"
    ):
        run_config(config(tmp_path / "r", modalities={"a": plain, "b": dropped}), data, resume=True)


def test_a_run_may_be_lengthened_and_says_so(tmp_path):
    data = samples()
    run_config(config(tmp_path / "r"), data)
    with pytest.warns(CentrobindWarning, match="lengthened from 12 to 20 steps"):
        run_config(config(tmp_path / "r", train={"steps": 20}), data, resume=True)
    log = RunFolder(tmp_path / "r", resume=True).read_log()
    assert (
        log[-1]["step"] == 20 and yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["train"]["steps"] == 20
    )
    for wrong in ({"steps": 15}, {"steps": 30, "lr": 0.5}):
        with pytest.raises(RunError, match=r"these differ: .*train\.steps"):
            run_config(config(tmp_path / "r", train=wrong), data, resume=True)


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    data = samples()
    run_config(config(tmp_path / "r"), data)
    (tmp_path / "r" / "config.yaml").write_text(yaml.safe_dump({"x": 1}))
    from centrobind.training.config import dump_config

    short = config(tmp_path / "r", train={"steps": 6})
    (tmp_path / "r" / "config.yaml").write_text(dump_config(short))
    with pytest.raises(CheckpointError, match="has done 12 steps and the run is to have 6"):
        run_config(short, data, resume=True)


def test_shard_may_differ_and_defaults_may_be_left_out(tmp_path):
    data = samples()
    stopped(tmp_path / "r", data)
    file = tmp_path / "r" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    del values["train"]["weight_decay"], values["seed"]
    file.write_text(yaml.safe_dump(values))
    run_config(config(tmp_path / "r", train={"shard": True}), data, resume=True)


def test_starting_from_a_binder_of_other_words_is_refused(tmp_path):
    run_config(config(tmp_path / "one", start="scratch"), samples())
    again = config(tmp_path / "two", init=str(tmp_path / "one"))
    run_config(again, samples())
    with pytest.raises(ConfigError, match=r"init .*one: the tower of 't' differs in \['words'\]"):
        run_config(config(tmp_path / "three", init=str(tmp_path / "one")), samples("c"))


@pytest.mark.parametrize(("count", "size", "few"), [(41, 7, None), (40, 8, None), (41, 4, 5), (12, 12, None)])
def test_the_place_after_so_many_batches(count, size, few):
    positives = None if few is None else np.arange(count) < few
    sampler = Sampler(count, size, 3, positives=positives)
    fresh, batches = Sampler(count, size, 3, positives=positives), iter(sampler)
    assert fresh.place_after(0) == sampler.state()
    for done in range(1, 25):
        next(batches)
        assert fresh.place_after(done) == sampler.state()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_best(score):
    best = Best()
    assert not best.improves(score, 1) and best.step is None
    assert best.improves(0.5, 2) and not best.improves(score, 3) and best.step == 2
    assert best.improves(0.6, 4)


# ---- who may write -------------------------------------------------------------------------------------------------

HOLD = """
import sys
from centrobind.training.run_folder import RunFolder
run = RunFolder(sys.argv[1], resume=True)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path):
    run_config(config(tmp_path / "r", train={"steps": 2}), samples())
    before = (tmp_path / "r" / "binder.safetensors").read_bytes()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "r")], stdin=-1, stdout=-1)
    try:
        assert other.stdout.readline() == b"open\n"
        for how in ({"replace_run": True}, {"resume": True}):
            with pytest.raises(RunError, match="r: another process is training there; wait"):
                run_config(config(tmp_path / "r", train={"steps": 2}), samples(), **how)
        assert (tmp_path / "r" / "binder.safetensors").read_bytes() == before, "nothing was removed"
    finally:
        other.kill()
        other.communicate()
    run_config(config(tmp_path / "r", train={"steps": 2}), samples(), replace_run=True)  # the lock died with it


def test_a_run_that_is_over_or_refused_lets_go_of_its_folder(tmp_path):
    run_config(config(tmp_path / "r", train={"steps": 2}), samples())
    with pytest.raises(RunError, match="these differ") as refused:  # kept, with all its frames
        run_config(config(tmp_path / "r", train={"steps": 2, "lr": 0.5}), samples(), resume=True)
    open_it = HOLD.replace("sys.stdin.read()", "")
    assert subprocess.run([sys.executable, "-c", open_it, str(tmp_path / "r")]).returncode == 0, refused


# ---- how it stops --------------------------------------------------------------------------------------------------


def test_ctrl_c_in_fit_is_a_keyboard_interrupt_with_the_best_weights(monkeypatch):
    """The best of validations until then, not the last weights; and no loop over errors swallows it."""
    from centrobind.training import loop

    data, kept, scores = samples(), [], iter([0.3, 0.9, 0.1, 0.2])
    real, plain = loop.validate, Best.keep
    monkeypatch.setattr(loop, "validate", lambda *args: real(*args) | {"mean/mrr": next(scores)})
    monkeypatch.setattr(
        Best, "keep", lambda self, binder, weights: kept.append(binder._digest()[:16]) or plain(self, binder, weights)
    )
    step = loop.advance

    def interrupt(state, *args):
        if state.step == 10:
            signal.raise_signal(signal.SIGINT)
        return step(state, *args)

    monkeypatch.setattr(loop, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 11 of 40; the best weights") as stop:
        try:
            cb.fit(data, start="scratch", dim=4, steps=40, batch_size=16, validate_every=3, show_progress=False)
        except Exception:
            raise AssertionError("swallowed") from None
    assert isinstance(stop.value, Interrupted) and not isinstance(stop.value, CentrobindError | ValueError)
    assert len(kept) == 2 and stop.value.binder.fingerprint == kept[1] and not stop.value.binder.training
    assert len(stop.value.binder.embed(data)) == COUNT


def test_a_stopped_run_is_no_error_that_loops_continue_after(tmp_path):
    with pytest.raises(Stopped):
        try:
            stopped_here = []
            run_config(
                config(tmp_path / "r"),
                samples(),
                watch=lambda done, **_: (
                    stopped_here.append(done) or (done == 3 and signal.raise_signal(signal.SIGTERM))
                ),
            )
        except Exception:
            raise AssertionError("swallowed") from None
    assert stopped_here == [1, 2, 3]
