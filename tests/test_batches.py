import threading
from itertools import islice

import numpy as np
import pytest

from centrobind.data import ReadAhead, Sampler, Samples, assign_splits, fixed_sample, train_and_valid
from centrobind.errors import DataError


def plain(count, **about):
    return Samples.of({"a": np.zeros((count, 1)), "b": np.zeros((count, 1))}, **about)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (11, 4), (7, 7), (100, 33), (2, 2)])
def test_every_sample_once_an_epoch_in_batches_of_nearly_equal_size(count, size):
    sampler = Sampler(count, size, seed=1)
    stream = iter(sampler)
    epochs = []
    for _ in range(3):
        batches = [next(stream) for _ in range(sampler.batches_per_epoch)]
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        epochs.append(np.concatenate(batches))
        assert sorted(epochs[-1]) == list(range(count))
    if count > 7:
        assert not np.array_equal(epochs[0], epochs[1])


def test_stopping_anywhere_and_going_on_changes_nothing():
    whole = [batch.tolist() for batch in islice(Sampler(23, 5, seed=3), 20)]
    for stop in range(20):
        first = Sampler(23, 5, seed=3)
        done = [batch.tolist() for batch in islice(first, stop)]
        second = Sampler(23, 5, seed=99)
        second.load_state(first.state())
        assert done + [batch.tolist() for batch in islice(second, 20 - stop)] == whole


