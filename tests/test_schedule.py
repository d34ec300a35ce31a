"""A comparison survives: kills, failures, another budget; and its tables come from its rows alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import centrobind as cb
from centrobind.arena.contenders import Contender
from centrobind.arena.pages import write_results
from centrobind.arena.plan import ArenaConfig, describe
from centrobind.arena.schedule import Arena, Ledger, fit_to_budget, planned
from centrobind.cli.main import app

OWN = """
import os

def broken(views):
    raise ValueError("on purpose")

def deadly(views):
    os._exit(9)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    for number, missing in ((1, 0.0), (2, 0.2)):
        cb.write_store(
            folder / f"set{number}", cb.synthetic(120, modalities=2, missing=missing, seed=number, classes=3)
        )
    (folder / "own.py").write_text(OWN)
    return folder


def config(folder, out, **changes):
    return ArenaConfig(
        **{
            "data": [str(folder / "set1"), str(folder / "set2")],
            "out": str(folder / out),
            "objectives": ["leave_one_out", "fabind", "symile", f"{folder / 'own.py'}:broken"],
            "seeds": 2,
            "dim": 8,
            "steps": 2,
            "batch_size": 32,
            "search": {"temperatures": [0.1, "learned"], "lrs": [3e-3]},
        }
        | changes
    )


@pytest.fixture(scope="module")
def whole(folder):
    """An arena that ran through without a stop, and what it reported on the way."""
    arena, seen = Arena(config(folder, "whole")), []
    arena.run(jobs=1, watch=lambda done, title="", **_: seen.append((done, title)))
    return arena, seen, write_results(arena, ours="leave-one-out")


def test_it_does_what_it_counted_and_says_so(whole):
    arena, seen, _ = whole
    starts, searches, finals = arena.count()
    assert (starts, searches) == (2 * 2, 2 * 7 * 2)  # 7 contenders: 4 fixed anchors and 3 others, 2 settings each
    stages = [row["trial"]["stage"] for row in arena.ledger.rows.values()]
    assert stages.count("search") == searches and stages.count("start") == starts
    assert stages.count("final") == finals - 2 * 2, "what failed in every search has no finals"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_setting_is_the_one_that_validated_best(whole):
    arena, _, results = whole
    for data in arena.datasets:
        for one in arena.rows_of[data.label]:
            scores = {}
            for row in arena.ledger.rows.values():
                trial = row["trial"]
                if trial["stage"] != "search" or trial["dataset"] != data.label or "valid" not in row:
                    continue
                if Contender.of(trial["objective"]) == one:
                    own = "native" if one == Contender("symile") else "cosine"
                    scores[trial["temperature"], trial["lr"]] = row["valid"][own]
            assert arena.choose(data, one) == (max(scores, key=scores.get) if scores else None)
    shown = results["data"]["set1"]["rows"][0]
    assert (shown["temperature"], shown["lr"]) == arena.choose(arena.datasets[0], arena.rows_of["set1"][0])


def test_a_trial_that_fails_is_a_row_that_says_why(whole):
    _, _, results = whole
    assert results["trials"]["failed"] == 4 and all(
        one["error"] == "ValueError: on purpose" for one in results["failures"]
    )
    row = next(row for row in results["data"]["set2"]["rows"] if row["label"] == "broken")
    assert row["metrics"] == {} and row["why"] == "ValueError: on purpose"


def test_tables_hold_the_means_of_the_rows(whole):
    arena, _, results = whole
    rows = [
        r
        for r in arena.ledger.rows.values()
        if r["trial"]["stage"] == "final"
        and r["trial"]["objective"]["name"] == "leave_one_out"
        and r["trial"]["dataset"] == "set2"
    ]
    shown = next(row for row in results["data"]["set2"]["rows"] if row["label"] == "leave-one-out")
    for measure in ("worst/recall@1", "probe/all", "native/recall@1"):
        expected = sum(row["test"][measure] for row in rows) / len(rows)
        assert shown["metrics"][measure] == pytest.approx(expected)
    low, high = shown["intervals"]["mean/recall@1"][1:]
    assert low <= shown["metrics"]["mean/recall@1"] <= high
    best = max(
        row["metrics"]["mean/recall@1"]
        for row in results["data"]["set2"]["rows"]
        if row["contender"]["name"] == "fabind" and row["contender"]["anchor"] and not row["contender"]["frozen"]
    )
    hindsight = next(
        row for row in results["data"]["set2"]["rows"] if row["contender"] == Contender("fabind").describe()
    )
    assert hindsight["metrics"]["mean/recall@1"] == pytest.approx(best, abs=1e-6)


