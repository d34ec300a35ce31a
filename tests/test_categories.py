"""Labels, splits, groups and ids, as every library writes them."""

import datetime

import numpy as np
import pyarrow
import pytest
import torch

import centrobind as cb
from centrobind.data import Codes, Samples, assign_splits
from centrobind.errors import DataError

NAN = float("nan")
GIVEN = {
    "texts": (["cat", None, "", "dog"], ["cat", "", "", "dog"]),
    "NaN among texts": (["cat", NAN, np.float64("nan"), "dog"], ["cat", "", "", "dog"]),
    "array of objects": (np.array(["cat", np.nan, None, "dog"], object), ["cat", "", "", "dog"]),
    "floats with a gap": (np.array([1.0, NAN, 2.0, 1.0]), ["1", "", "2", "1"]),
    "floats": ([0.5, 1.0, 2, 0.5], ["0.5", "1", "2", "0.5"]),
    "int tensor": (torch.tensor([2, 10, 2, 1]), ["2", "10", "2", "1"]),
    "float tensor": (torch.tensor([2.0, NAN, 2.0, 1.0]), ["2", "", "2", "1"]),
    "list of tensors": ([torch.tensor(2), torch.tensor(3), torch.tensor(2), torch.tensor(2)], ["2", "3", "2", "2"]),
    "masked": (np.ma.masked_array([1, 2, 3, 1], [0, 1, 0, 0]), ["1", "", "3", "1"]),
    "times": (np.array(["2020-01-01", "NaT", "2021-01-01", "2020-01-01"], "M8[ns]"), None),
    "dates": ([datetime.date(2020, 1, 1), None, None, None], ["2020-01-01", "", "", ""]),
    "bytes": (np.array([b"cat", b"dog", b"", b"cat"]), ["cat", "dog", "", "cat"]),
    "arrow": (pyarrow.array(["cat", None, "dog", "cat"]), ["cat", "", "dog", "cat"]),
    "bools": ([True, False, None, True], ["True", "False", "", "True"]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_category_is_named_the_same_whoever_writes_it(name):
    given, expected = GIVEN[name]
    got = Codes.of(given).texts()
    if expected is None:  # how a time is written is numpy's affair
        expected = [got[0], "", got[2], got[0]]
        assert got[0].startswith("2020-01-01") and got[2].startswith("2021-01-01")
    assert got == expected


def test_pandas_and_polars_themselves():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    expected = ["b", "", "a", "b"]
    texts = ["b", None, "a", "b"]
    for given in (pandas.Series(texts), pandas.Categorical(texts), pandas.array(texts, "string"), polars.Series(texts)):
        assert Codes.of(given).texts() == expected
    assert Codes.of(pandas.Series([1, None, 2, 1])).texts() == ["1", "", "2", "1"]
    assert Codes.of(pandas.array([1, None, 2, 1], "Int64")).texts() == ["1", "", "2", "1"]
    assert Codes.of([pandas.NaT, pandas.NA, "x"]).texts() == ["", "", "x"]


def test_numbers_sort_as_numbers_before_texts():
    assert Codes.of([10, 9.0, "b", 2, "a", 1.5]).names == ("1.5", "2", "9", "10", "a", "b")


REFUSED = {
    "a number and a text of one name": ([1, "1"], "as a number and as a text"),
    "one-hot": (np.eye(2), r"one-hot rows take values.argmax\(1\)"),
    "one-hot tensor": (torch.eye(2), "one-hot"),
    "one-hot lists": ([[0, 1], [1, 0]], "one-hot"),
    "one-hot arrays": ([np.array([0, 1]), np.array([1, 0])], "one-hot"),
    "a column": (np.array([["a"], ["b"]]), r"shape \(2, 1\)"),
    "several": ([("a", "b"), ("a",)], "several labels"),
    "dicts": ([{"a": 1}, {"b": 1}], "a dict in the place of one"),
    "one text": ("ab", "single text 'ab'"),
    "set": ({"a", "b"}, "got a set"),
    "generator": ((letter for letter in "ab"), "got a generator"),
    "bytes that are no text": ([b"\xff", b"a"], "not UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_category_per_sample_is_refused(name):
    given, says = REFUSED[name]
    with pytest.raises(DataError, match=f"label: .*{says}"):
        Samples.of({"a": np.eye(2)}, label=given)


@pytest.mark.parametrize("gap", [None, NAN, np.datetime64("NaT"), ""])
def test_probes_leave_out_whom_no_label_was_given(gap):
    draw = np.random.default_rng(0)
    label = np.array(["cat", "dog"])[draw.integers(0, 2, 60)]
    z = torch.tensor(draw.normal(size=(60, 8)) + 3 * (label == "cat")[:, None], dtype=torch.float32)
    embeddings = cb.Embeddings.of({"a": z, "b": z + 0.1})
    labels = [gap if i % 3 == 0 else name for i, name in enumerate(label)]
    left = np.arange(60) % 3 > 0
    scores = cb.evaluate(embeddings, labels=labels)
    most = max((label[left] == name).mean() for name in ("cat", "dog"))
    assert scores.probe.majority == pytest.approx(most) and scores.probe.all > 0.8


def test_samples_without_a_group_or_split_are_in_none():
    samples = Samples.of({"a": np.eye(60)}, group=[NAN] * 50 + ["g"] * 10, split=["train"] * 30 + [NAN] * 30)
    assert samples.group.names == ("g",) and samples.split.names == ("train",) and len(samples.part("train")) == 30
    parts = assign_splits(samples)
    assert len(set(parts.split.codes[:50])) == 3 and len(set(parts.split.codes[50:])) == 1


@pytest.mark.parametrize("missing", [None, NAN, ""])
def test_a_sample_without_an_id_is_said(missing):
    with pytest.raises(DataError, match=r"ids: expected one for every sample, got none for 1, first rows \[1\]"):
        Samples.of({"a": np.eye(3)}, ids=["p", missing, "q"])


def test_ids_are_texts_of_whatever_they_were():
    assert Samples.of({"a": np.eye(3)}, ids=torch.tensor([7, 8, 9])).ids[:] == ["7", "8", "9"]
    assert Samples.of({"a": np.eye(3)}, ids=[1.0, 2.5, "x"]).ids[:] == ["1", "2.5", "x"]


def test_embeddings_that_are_still_trained_can_be_scored():
    z = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    labels = ["cat", "dog"] * 30
    plain = cb.evaluate(cb.Embeddings.of({"a": z, "b": z + 1}), labels=labels)
    z = z.clone().requires_grad_()
    learning = cb.Embeddings.of({"a": z, "b": z + 1})
    assert cb.evaluate(learning, labels=labels).probe == plain.probe
    with_train = cb.evaluate(learning, labels=labels, train=learning, train_labels=labels)
    assert with_train.mean.recall == plain.mean.recall
