import json

import pytest

import centrobind as cb
from centrobind.arena import demo
from centrobind.errors import RunError
from centrobind.evaluation.evaluate import recall_differences
from centrobind.training.config import load_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The real demo on the real data, with fewer objectives and steps."""
    patch = pytest.MonkeyPatch()
    labels = ("CentroBind", "leave-one-out", "all pairs", "FABind image, trained", "unimodal", "FABind name, frozen")
    patch.setattr(demo, "ENTRIES", tuple(entry for entry in demo.ENTRIES if entry.label in labels))
    patch.setattr(demo, "QUICK_STEPS", 6)
    out = tmp_path_factory.mktemp("demo") / "run"
    seen = []
    results = demo.run_demo(out, quick=True, watch=lambda done, title=None, **numbers: seen.append((done, title)))
    yield out, results, seen
    patch.undo()


def test_it_leaves_what_the_readme_promises(made):
    out, results, seen = made
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "metrics.jsonl", "binder.safetensors", "report.html"} <= names
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert seen[-1][0] == 36 and [done for done, _ in seen] == sorted(done for done, _ in seen)
    logged = {json.loads(line)["objective"] for line in (out / "metrics.jsonl").read_text().splitlines()}
    assert logged == {row["label"] for row in results["rows"]}


def test_every_number_of_the_table_is_in_results(made):
    _, results, _ = made
    for row in results["rows"]:
        for pair in ("image_to_outline", "image_to_name", "name_to_outline", "mean", "worst"):
            for measure in ("recall@1", "recall@10", "recall@1/low", "recall@1/high"):
                assert 0 <= row["metrics"][f"{pair}/{measure}"] <= 1
        assert {"probe/image", "probe/outline", "probe/name", "probe/all"} <= row["metrics"].keys()


def test_the_numbers_belong_to_the_binders_it_leaves(made):
    out, results, _ = made
    test = cb.glyphs().part("test")
    spaces = {row["label"]: cb.load(row["config"]["out"]).embed(test) for row in results["rows"]}
    for row in results["rows"]:
        found = cb.retrieval(spaces[row["label"]])
        assert found.worst.recall[10] == pytest.approx(row["metrics"]["worst/recall@10"])
    kept = cb.load(out)
    assert (
        kept.fingerprint
        == cb.load(next(r["config"]["out"] for r in results["rows"] if r["label"] == results["chosen"])).fingerprint
    )
    one = results["comparisons"][0]
    expected = getattr(recall_differences(spaces[results["chosen"]], spaces[one["rival"]]), one["measure"])
    assert (one["difference"], one["low"], one["high"]) == pytest.approx(expected)


def test_each_run_can_be_done_again_from_its_config(made):
    out, _, _ = made
    config = load_config(out / "fabind_name_frozen" / "config.yaml")
    assert config.objective.frozen and config.init == str(out / "unimodal")


def test_frozen_anchors_keep_the_unimodal_tower(made):
    out, _, _ = made
    before, after = (cb.load(out / name).towers["name"].state_dict() for name in ("unimodal", "fabind_name_frozen"))
    assert all((before[key] == value).all() for key, value in after.items())


def test_the_verdict_follows_the_numbers():
    def line(difference, low, high):
        one = {"measure": "worst", "rival": "all pairs", "difference": difference, "low": low, "high": high}
        return demo.verdicts("X", [one])[0]

    assert line(0.1, 0.05, 0.15).startswith("X beats all pairs on the worst")
    assert line(-0.1, -0.15, -0.05).startswith("X loses to")
    assert line(0.1, -0.01, 0.2).startswith("X is level with") and "+10.0 points [-1.0, +20.0]" in line(0.1, -0.01, 0.2)


def test_an_existing_demo_is_not_overwritten_unasked(made):
    out, _, _ = made
    with pytest.raises(RunError, match="already holds a run"):
        demo.run_demo(out)


def test_settings_are_the_ones_that_were_chosen_on_validation():
    """demo.ENTRIES against benchmarks/results/demo_settings.json: nobody turned a knob by hand."""
    path = __import__("pathlib").Path(__file__).parents[1] / "benchmarks" / "results" / "demo_settings.json"
    found = json.loads(path.read_text())
    for entry in demo.ENTRIES:
        if entry is not demo.UNIMODAL:
            best = max(found[entry.label], key=found[entry.label].get)
            assert best == f"temperature {entry.objective['temperature']} lr {entry.lr}", entry.label