def test_every_file_it_promises_is_there_and_a_page_reads_alone(whole):
    arena, _, results = whole
    page = (arena.out / "report.html").read_text()
    assert "on purpose" in page and ">nan" not in page
    assert not re.search(r'(src|href)=["\']?(http|//)', page), "a page that asks the network for nothing"
    assert json.loads((arena.out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert "| leave-one-out |" in (arena.out / "tables.md").read_text()


def test_tables_are_made_again_without_training(whole, monkeypatch):
    arena, _, results = whole
    before = (arena.out / "rows.jsonl").read_text()
    monkeypatch.setattr(Arena, "run", lambda *a, **k: pytest.fail("it trained"))
    plan = arena.out.parent / "again.yaml"
    plan.write_text(json.dumps(describe(arena.config)))
    found = CliRunner().invoke(
        app, ["compare", str(plan), "--tables", "--ours", "leave-one-out"], catch_exceptions=False
    )
    assert found.exit_code == 0 and "leave-one-out" in found.output
    assert json.loads((arena.out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (arena.out / "rows.jsonl").read_text() == before


def test_killed_at_any_moment_it_goes_on_without_doing_anything_twice(folder, whole):
    arena, _, results = whole
    one = config(folder, "killed", data=[str(folder / "set2")])
    plan = folder / "killed.yaml"
    plan.write_text(json.dumps(describe(one)))
    rows = folder / "killed" / "rows.jsonl"
    command = [sys.executable, "-m", "centrobind", "compare", str(plan), "--jobs", "1"]
    going = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 100
    while not (rows.is_file() and rows.read_text().count("\n") >= 9):
        assert going.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(going.pid, signal.SIGKILL)
    going.wait()
    half = rows.read_text()
    rows.write_text(half + '{"key": "cut sho')  # as a crash in the middle of a line would leave it
    again = Arena(one)
    again.run(jobs=1)
    assert rows.read_text().startswith(half) and "cut sho" not in rows.read_text()
    assert rows.read_text().count("\n") == len(again.ledger.rows)
    assert again.ledger.rows.keys() == {
        key for key, row in arena.ledger.rows.items() if row["trial"]["dataset"] == "set2"
    }
    got = write_results(again, ours="leave-one-out")["data"]["set2"]
    assert [row["intervals"] for row in got["rows"]] == [row["intervals"] for row in results["data"]["set2"]["rows"]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_stops_it_and_is_no_failure_of_a_trial(folder, jobs):
    """Ctrl-C reaches every process of a terminal, and training answers it by stopping after its step."""
    (folder / "stops.py").write_text(
        "import signal\nimport centrobind as cb\n\ndef once(views):\n    signal.raise_signal(signal.SIGTERM)\n    return cb.anchors.leave_one_out(views)\n"
    )
    asked = config(folder, f"stopped{jobs}", objectives=[f"{folder / 'stops.py'}:once"], steps=3)
    arena = Arena(asked)
    with pytest.raises(KeyboardInterrupt):
        arena.run(jobs=jobs)
    rows = [json.loads(line) for line in (folder / f"stopped{jobs}" / "rows.jsonl").read_text().splitlines()]
    assert {row["trial"]["stage"] for row in rows} == {"start"} and not any("error" in row for row in rows)


def test_side_by_side_a_worker_that_dies_takes_nobody_with_it(folder):
    changes = {"data": [str(folder / "set1")], "seeds": 1, "search": {"temperatures": [0.1], "lrs": [3e-3]}}
    arena = Arena(config(folder, "dying", objectives=["all_pairs", f"{folder / 'own.py'}:deadly"], **changes))
    arena.run(jobs=2)
    found = {
        (Contender.of(row["trial"]["objective"]).label, row["trial"]["stage"]): row.get("error")
        for row in arena.ledger.rows.values()
    }
    assert found.pop(("deadly", "search")) == "the worker died twice; out of memory?"
    assert found == {("unimodal", "start"): None, ("all pairs", "search"): None, ("all pairs", "final"): None}


def test_a_budget_cuts_everybody_alike_and_is_kept(folder):
    asked = config(folder, "budget", objectives=["leave_one_out"], steps=400, seeds=5)
    generous, none = fit_to_budget(asked, 1e9, jobs=1)
    assert none == [] and generous == asked
    tight, cuts = planned(asked, 60, jobs=1)
    assert "5 temperatures" in cuts and "3 seeds" in cuts and tight.seeds == 3
    assert all(50 <= one.steps < 400 for one in tight.datasets())
    assert planned(asked, 60, jobs=1)[0].datasets() == tight.datasets(), "timed again, it would be another plan"
    assert planned(asked, None, jobs=1) == (asked, [])


def test_a_ledger_forgets_only_what_is_broken(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "x": 1}\n[1, 2]\n{"no": "key"}\n{"key": "b"}\n{"key": "c", "x')
    ledger = Ledger(path)
    assert list(ledger.rows) == ["a", "b"]
    ledger.add({"key": "d"})
    assert list(Ledger(path).rows) == ["a", "b", "d"]