def test_another_seed_is_another_order():
    one, other = (next(iter(Sampler(50, 50, seed=s))) for s in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("size", [0, 1, 11])
def test_batch_size_must_fit_the_data(size):
    with pytest.raises(DataError, match="between 2 and the 10"):
        Sampler(10, size)


def test_splits_have_their_share_and_repeat():
    samples = assign_splits(plain(1000), seed=4)
    assert [len(samples.part(name)) for name in ("train", "valid", "test")] == [700, 100, 200]
    assert np.array_equal(samples.split.codes, assign_splits(plain(1000), seed=4).split.codes)
    assert not np.array_equal(samples.split.codes, assign_splits(plain(1000), seed=5).split.codes)


def test_groups_stay_together():
    group = np.arange(300) // 7
    samples = assign_splits(plain(300, group=group), {"train": 0.5, "test": 0.5})
    for g in set(group):
        assert len(set(samples.split.codes[group == g])) == 1
    assert 100 < len(samples.part("test")) < 200


def test_samples_without_a_group_stand_alone():
    samples = assign_splits(plain(200, group=["x"] * 100 + [None] * 100), {"train": 0.5, "test": 0.5})
    assert len(set(samples.split.codes[:100])) == 1 and len(set(samples.split.codes[100:])) == 2


@pytest.mark.parametrize(
    ("samples", "fractions", "says"),
    [
        (plain(9), {"train": 0.5, "test": 0.6}, "add up to 1"),
        (plain(9), {"train": 1.5, "test": -0.5}, "positive"),
        (plain(4, group=["x"] * 4), {"train": 0.5, "test": 0.5}, "would be empty"),
    ],
)
def test_impossible_splits_are_said(samples, fractions, says):
    with pytest.raises(DataError, match=says):
        assign_splits(samples, fractions)


def test_validation_comes_from_train_and_never_from_test():
    given = assign_splits(plain(100, ids=range(100)))
    assert [part.ids[:] for part in train_and_valid(given)] == [given.part(name).ids[:] for name in ("train", "valid")]
    two = plain(100, split=["train"] * 60 + ["test"] * 40)
    learn, valid = train_and_valid(two, valid=0.25)
    assert (len(learn), len(valid)) == (45, 15)
    assert set(map(int, learn.ids[:] + valid.ids[:])) == set(range(60))
    assert [len(part) for part in train_and_valid(plain(50))] == [45, 5]


def test_reading_ahead_hands_out_the_same_batches_and_its_state_is_of_what_was_handed_out():
    samples = Samples.of({"a": np.arange(23.0)[:, None], "b": np.ones((23, 1))})
    plain_sampler = Sampler(23, 5, seed=3)
    expected = [(rows, plain_sampler.state()) for rows in islice(plain_sampler, 12)]
    were_read = threading.Semaphore(0)

    def read(rows):
        were_read.release()
        return samples.batch(rows)

    with ReadAhead(Sampler(23, 5, seed=3), read) as batches:
        assert were_read.acquire(timeout=10) and batches.state() == {"seed": 3, "epoch": 0, "seen": 0}
        for rows, state in expected:
            batch = next(batches)
            assert batch.ids.tolist() == rows.tolist() == batch.inputs["a"][:, 0].tolist()
            assert were_read.acquire(timeout=10), "the next one is read, though nobody asked for it"
            assert batches.state() == state


def test_what_goes_wrong_while_reading_ahead_comes_out_at_its_batch():
    def read(rows):
        if 7 in rows:
            raise DataError("batch with sample 7")
        return rows

    order = next(iter(Sampler(8, 8, seed=1)))
    place = int(np.flatnonzero(order == 7)[0]) // 2
    with ReadAhead(Sampler(8, 2, seed=1), read) as batches:
        for _ in range(place):
            assert 7 not in next(batches)
        with pytest.raises(DataError, match="sample 7"):
            next(batches)


@pytest.mark.parametrize("state", [{"seen": 11}, {"seen": -1}, {"epoch": -1}, {"seed": -1}])
def test_a_state_that_cannot_be_is_refused(state):
    with pytest.raises(DataError, match="place within 10 samples"):
        Sampler(10, 2).load_state({"seed": 0, "epoch": 0, "seen": 0} | state)


# ---- positives -----------------------------------------------------------------------------------------------------

POSITIVES = [
    (400, 40, 8, 1),
    (400, 40, 20, 1),
    (23, 5, 5, 1),
    (23, 5, 11, 2),
    (10, 3, 9, 2),
    (41, 7, 2, 2),
    (12, 12, 1, 1),
]


@pytest.mark.parametrize(("count", "size", "few", "least"), POSITIVES)
def test_every_batch_has_its_positives(count, size, few, least):
    for seed in range(5):
        positives = np.zeros(count, bool)
        positives[np.random.default_rng(seed).permutation(count)[:few]] = True
        sampler = Sampler(count, size, seed, positives=positives, least=least)
        left_out = []
        for _ in range(6):
            epoch = list(islice(iter(sampler), sampler.batches_per_epoch))
            rows = np.concatenate(epoch)
            assert all(positives[batch].sum() >= least and 2 <= len(batch) <= size for batch in epoch)
            assert len(set(rows)) == len(rows) == sampler.per_epoch
            assert set(np.flatnonzero(positives)) <= set(rows), "what can be learned from is in every epoch"
            assert sampler.per_epoch == count or len(epoch) == few // least, "no batch less than there can be"
            left_out.append(frozenset(range(count)) - set(rows))
        assert len(set(left_out)) > 1 or sampler.per_epoch == count, "others are left out each time"


def test_where_every_batch_has_a_positive_anyway_nothing_changes():
    positives = np.arange(60) % 2 == 0
    plain, aware = Sampler(60, 15, seed=3), Sampler(60, 15, seed=3, positives=positives)
    for one, other in islice(zip(plain, aware), 12):
        assert one.tolist() == other.tolist()


def test_stopping_and_resuming_with_few_positives_changes_nothing():
    positives = np.arange(41) < 5
    whole = Sampler(41, 4, seed=2, positives=positives)
    expected = [batch.tolist() for batch in islice(whole, 13)]
    for stop in (1, 5, 7):
        first = Sampler(41, 4, seed=2, positives=positives)
        batches = [batch.tolist() for batch in islice(first, stop)]
        second = Sampler(41, 4, seed=9, positives=positives)
        second.load_state(first.state())
        assert batches + [batch.tolist() for batch in islice(second, 13 - stop)] == expected
    with pytest.raises(DataError, match="expected 2 positives for every batch, got 1"):
        Sampler(9, 3, positives=np.arange(9) < 1, least=2)


def test_a_part_to_validate_on_has_a_pair_if_it_can():
    for seed in range(30):
        paired = np.zeros(300, bool)
        paired[np.random.default_rng(seed).permutation(300)[:6]] = True
        samples = Samples.of({"a": np.eye(300), "b": np.eye(300)}, present={"b": paired})
        for part in train_and_valid(samples, seed=seed):
            assert (part.present.sum(0) >= 2).any()
    assert (
        len(train_and_valid(Samples.of({"a": np.eye(50), "b": np.eye(50)}, present={"b": np.zeros(50, bool)}))[1]) == 5
    )


@pytest.mark.parametrize(
    "names", [("train", "val"), ("train", "validation"), ("train", "dev"), ("Train", "Valid"), ("training", "VAL")]
)
def test_a_validation_split_is_used_whatever_it_is_called(names):
    samples = plain(20, split=[names[0]] * 12 + [names[1]] * 5 + ["test"] * 3)
    train, valid = train_and_valid(samples)
    assert train.ids[:] == [str(i) for i in range(12)] and valid.ids[:] == [str(i) for i in range(12, 17)]
    assert samples.has("valid") and not samples.has("dev2") and len(samples.part("valid")) == 5
    assert samples.part(names[1]).ids[:] == valid.ids[:]


def test_two_splits_for_one_are_refused_unless_one_has_its_very_name():
    with pytest.raises(DataError, match=r"one split for 'valid', got \['dev', 'val'\]"):
        train_and_valid(plain(20, split=["train"] * 12 + ["dev"] * 4 + ["val"] * 4))
    _, valid = train_and_valid(plain(20, split=["train"] * 12 + ["dev"] * 4 + ["valid"] * 4))
    assert valid.ids[:] == ["16", "17", "18", "19"]


def test_a_part_can_be_trained_on_although_its_data_has_more_splits():
    whole = plain(40, split=["train"] * 20 + ["valid"] * 10 + ["test"] * 10)
    train, valid = train_and_valid(whole.part("train"))
    assert {*train.ids[:], *valid.ids[:]} == {str(i) for i in range(20)} and len(valid) == 2
    with pytest.raises(DataError, match=r"split 'train' is empty.*the splits are \['test', 'train', 'valid'\]"):
        train_and_valid(whole.part("test"))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3.7, True, "5", None])
