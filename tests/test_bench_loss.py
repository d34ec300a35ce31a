"""benchmarks/loss.py at toy size: everyone computes what the table says, and the page is what the results file says."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from centrobind.objectives import tiles

ROOT = Path(__file__).parents[1]
TOY = (3, 40, 8)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setitem(tiles.TILES, "cpu", (16, 12))
    monkeypatch.setitem(tiles.STRIPS, "cpu", 5)
    import loss_forms

    return loss_forms


@pytest.fixture
def measuring(bench):
    import loss

    return loss


@pytest.fixture
def page(bench):
    import loss_page

    return loss_page


def both_ways(one, other, there, tau):
    """Symmetric InfoNCE over the samples that are there, sample by sample."""
    rows = [i for i in range(len(one)) if there[i]]
    total = 0.0
    for a, b in ((one, other), (other, one)):
        for i in rows:
            logits = torch.stack([a[i] @ b[j] / tau for j in rows])
            total += torch.logsumexp(logits, 0) - a[i] @ b[i] / tau
    return total / len(rows) / 2


def nt_xent(one, other, tau):
    both, total = torch.cat([one, other]), 0.0
    for i in range(len(both)):
        logits = torch.stack([both[i] @ both[j] / tau for j in range(len(both)) if j != i])
        total += torch.logsumexp(logits, 0) - both[i] @ both[(i + len(one)) % len(both)] / tau
    return total / len(both)


def expected(bench, name):
    about = bench.CONTENDERS[name]
    query, key = (x.detach().double() for x in bench.inputs(TOY, about.half))
    there = torch.ones(TOY[:2], dtype=torch.bool)
    if name == "fused, gaps":
        there = bench.everyone(query, True)
        assert (~there).sum() > 0 and all(there.sum(1) < TOY[1])
    tau = 0.005 if "0.005" in name else bench.TEMPERATURE
    if about.sees == "terms":
        return torch.stack([both_ways(q, k, has, tau) for q, k, has in zip(query, key, there)]).mean()
    of_two = {"pairs": lambda a, b: both_ways(a, b, there[0], tau), "both": lambda a, b: nt_xent(a, b, tau)}[about.sees]
    return torch.stack([of_two(a, b) for a, b in itertools.combinations(query, 2)]).mean()


INSTALLED_APART = {
    "sentence-transformers": "sentence_transformers",
    "pytorch-metric-learning": "pytorch_metric_learning",
}


@pytest.mark.parametrize(
    "name",
    """fused; dense; fused, all pairs; open_clip form; sentence-transformers; lightly form; pytorch-metric-learning;
    fused, learned temperature; fused, gaps; fused, bfloat16; fused, temperature 0.005""".replace("\n", "").split("; "),
)
def test_everyone_computes_what_the_table_says(bench, name):
    name = name.strip()
    if name in INSTALLED_APART:
        pytest.importorskip(INSTALLED_APART[name], reason="a peer, installed with centrobind[bench]")
    query, key = bench.inputs(TOY, bench.CONTENDERS[name].half)
    value = bench.CONTENDERS[name].make()(query, key)
    torch.testing.assert_close(value.double(), expected(bench, name), rtol=2e-5, atol=1e-6)
    value.backward()
    assert query.grad.abs().max() > 0 and (key.grad is not None) == (bench.CONTENDERS[name].sees == "terms")


def test_everyone_is_in_the_test_above_or_has_nothing_to_be_equal_to(bench):
    (marks,) = test_everyone_computes_what_the_table_says.pytestmark
    assert set(bench.CONTENDERS) - {name.strip() for name in marks.args[1]} == {
        "bare multiplies",
        "bare, matrix made twice",
        "symile",
    }


def test_the_bare_multiplies_are_the_three_of_each_tile(bench):
    query, key = bench.inputs((2, 40, 8))
    bare = bench.Bare(query, key)
    bare()
    s = query @ key.mT
    torch.testing.assert_close(bare.d_query, s @ key)
    torch.testing.assert_close(bare.d_key, s.mT @ query)


def test_it_runs_resumes_where_it_was_and_leaves_out_what_is_too_much(bench, measuring, page, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TARGET", (3, 64, 8))
    monkeypatch.setattr(bench, "SAMPLES", (64, 128, 256))
    monkeypatch.setattr(bench, "LINES", ((3, 8), (2, 8)))
    monkeypatch.setattr(measuring, "TURNS", (2, 2))
    monkeypatch.setattr(page, "SLOPE_FROM", 64)
    monkeypatch.setattr(measuring, "LIMIT_GB", 0.001)
    monkeypatch.setattr(measuring, "PATIENCE_S", 1000.0)
    few = {name: about for name, about in bench.CONTENDERS.items() if name not in INSTALLED_APART}  # slow to import
    monkeypatch.setattr(bench, "CONTENDERS", few)
    out = tmp_path / "loss.json"
    measuring.main(["--json", str(out)])
    found = json.loads(out.read_text())
    cells = found["cells"]
    assert len(cells["fused 3x64x8"]["seconds"]) == 2 and cells["fused 3x64x8"]["megabytes"] > 0
    assert cells["open_clip form 3x64x8"]["seconds"] and "GB" in cells["open_clip form 3x256x8"]["too_much"]
    assert "fused, gaps 3x128x8" not in cells and "symile 2x64x8" not in cells, "the target's, the first line's"

    (last,) = cells["fused 2x128x8"]["seconds"][1:]
    del cells["fused 2x128x8"]["seconds"][1:]
    out.write_text(json.dumps(found))
    measuring.main(["--json", str(out)])
    again = json.loads(out.read_text())["cells"]
    assert again["fused 2x128x8"]["seconds"][1] != last
    del cells["fused 2x128x8"], again["fused 2x128x8"]
    assert again == cells
    assert all(made.count("\n") >= 1 for made in page.tables(found).values())


def test_ratios_are_of_the_same_turn_and_slopes_of_logarithms(bench, page):
    at = bench.TARGET
    cells = {
        bench.key_of("fused", at): {"seconds": [2.0, 4.0, 9.0]},
        bench.key_of("dense", at): {"seconds": [1.0, 4.0]},
    }
    assert page.Cells({"cells": cells}).ratio("fused", "dense", at) == 1.5
    made = {bench.key_of("fused", (4, n, 256)): {"seconds": [3e-9 * n**1.75]} for n in bench.SAMPLES}
    made[bench.key_of("fused", (4, 1024, 256))] = {"seconds": [1.0]}
    found = page.Cells({"cells": made})
    assert found.slope(found.seconds, "fused") == pytest.approx(1.75)
    assert [page.said(value, {}) for value in (0.01234, 1.0, 9.876, 55.56, 1234.5)] == ["0.0123", "1.00", "9.88", "55.6", "1,234"]  # fmt: skip
    assert page.said(None, {"too_much": "about 9 GB"}) == "about 9 GB"


def test_the_page_and_its_plot_come_from_the_results_file(bench, page):
    found = json.loads(page.RESULTS.read_text())
    text = page.PAGE.read_text()
    assert page.filled(text, found) == text
    with Image.open(page.PLOT) as plot:
        assert plot.text["Source"] == page.digest(found)
    changed = json.loads(json.dumps(found))
    changed["cells"][bench.key_of("fused", bench.TARGET)]["megabytes"] += 1
    assert page.filled(text, changed) != text


def test_a_verdict_says_which_way_a_target_is_missed(bench):
    from figures import Figure, table

    kinds = [Figure("a", 2, 1.9), Figure("b", 2, 3), Figure("c", 50, 40, most=False), Figure("d", 1, note="no GPU")]
    assert [figure.verdict for figure in kinds] == ["met", "missed by 50%", "missed by 20%", "not measured: no GPU"]
    assert "| c | at least 50 | 40 | missed by 20% |" in table(kinds)


def test_turns_are_taken_by_all_and_the_first_does_not_count(bench):
    import figures

    calls = []
    seconds = figures.turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2, repeat=2)
    assert calls == list("aabb") * 3 and [len(each) for each in seconds.values()] == [2, 2]
    assert figures.ratio({"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b") == 2.0


def test_the_quick_forms_are_functions_and_docs_show_their_results(bench):
    import importlib

    import quick

    for name in quick.MODULES:
        assert callable(importlib.import_module(name).quick)
    shown = quick.PAGE.read_text()
    assert quick.pages.filled(shown, quick.parts(json.loads(quick.RESULTS.read_text()))) == shown


def test_losses_by_hand_are_ours(bench):
    import loss_figures

    import centrobind as cb

    one, other = (bench.inputs((2, 9, 4))[0].detach() for _ in range(2))
    expected = cb.AllPairs(temperature=bench.TEMPERATURE)({"a": one[0], "b": other[1]}).total
    torch.testing.assert_close(loss_figures.by_hand(one[0], other[1]), expected)


def test_exponents_are_slopes_of_logarithms_and_docs_show_their_results(bench):
    import exponents

    assert exponents.exponent({"10": 3.0, "100": 300.0, "1000": 30000.0}) == pytest.approx(2)
    results = json.loads(exponents.RESULTS.read_text())
    assert results.keys() == exponents.LINES.keys()
    shown = exponents.PAGE.read_text()
    assert exponents.pages.filled(shown, {"exponents table": exponents.table(results)}) == shown
