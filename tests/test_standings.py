"""Statistics against loops that say what they mean, and against published constants."""

import math

import numpy as np
import pytest
from scipy import stats

from centrobind.arena import standings
from centrobind.arena.contenders import Contender
from centrobind.arena.standings import Draws, Outcomes


def outcomes(seeds=2, pairs=3, samples=11, seed=0):
    draw = np.random.default_rng(seed)
    ranks = draw.integers(1, 6, (seeds, pairs, samples)).astype(float)
    ranks[:, 0, ::4] = np.nan
    transfer = draw.integers(0, 2, (seeds, pairs, samples)).astype(float)
    return Outcomes(ranks, transfer, draw.integers(0, 2, (seeds, samples)).astype(float))


def loop_measure(found, name, rows, seeds):
    """A measure on a resample given as lists of sample and seed numbers, repeats and all."""
    values = []
    for seed in seeds:
        by_pair = []
        for pair in range(found.ranks.shape[1]):
            source = found.transfer if name == "transfer/mean" else found.ranks
            drawn = [source[seed, pair, row] for row in rows if not math.isnan(source[seed, pair, row])]
            hits = [rank <= int(name.rpartition("@")[2]) for rank in drawn] if "@" in name else drawn
            by_pair.append(sum(hits) / len(hits))
        if name == "probe/all":
            values.append(sum(found.probe[seed, row] for row in rows) / len(rows))
        elif name.startswith("worst"):
            values.append(min(by_pair))
        else:
            values.append(sum(by_pair) / len(by_pair))
    return sum(values) / len(values)


@pytest.mark.parametrize("name", standings.MEASURES)
def test_a_weighted_measure_is_the_measure_of_the_resample(name):
    found, draws = outcomes(), Draws.of(11, 2, resamples=5, seed=3)
    got = found.measure(name, draws.samples, draws.seeds)
    for row in range(6):
        rows = [i for i in range(11) for _ in range(int(draws.samples[row, i]))]
        seeds = [s for s in range(2) for _ in range(int(draws.seeds[row, s]))]
        assert got[row] == pytest.approx(loop_measure(found, name, rows, seeds)), row


def test_the_first_draw_is_the_data_and_the_others_resample_it():
    draws = Draws.of(7, 3, resamples=50)
    assert (draws.samples[0] == 1).all() and (draws.seeds[0] == 1).all()
    assert (draws.samples.sum(1) == 7).all() and (draws.seeds.sum(1) == 3).all()
    assert len(np.unique(draws.samples, axis=0)) > 40
    assert (Draws.of(7, 3, resamples=50).samples == draws.samples).all(), "everybody must get the same resamples"


def test_groups_are_drawn_whole():
    draws = Draws.of(6, 1, resamples=40, units=np.array([0, 0, 0, 1, 1, 2]))
    assert (draws.samples[0] == 1).all() and (draws.samples[:, 0] == draws.samples[:, 2]).all()
    assert (draws.samples[:, [0, 3, 5]].sum(1) == 3).all() and len(np.unique(draws.samples, axis=0)) > 5


def test_paired_differences_are_narrower_than_unpaired_ones():
    draw = np.random.default_rng(0)
    hard = draw.random(400)  # how hard each sample is: what two contenders share
    hits = [(hard + 0.05 * draw.normal(size=400) > limit).astype(float) for limit in (0.5, 0.45)]
    ones = [Outcomes(np.where(h > 0, 1.0, 9.0)[None, None], np.full((1, 1, 400), np.nan), h[None]) for h in hits]
    draws = Draws.of(400, 1, resamples=400)
    drawn = [one.measure("mean/recall@1", draws.samples, draws.seeds) for one in ones]
    found = standings.difference(drawn[1], drawn[0])
    assert (
        found["low"] > 0 and found["p"] < 0.05 and found["difference"] == pytest.approx(hits[1].mean() - hits[0].mean())
    )
    apart = np.percentile(drawn[1][1:], 2.5) - np.percentile(drawn[0][1:], 97.5)
    assert apart < 0, "without pairing this difference would drown"


def test_the_p_value_of_equals_is_one_and_is_never_zero():
    same = np.array([0.5, *np.linspace(0.4, 0.6, 99)])
    assert standings.difference(same, same)["p"] == 1
    assert standings.difference(same + 9, same)["p"] == pytest.approx(2 / 100)


def test_holm_against_its_definition():
    ps = [0.01, 0.04, 0.03, 0.005]
    assert standings.holm(ps) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert standings.holm([0.9, 0.8]) == [1.0, 1.0]


def test_critical_differences_are_demsars():
    """Demsar 2006, table 5(a): q at 5 % for 2, 5 and 10 classifiers."""
    for labels, q in ((2, 1.960), (5, 2.728), (10, 3.164)):
        expected = q * math.sqrt(labels * (labels + 1) / (6 * 12))
        assert standings.critical_difference(labels, 12) == pytest.approx(expected, abs=1e-3)


def test_average_ranks_share_ties_and_leave_out_incomplete_data():
    def table(**values):
        return {"mean/recall@1": {label: np.array([value]) for label, value in values.items()}}

    tables = {"one": table(a=0.5, b=0.4, c=0.4), "two": table(a=0.1, b=0.3, c=0.2), "three": table(a=0.9, b=0.1)}
    got = standings.average_ranks(tables, "mean/recall@1", ["a", "b", "c"])
    assert got == pytest.approx({"a": 2.0, "b": 1.75, "c": 2.25})
    assert standings.average_ranks({"three": tables["three"]}, "mean/recall@1", ["a", "b", "c"]) == {}


def test_hindsight_takes_the_anchor_that_came_out_best():
    a, b, frozen, pairs = (
        Contender("fabind", "a"),
        Contender("fabind", "b"),
        Contender("fabind", "a", True),
        Contender("all_pairs"),
    )
    table = {
        a: np.array([0.2, 0.9]),
        b: np.array([0.3, 0.1]),
        frozen: np.array([0.1, 0.1]),
        pairs: np.array([0.9, 0.9]),
    }
    more = standings.with_hindsight(table)
    assert (more[Contender("fabind")] == [0.3, 0.1]).all(), "by the estimate, not by a resample"
    assert (more[Contender("fabind", frozen=True)] == [0.1, 0.1]).all() and len(more) == len(table) + 2


def test_duels_count_what_is_sure_and_leave_single_anchors_out():
    draw = np.random.default_rng(0)
    noise = 0.01 * draw.normal(size=500)
    ours, rival = Contender("leave_one_out"), Contender("all_pairs")

    def table(mine, theirs):
        drawn = {
            ours: np.array([mine, *(mine + noise)]),
            rival: np.array([theirs, *(theirs + 0.01 * draw.normal(size=500))]),
        }
        return {"mean/recall@1": drawn | {Contender("fabind", "x"): drawn[rival]}}

    tables = {"won": table(0.5, 0.3), "lost": table(0.3, 0.5), "level": table(0.4, 0.4)}
    (one,) = standings.duels(tables, ours, ["mean/recall@1"])
    assert (one["wins"], one["losses"], one["ties"]) == (1, 1, 1) and one["rival"] == "all pairs"
    assert one["by_data"]["won"]["difference"] == pytest.approx(0.2)


def test_intervals_over_seeds_are_students():
    values = [0.1, 0.4, 0.3]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert standings.interval_over_seeds(values) == pytest.approx((np.mean(values), low, high))
    assert standings.interval_over_seeds([0.4]) == (0.4, 0.4, 0.4)