def test_a_place_that_is_no_whole_number_is_refused(value):
    for key in ("seed", "epoch", "seen"):
        with pytest.raises(DataError, match="expected whole numbers"):
            Sampler(10, 4).load_state({"seed": 0, "epoch": 0, "seen": 0, key: value})


def test_a_fixed_sample_is_drawn_once_for_all():
    samples = plain(1000, ids=range(1000), group=np.arange(1000) % 7)
    drawn = fixed_sample(samples, 300)
    rows = np.array(drawn.ids[:]).astype(int)
    assert len(set(rows)) == 300 and (np.diff(rows) > 0).all() and drawn.group.names == samples.group.names
    assert fixed_sample(samples, 300).ids[:] == drawn.ids[:] != fixed_sample(samples, 300, seed=1).ids[:]
    assert abs(np.mean(rows) - 500) < 60 and fixed_sample(samples, 1000) is samples
    assert len(fixed_sample(plain(4200))) == 4096, "by default"


@pytest.mark.parametrize("pairs", [1, 40, 5000])
def test_a_fixed_sample_has_pairs_if_there_are_any(pairs):
    present = np.arange(20_000) >= 20_000 - pairs
    samples = Samples.of({"a": np.zeros((20_000, 1)), "b": np.zeros((20_000, 1))}, present={"b": present})
    kept = (fixed_sample(samples, 500).present.sum(0) >= 2).sum()
    assert kept == pairs if pairs < 250 else 250 <= kept < 450
