import json
from pathlib import Path

import pytest

import centrobind as cb
from centrobind.arena import demo, trials
from centrobind.arena.contenders import Contender
from centrobind.arena.pages import difference_lines
from centrobind.arena.plan import ArenaConfig
from centrobind.errors import RunError
from centrobind.evaluation.metrics import retrieval
from centrobind.training.config import load_config

FEW = [
    Contender("default"),
    Contender("closed_form"),
    Contender("unimodal"),
    Contender("centrobind"),
    Contender("leave_one_out"),
    Contender("all_pairs"),
]
FEW += [Contender("fabind", anchor, frozen) for frozen in (False, True) for anchor in ("image", "outline", "name")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The real demo on the real data, with few steps; what takes no steps learns from a twelfth of the samples."""
    patch = pytest.MonkeyPatch()
    whole = trials.without_settings
    patch.setattr(trials, "without_settings", lambda trial, samples: whole(trial, samples.take(slice(None, None, 12))))
    patch.setattr(demo, "QUICK_STEPS", 3)
    out = tmp_path_factory.mktemp("demo") / "run"
    seen = []
    results = demo.run_demo(out, quick=True, jobs=1, watch=lambda done, title=None, **_: seen.append((done, title)))
    yield out, results, seen
    patch.undo()


def test_it_leaves_what_the_readme_promises(made):
    out, results, seen = made
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "rows.jsonl", "binder.safetensors", "report.html"} <= names
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert seen[-1][0] == 1 + len(FEW) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [Contender(**row["contender"]) for row in results["rows"]] == FEW


def test_it_is_the_comparison_that_compare_would_make(made):
    """A preset, and nothing else: its plan is one that a YAML can hold, nobody is searched for, all settings are used."""
    config = demo.preset("somewhere")
    assert ArenaConfig.model_validate(config.model_dump(mode="json")) == config
    assert all(config.known(one) == (setting.temperature, setting.lr) for one, setting in zip(FEW[2:], demo.SETTINGS))
    _, results, _ = made
    for row, setting in zip(results["rows"][2:], demo.SETTINGS):
        assert (row["temperature"], row["lr"]) == (setting.temperature, setting.lr)


def test_every_number_of_the_table_is_in_results(made):
    _, results, _ = made
    for row in results["rows"]:
        for pair in ("image_to_outline", "image_to_name", "name_to_outline", "mean", "worst"):
            for measure in ("recall@1", "recall@10"):
                assert 0 <= row["metrics"][f"{pair}/{measure}"] <= 1
        assert {"probe/image", "probe/outline", "probe/name", "probe/all"} <= row["metrics"].keys()
        value, low, high = row["intervals"]["mean/recall@1"]
        assert low <= value <= high and value == pytest.approx(row["metrics"]["mean/recall@1"], abs=1e-6)


def test_the_numbers_belong_to_the_binders_it_leaves(made):
    out, results, _ = made
    test = cb.glyphs().part("test")
    for row in results["rows"][::3]:
        scores = retrieval(cb.load(out / row["folder"]).embed(test))
        assert scores.worst.recall[10] == pytest.approx(row["metrics"]["worst/recall@10"], abs=1e-6)
    chosen = next(row for row in results["rows"] if row["label"] == results["chosen"])
    assert Contender(**chosen["contender"]) == Contender("default")
    assert cb.load(out).fingerprint == cb.load(out / chosen["folder"]).fingerprint


def test_each_run_can_be_done_again_from_its_config(made):
    out, results, _ = made
    row = next(row for row in results["rows"] if row["label"] == "FABind name, frozen")
    config = load_config(Path(row["config"]["out"]) / "config.yaml")
    assert config.objective.frozen and config.data == "glyphs" and config.train.steps == 3
    assert Path(config.init).is_file() and Path(config.init).is_relative_to(out)


def test_frozen_anchors_keep_the_unimodal_tower(made):
    _, results, _ = made
    row = next(row for row in results["rows"] if row["label"] == "FABind name, frozen")
    before, after = (cb.load(row["config"][key]).towers["name"].state_dict() for key in ("init", "out"))
    assert all((before[key] == value).all() for key, value in after.items())


def test_the_verdict_follows_the_numbers():
    def line(difference, low, high):
        one = {"difference": difference, "low": low, "high": high}
        duel = {"measure": "worst/recall@1", "ours": "X", "rival": "all pairs", "by_data": {"glyphs": one}}
        return difference_lines({"duels": [duel]}, "worst/recall@1")[0]

    assert line(0.1, 0.05, 0.15).startswith("X beats all pairs on the worst")
    assert line(-0.1, -0.15, -0.05).startswith("X loses to")
    assert line(0.1, -0.01, 0.2).startswith("X is level with") and "+10.0 points [-1.0, +20.0]" in line(0.1, -0.01, 0.2)


def test_an_existing_demo_is_not_overwritten_unasked(made):
    out, _, _ = made
    with pytest.raises(RunError, match="already holds a run"):
        demo.run_demo(out)


def test_settings_are_the_ones_that_were_chosen_on_validation():
    """demo.SETTINGS against benchmarks/results/demo_settings.json: nobody turned a knob by hand."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "demo_settings.json"
    scores = json.loads(path.read_text())
    for setting in demo.SETTINGS:
        if setting.contender.tuned:
            found = scores[setting.contender.label]
            best = max(found, key=found.get)
            assert best == f"temperature {setting.temperature} lr {setting.lr}", setting.contender.label
