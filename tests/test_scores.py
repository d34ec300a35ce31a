"""Scores: typed keys, strings that no name can break, tables that fit, and files of older versions."""

import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import centrobind as cb
from centrobind.errors import DataError
from centrobind.evaluation.evaluate import recall_differences, recall_intervals
from centrobind.evaluation.metrics import retrieval
from centrobind.evaluation.scores import joined, parted, quoted, unquoted
from centrobind.evaluation.summary import Scores
from centrobind.report.page import recall_matrix
from centrobind.report.tables import columns_of, markdown_table
from centrobind.types import Embeddings

# Names that once shared a key or broke a reserved one, and names that no store allows but `Embeddings.of` does.
AWKWARD = (
    "all",
    "mean",
    "worst",
    "majority",
    "a",
    "b_to_c",
    "a_to_b",
    "c",
    "x_to",
    "to_y",
    "p/q",
    'say "hi"',
    "",
    "_to_",
)


def space(names, samples=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(samples, 8, generator=draw)
    present = {name: torch.rand(samples, generator=draw) > 0.2 for name in names}
    return Embeddings.of({name: common + torch.randn(samples, 8, generator=draw) for name in names}, present)


@pytest.fixture(scope="module")
def awkward():
    made = space(AWKWARD)
    return made, cb.evaluate(made, np.arange(40) % 2, resamples=20)


def test_any_names_will_do(awkward):
    made, scores = awkward
    plain = retrieval(replace(made, modalities=tuple("abcdefghijklmn")))
    names = dict(zip(AWKWARD, "abcdefghijklmn"))
    assert len(scores) == len(AWKWARD) * (len(AWKWARD) - 1)
    for query, target in scores:
        row = replace(scores[query, target], interval={})
        assert row == plain[names[query], names[target]]
    assert replace(scores.mean, interval={}) == plain.mean and replace(scores.worst, interval={}) == plain.worst
    assert set(scores.probe.by_modality) == set(AWKWARD)
    assert scores.probe["all"] == scores.probe.by_modality["all"] != scores.probe.all, "the modality of that name"
    assert len(scores.transfer) == len(scores) and len(scores.geometry.gap) == len(scores) // 2


def test_strings_can_be_read_back(awkward):
    _, scores = awkward
    flat = scores.to_dict()
    assert all(isinstance(key, str) and isinstance(value, float | int) for key, value in flat.items())
    again = Scores.of_dict(json.loads(json.dumps(flat)), scores.samples)
    assert again == replace(scores, geometry=None)


@pytest.mark.parametrize("joint", ["_to_", "_with_"])
def test_two_names_are_one_string_in_one_way_only(joint):
    names = [*AWKWARD, "a_with_b", "x_with", "with_y", "_with_", "a_", "_b", "_", "é", "a\nb", "\\"]
    keys = {}
    for pair in itertools.product(names, repeat=2):
        key = joined(*pair, joint)
        assert keys.setdefault(key, pair) == pair
        assert parted(key, joint) == (*pair, "") and parted(f"{key}/recall@1/low", joint) == (*pair, "recall@1/low")
    assert joined("name_en", "image") == "name_en_to_image"
    assert {unquoted(quoted(name)) for name in names} == set(names)


def test_a_direction_that_is_none_says_which_there_are():
    scores = retrieval(space("ab"))
    with pytest.raises(DataError, match=r"one of \['a', 'b'\], \['b', 'a'\], or \.mean or \.worst; got \['a', 'c'\]"):
        scores["a", "c"]
    with pytest.raises(DataError, match=r"got \['mean/recall@2'\]"):
        scores["mean/recall@2"]
    scores = cb.evaluate(space("ab"), np.arange(40) % 2)
    with pytest.raises(DataError, match=r"one of \['a', 'b', 'all'\], got 'c'"):
        scores.probe["c"]


def test_strings_are_keys_as_well(awkward):
    _, scores = awkward
    flat = scores.to_dict()
    assert dict(scores) == flat == dict(scores.items()) and list(scores.keys()) == list(flat)
    assert scores["mean/recall@1"] == scores.mean.recall[1] and "mean/recall@1" in scores and "a/mrr" not in scores
    assert scores['"b_to_c"_to_a/mrr'] == scores["b_to_c", "a"].mrr and ("b_to_c", "a") in scores


def test_mean_and_worst_are_of_the_directions():
    scores = retrieval(space("abc"))
    rows = list(scores.pairs.values())
    for k in (1, 5, 10):
        assert scores.mean.recall[k] == pytest.approx(np.mean([row.recall[k] for row in rows]))
        assert scores.worst.recall[k] == min(row.recall[k] for row in rows)
        assert scores.mean.chance[k] == pytest.approx(np.mean([row.chance[k] for row in rows]))
    assert scores.worst.median_rank == max(row.median_rank for row in rows)


def test_chance_is_what_a_random_space_reaches():
    """Mean recall of unrelated embeddings, with rows missing and repeated values, over many draws."""
    groups = np.arange(60) // 3
    reached = []
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        here = torch.arange(60) % 7 > 1
        z = {name: torch.randn(60, 16, generator=draw) for name in "ab"}
        scores = retrieval(Embeddings.of(z, {"b": here}), groups=groups)
        reached.append([scores["a", "b"].recall[k] for k in (1, 5, 10)])
    error = np.std(reached, axis=0) / 40**0.5
    assert (abs(np.mean(reached, axis=0) - list(scores["a", "b"].chance.values())) < 4 * error).all()
    assert scores["a", "b"].chance[1] > 2 / 44, "several right ones"


@pytest.mark.parametrize("names", ["ab", ["skeleton_of_the_left_hand" * 2, "accelerometer" * 5, "c"], AWKWARD])
def test_tables_fit_a_hundred_columns(names, awkward):
    scores = cb.evaluate(space(names), np.arange(40) % 2, resamples=10)
    grouped = cb.evaluate(space(names), np.arange(40) % 2, groups=np.arange(40) // 2, resamples=10)
    for made in (scores, grouped, retrieval(space(names))):
        lines = made.table().splitlines()
        assert max(map(len, lines)) <= 100
        assert lines[0].split()[:2] == ["R@1", "%"] and "chance" in lines[0] and "40 samples" in made.table()
        assert f"{100 * made.mean.recall[1]:.1f}" in lines[2] and str(made) == made.table()
    assert "mAP" in grouped.table() and "mAP" not in scores.table().splitlines()[0]
    assert "right ones on average" in grouped.table() and len(repr(scores)) < 300 and "chance" in repr(scores)


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def test_notebooks_get_a_table_in_which_names_are_text():
    reader = Cells()
    reader.feed(cb.evaluate(space(["<b>bold", "b"]), np.arange(40) % 2)._repr_html_())
    assert reader.open == [] and "<b>bold → b" in reader.texts and "R@1 %" in reader.texts


def test_differences_and_intervals_take_the_same_keys(awkward):
    made, scores = awkward
    ends = recall_intervals(made, 20)
    assert ends["a", "b_to_c"] == scores["a", "b_to_c"].interval and ends.worst == scores.worst.interval
    differences = recall_differences(made, made, resamples=5)
    assert set(differences) == set(scores) and differences["a_to_b", "c"].difference == 0


OLD = ("recall@1", "recall@1/low", "recall@1/high", "recall@5", "recall@10", "mrr", "median_rank")


def test_results_of_older_versions_are_still_read():
    names = ("image", "outline", "name")
    pairs = [f"{a}_to_{b}" for a in names for b in names if a != b]
    flat = {f"{pair}/{key}": 0.1 * at for at, pair in enumerate([*pairs, "mean", "worst"]) for key in OLD}
    flat |= {"probe/all": 0.8, "probe/image": 0.5}
    scores = Scores.of_dict(flat)
    assert set(scores.pairs) == set(itertools.permutations(("image", "outline", "name"), 2))
    assert scores["image", "name"].recall[1] == flat["image_to_name/recall@1"]
    assert scores.mean.interval[1].low == flat["mean/recall@1/low"] and scores.probe.all == flat["probe/all"]
    assert recall_matrix(flat, ["image", "name"])[0, 1] == 100 * flat["image_to_name/recall@1"]


def test_pages_show_awkward_names_as_they_are(awkward):
    _, scores = awkward
    rows = [{"label": "x", "metrics": scores.to_dict()}]
    heads = [head for head, _ in columns_of(rows)]
    assert "a → b_to_c" in heads and "a_to_b → c" in heads and heads.count("mean") == 1 and "probe all" in heads
    assert f"{100 * scores['a', 'b_to_c'].recall[1]:.1f}" in markdown_table(rows)
    assert recall_matrix(rows[0]["metrics"], AWKWARD)[4, 5] == 100 * scores["a", "b_to_c"].recall[1]
