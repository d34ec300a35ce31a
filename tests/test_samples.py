import numpy as np
import pytest
import torch

from centrobind.data import Codes, Samples, Strings
from centrobind.errors import DataError


def test_values_are_packed_and_found_again():
    samples = Samples.of(
        {"v": [np.array([1.0, 2.0]), None, np.array([3.0, 4.0])], "t": ["one", None, "trois é"]},
        present={"v": [True, True, True]},
    )
    assert samples.columns["v"].values.shape == (2, 2)
    assert samples.columns["v"].rows.tolist() == [0, -1, 1]
    batch = samples.batch(np.array([2, 1, 0]))
    assert batch.inputs["v"].tolist() == [[3, 4], [1, 2]] and batch.inputs["t"] == ["trois é", "one"]
    assert batch.present.tolist() == [[True, False, True]] * 2
    assert len(batch) == 3 and batch.modalities == ("v", "t") and batch.ids.tolist() == [2, 1, 0]


def test_take_only_and_part_share_values():
    samples = Samples.of({"a": np.eye(4), "b": np.eye(4)}, split=["train", "test", "train", None], ids=list("wxyz"))
    part = samples.part("train")
    assert part.ids[:] == ["w", "y"] and part.columns["a"].values is samples.columns["a"].values
    assert part.batch(np.array([1])).inputs["a"].tolist() == [[0, 0, 1, 0]]
    assert samples.only(["b"]).modalities == ("b",)
    assert samples.take(slice(1, 3)).take([1]).ids[:] == ["y"]


def test_kinds_are_guessed_and_can_be_said():
    arrays = {
        "vector": np.zeros((3, 5)),
        "series": np.zeros((3, 7, 2)),
        "grey": np.zeros((3, 8, 8), np.uint8),
        "colour": np.zeros((3, 8, 8, 3), np.uint8),
        "text": ["a", "b", "c"],
        "tensor": torch.zeros(3, 2),
    }
    kinds = {name: column.kind for name, column in Samples.of(arrays).columns.items()}
    assert kinds == {"vector": "vector", "series": "sequence", "grey": "image", "colour": "image"} | {
        "text": "text",
        "tensor": "vector",
    }
    assert Samples.of(arrays, kinds={"series": "image"}).columns["series"].kind == "image"


def test_numbers_stay_exact():
    whole = {"i1": 127, "u1": 255, "i2": -32768, "u2": 65535, "i4": 2**31 - 1, "u4": 2**32 - 1, "i8": 2**53, "?": True}
    types = {"u1": "u1", "f2": "f2", "f4": "f4", ">f4": "f4", "i1": "f4", "i2": "f4", "u2": "f4", "?": "f4"}
    for dtype in ("f2", "f4", ">f4", "f8", ">f8", "g", *whole):
        given = np.array([[whole.get(dtype, 1.5)], [0]], dtype)
        got = Samples.of({"a": given}, exact=True).columns["a"].values
        assert got.dtype == types.get(dtype, "f8") and (got == given).all(), dtype
    assert len(Samples.of({"a": np.array([[2**60]])})) == 1
    for wrong in (2**53 + 1, 1_700_000_000_123_456_789):
        with pytest.raises(DataError, match="beyond 2"):
            Samples.of({"a": np.array([[wrong]])})


def test_float64_is_kept_where_float32_would_blur_what_moves():
    draw = np.random.default_rng(0).normal(size=(100, 3))
    moving = {"plain": (0, 1), "metres": (4.5e6, 2), "seconds": (1.7e9, 1000), "tesla": (0, 1e-13), "large": (1e6, 1e4)}
    columns = Samples.of({name: offset + size * draw for name, (offset, size) in moving.items()}).columns
    kept = {name for name, column in columns.items() if column.values.dtype == np.float64}
    blurred = {
        name
        for name, (offset, size) in moving.items()
        if np.abs((offset + size * draw).astype(np.float32) - (offset + size * draw)).max() > 1e-3 * size
    }
    assert kept == blurred == {"metres", "seconds"}
    assert Samples.of({"constant": np.full((5, 2), 0.1)}).columns["constant"].values.dtype == np.float32


def test_codes_sort_numbers_as_numbers_and_keep_gaps():
    codes = Codes.of([10, 9, None, 2, 10])
    assert codes.names == ("2", "9", "10") and codes.codes.tolist() == [2, 1, -1, 0, 2]
    assert Codes.of(["b", "", "a"]).codes.tolist() == [1, -1, 0]
    assert codes.where("10").tolist() == [0, 4]
    with pytest.raises(DataError, match="'11'"):
        codes.where("11")


def test_strings_survive_anything_unicode_can_do():
    texts = ["", "é", "\ud800", "日本語" * 50, "\x00"]
    strings = Strings.of(texts)
    assert strings[:] == texts and strings.take([3, 1])[:] == [texts[3], "é"] and len(strings) == 5


WRONG = {
    "unequal counts": (dict(arrays={"a": np.eye(3), "b": np.eye(4)}), "same number of samples"),
    "nothing": (dict(arrays={}), "empty"),
    "nan": (dict(arrays={"a": np.array([[1.0], [np.nan], [np.inf]])}), r"'a': NaN or inf in 2 of 3 .*\[1, 2\]"),
    "flat": (dict(arrays={"a": np.zeros(3)}), r"array\[:, None\]"),
    "unknown kind": (dict(arrays={"a": np.eye(3)}, kinds={"a": "smell"}), "'smell'"),
    "kind of nobody": (dict(arrays={"a": np.eye(3)}, kinds={"b": "image"}), r"\['b'\]"),
    "text as image": (dict(arrays={"a": ["x"]}, kinds={"a": "image"}), "look like text"),
    "present of nobody": (dict(arrays={"a": np.eye(3)}, present={"b": [True] * 3}), r"\['b'\]"),
    "present of another length": (dict(arrays={"a": np.eye(3)}, present={"a": [True] * 2}), "expected bool"),
    "present not bool": (dict(arrays={"a": np.eye(3)}, present={"a": [1, 0, 1]}), "expected bool"),
    "labels too short": (dict(arrays={"a": np.eye(3)}, label=[0, 1]), "label: expected 3 values"),
    "ids too many": (dict(arrays={"a": np.eye(3)}, ids=list("wxyz")), "ids: expected 3"),
    "ids twice": (dict(arrays={"a": np.eye(3)}, ids=["p", "q", "p"]), r"distinct.*\['p'\]"),
    "bad name": (dict(arrays={"../a": np.eye(3)}), "modality name"),
    "shapes differ": (dict(arrays={"a": [np.zeros(2), np.zeros(3)]}), r"\(2,\), \(3,\)"),
    "mixture": (dict(arrays={"a": ["x", np.zeros(3)]}), "mixture"),
    "objects": (dict(arrays={"a": [np.zeros(2), {}]}), "got a dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_is_said(name):
    arguments, says = WRONG[name]
    with pytest.raises(DataError, match=says):
        Samples.of(**arguments)


def test_unknown_modality_and_missing_split_are_said():
    samples = Samples.of({"a": np.eye(3)})
    with pytest.raises(DataError, match=r"\['b'\]"):
        samples.only(["b"])
    with pytest.raises(DataError, match="without splits"):
        samples.part("train")
    with pytest.raises(DataError, match="'valid'"):
        Samples.of({"a": np.eye(3)}, split=["train"] * 3).part("valid")
