import math

import numpy as np
import pytest
import torch

from centrobind.errors import DataError
from centrobind.evaluation import evaluate as module
from centrobind.evaluation.evaluate import evaluate, probes, recall_differences, recall_intervals
from centrobind.evaluation.metrics import ranks_by_sample, retrieval
from centrobind.types import Embeddings


def classes(samples=200, noise=0.3, seed=0, names="abc", gaps=False):
    """Embeddings in which the class is a direction, common to all modalities."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(samples) % 4
    z = {name: torch.eye(8)[label] + noise * torch.randn(samples, 8, generator=draw) for name in names}
    present = {name: torch.rand(samples, generator=draw) > 0.3 for name in names} if gaps else None
    return Embeddings.of(z, present), label.numpy()


def test_probes_learn_from_train_and_are_tested_on_test():
    (train, y_train), (test, y) = classes(seed=1), classes(seed=2)
    found = evaluate(test, y, train=train, train_labels=y_train)
    for kind in (found.probe, found.knn):
        assert min(kind["a"], kind["b"], kind["c"], kind.all, kind["all"]) > 0.9
    assert len(found.transfer) == 6 and min(found.transfer.values()) > 0.9
    assert found.probe.majority == 0.25
    shuffled = np.random.default_rng(0).permutation(y_train)
    assert evaluate(test, y, train=train, train_labels=shuffled).probe["all"] < 0.5


def test_transfer_fails_where_modalities_do_not_share_a_space():
    (train, y_train), (test, y) = classes(seed=1), classes(seed=2)
    turn = torch.tensor([1, 2, 3, 0, 4, 5, 6, 7])  # b says every class in another direction
    for part in (train, test):
        part.z[1] = part.z[1][:, turn]
    found = evaluate(test, y, train=train, train_labels=y_train)
    assert found.probe["b"] > 0.9 and found.transfer["a", "b"] < 0.2 and found.transfer["a", "c"] > 0.9


def test_without_train_probes_are_cross_validated():
    test, y = classes()
    assert evaluate(test, y).probe["a"] > 0.9
    noise = Embeddings.of({name: torch.randn(120, 8, generator=torch.Generator().manual_seed(3)) for name in "ab"})
    assert evaluate(noise, np.arange(120) % 4).probe["all"] < 0.45  # would be 1 if it were tested on what it learned


def test_gaps_and_missing_labels_are_left_out():
    (train, y_train), (test, y) = classes(400, seed=1, gaps=True), classes(400, seed=2, gaps=True)
    some = [None if i % 3 == 0 else int(c) for i, c in enumerate(y)]
    found = evaluate(test, some, train=train, train_labels=list(y_train))
    assert found.probe["a"] > 0.9 and found.transfer["a", "b"] > 0.9
    assert 0.7 < found.probe["all"] <= 1.0


def test_absent_rows_teach_the_probes_nothing(monkeypatch):
    from centrobind.evaluation import evaluate

    learned = []
    plain = evaluate.fit_linear_probe
    monkeypatch.setattr(evaluate, "fit_linear_probe", lambda x, y: learned.append(x) or plain(x, y))
    (train, y_train), (test, y) = classes(100, seed=1, gaps=True), classes(100, seed=2)
    probes(test, y, train, [None] * 50 + list(y_train[50:]))
    assert len(learned) == 4 and len(learned.pop(0)) == int(train.present[:, 50:].any(0).sum())  # all of them together
    for m, x in enumerate(learned):
        assert len(x) == int(train.present[m, 50:].sum()) and np.abs(x).sum(1).min() > 0


def test_labels_may_be_strings_numbers_or_codes():
    test, y = classes()
    names = np.array(["ant", "bee", "cat", "dog"])
    assert evaluate(test, names[y]).probe["a"] == evaluate(test, y.tolist()).probe["a"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": [0, 1]}, "expected 200 values"),
        ({"labels": [1] * 200}, "at least two classes"),
        ({"labels": None, "train_labels": [1]}, "need labels="),
        ({"labels": "y", "train_labels": [1]}, "go together"),
    ],
)
def test_labels_that_do_not_fit_are_said(arguments, says):
    test, y = classes()
    arguments = {key: y if value == "y" else value for key, value in arguments.items()}
    with pytest.raises(DataError, match=says):
        evaluate(test, **arguments)


def test_other_modalities_in_train_are_said():
    (train, y_train), (test, y) = classes(names="ab"), classes()
    with pytest.raises(DataError, match="modalities"):
        evaluate(test, y, train=train, train_labels=y_train)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_intervals_are_those_of_drawing_samples_one_by_one(count, monkeypatch):
    test, _ = classes(40, noise=0.5, names="abcde"[:count], gaps=True)
    ranks = {pair: ranks_by_sample(test, *pair) for pair in test.pairs}
    draw, values = np.random.default_rng(3), {(pair, k): [] for pair in [*ranks, "mean", "worst"] for k in (1, 5, 10)}
    for _ in range(50):
        drawn = [int(draw) for draw in draw.integers(0, 40, 40)]
        for k in (1, 5, 10):
            by_pair = []
            for pair, places in ranks.items():
                hits = [places[i] <= k for i in drawn if math.isfinite(places[i])]
                by_pair.append(sum(hits) / len(hits))
                values[pair, k].append(by_pair[-1])
            values["mean", k].append(sum(by_pair) / len(by_pair))
            values["worst", k].append(min(by_pair))
    for at_once in (40, 7 * 40, 10**6):
        monkeypatch.setattr(module, "DRAWN", at_once)
        ends = recall_intervals(test, 50, seed=3)
        for (pair, k), drawn in values.items():
            found = {"mean": ends.mean, "worst": ends.worst}.get(pair) or ends[pair]
            assert found[k] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))


def test_intervals_hold_the_estimate_and_narrow_with_samples():
    def width(samples):
        test, _ = classes(samples, noise=0.2)
        found, ends = retrieval(test), recall_intervals(test, 500)
        for inside, of in ((ends["a", "b"], found["a", "b"]), (ends.mean, found.mean)):
            assert all(inside[k].low <= of.recall[k] <= inside[k].high for k in (1, 5, 10))
        return ends.mean[10].high - ends.mean[10].low

    assert width(600) < 0.7 * width(150)


def test_intervals_cover_as_often_as_they_say():
    """Hits of probability p: about 95 % of the intervals hold p."""
    held = 0
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        right = torch.rand(80, generator=draw) < 0.6  # these samples find their match, the others a stranger
        z = torch.eye(81)
        other = torch.where(right[:, None], z[:80], z[80])
        ends = recall_intervals(Embeddings.of({"a": z[:80], "b": other}), 300, seed=seed, groups=range(80))
        held += ends["a", "b"][1].low <= 0.6 <= ends["a", "b"][1].high
    assert 50 <= held <= 60


def test_paired_differences_are_signed_and_zero_for_equals():
    same = torch.randn(200, 8, generator=torch.Generator().manual_seed(5))
    good = Embeddings.of(dict.fromkeys("abc", same))
    bad = good.with_z(good.z.clone())
    bad.z[0] = bad.z[0].roll(1, 0)
    difference, low, high = recall_differences(good, bad)["a", "b"]
    assert difference > 0.9 and low > 0.8 and high <= 1
    assert recall_differences(bad, good)["a", "b"][0] == -difference
    assert recall_differences(good, good).mean == (0, 0, 0)
    assert recall_differences(good, bad)["b", "c"] == (0, 0, 0)
    with pytest.raises(DataError, match="same samples"):
        recall_differences(good, bad.take(slice(0, 10)))
