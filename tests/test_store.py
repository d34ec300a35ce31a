import json
import os
import subprocess
import sys

import numpy as np
import pytest

from centrobind.data import Samples, open_store, write_store
from centrobind.data.store import read_in_chunks
from centrobind.errors import StoreError


def same(a: Samples, b: Samples) -> None:
    assert a.modalities == b.modalities and a.ids[:] == b.ids[:]
    rows = np.arange(len(a))
    for name in a.modalities:
        assert a.columns[name].kind == b.columns[name].kind
        assert a.columns[name].present.tolist() == b.columns[name].present.tolist()
        one, other = a.columns[name].take(rows), b.columns[name].take(rows)
        assert one == other if isinstance(one, list) else np.array_equal(one, other)
    for what in ("label", "split", "group"):
        one, other = getattr(a, what), getattr(b, what)
        assert (one is None) == (other is None)
        if one is not None:
            assert [(*one.names, "")[c] for c in one.codes] == [(*other.names, "")[c] for c in other.codes]


def test_what_goes_in_comes_out(mixed, tmp_path):
    same(mixed, open_store(write_store(tmp_path / "s", mixed), verify=True))


@pytest.mark.parametrize("size", [1, 7, 59, 60, 1000])
def test_chunks_make_the_same_store_as_the_whole(mixed, tmp_path, size):
    write_store(tmp_path / "s", read_in_chunks(mixed, size))
    same(mixed, open_store(tmp_path / "s", verify=True))


def test_values_stay_on_disk(mixed, tmp_path):
    opened = open_store(write_store(tmp_path / "s", mixed))
    assert isinstance(opened.columns["vector"].values, np.memmap)
    assert isinstance(opened.columns["text"].values.blob, np.memmap)


def test_a_modality_can_begin_late_or_never(tmp_path):
    chunks = [
        Samples.of({"a": np.eye(2)}, ids=["0", "1"]),
        Samples.of({"a": [None, None], "b": ["x", None]}, ids=["2", "3"], label=["p", "q"]),
        Samples.of({"c": [np.zeros(3), None]}, ids=["4", "5"], label=["q", None]),
    ]
    opened = open_store(write_store(tmp_path / "s", chunks))
    assert opened.present.astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert opened.label.codes.tolist() == [-1, -1, 0, 1, 1, -1]


def test_a_modality_missing_everywhere_can_be_stored(tmp_path):
    samples = Samples.of({"a": np.eye(2), "b": np.eye(2)}, present={"b": [False, False]})
    opened = open_store(write_store(tmp_path / "s", samples))
    assert not opened.columns["b"].present.any() and len(opened.columns["b"].take(np.arange(2))) == 0


def test_an_existing_folder_is_kept_unless_it_is_a_store_and_replace_is_said(mixed, tmp_path):
    write_store(tmp_path / "s", mixed)
    with pytest.raises(StoreError, match="exists already"):
        write_store(tmp_path / "s", mixed)
    write_store(tmp_path / "s", mixed.take(slice(0, 5)), replace=True)
    assert len(open_store(tmp_path / "s")) == 5
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("words")
    with pytest.raises(StoreError, match="exists already"):
        write_store(tmp_path / "thesis", mixed, replace=True)
    assert (tmp_path / "thesis" / "chapter1").read_text() == "words"


def test_a_failed_import_leaves_nothing_and_the_old_store_whole(mixed, tmp_path):
    write_store(tmp_path / "s", mixed)

    def broken():
        yield mixed.take(slice(0, 9))
        raise StoreError("the source broke")

    with pytest.raises(StoreError, match="the source broke"):
        write_store(tmp_path / "s", broken(), replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    same(mixed, open_store(tmp_path / "s", verify=True))


def test_a_killed_import_leaves_no_store_that_opens(mixed, tmp_path):
    killed = """
import os, sys, numpy as np
from centrobind.data import Samples, write_store
def chunks():
    yield Samples.of({"a": np.eye(5)})
    os._exit(9)  # dies in the middle, without a chance to clean up
write_store(sys.argv[1], chunks())
"""
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "s")]).returncode == 9
    assert not (tmp_path / "s").exists()
    with pytest.raises(StoreError, match="no meta.json"):
        open_store(tmp_path / "s.partial")
    write_store(tmp_path / "s", mixed)  # and the next try starts clean
    same(mixed, open_store(tmp_path / "s"))
    assert not (tmp_path / "s.partial").exists()


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([], "nothing to store"),
        ([Samples.of({"a": np.eye(2)}), Samples.of({"a": np.eye(3)}, ids="xyz")], "expected float32 values of shape"),
        ([Samples.of({"a": np.eye(2)}), Samples.of({"a": ["x"]}, ids="x")], "changes from vector to text"),
        ([Samples.of({"a": np.eye(2)}), Samples.of({"a": np.eye(2)})], r"distinct: 2 repeat .* rows \[2, 3\]"),
    ],
)
def test_chunks_that_do_not_agree_are_refused(tmp_path, chunks, says):
    with pytest.raises(StoreError, match=says):
        write_store(tmp_path / "s", chunks)
    assert list(tmp_path.iterdir()) == []


def edit(path, **changes):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | changes))


DAMAGE = {
    "no folder": (lambda s: [f.unlink() for f in s.iterdir()] and s.rmdir(), "no such folder"),
    "no meta": (lambda s: (s / "meta.json").unlink(), "no meta.json"),
    "foreign": (lambda s: (s / "meta.json").write_text('{"format": "other"}'), "not made by centrobind"),
    "not json": (lambda s: (s / "meta.json").write_bytes(b"\xff\x00{"), "cannot be read"),
    "a list": (lambda s: (s / "meta.json").write_text("[]"), "not made by centrobind"),
    "newer": (lambda s: edit(s, version=2), "store version 2"),
    "negative": (lambda s: edit(s, samples=-1), "a value in it"),
    "escape": (lambda s: edit(s, modalities={"../../etc": {"kind": "vector", "values": 1}}), "a value in it"),
    "escaping file": (lambda s: edit(s, files={"../x.npy": {"bytes": 1, "sha256": ""}}), "a value in it"),
    "truncated": (lambda s: os.truncate(s / "x_vector.npy", 150), "expected .* bytes, found 150"),
    "file gone": (lambda s: (s / "rows_text.npy").unlink(), "no file"),
    "other count": (lambda s: edit(s, samples=59), "rows_.*expected int32 of shape"),
    "fewer values": (
        lambda s: edit(s, modalities={"vector": {"kind": "vector", "values": 3}}),
        "points outside",
    ),
    "codes without names": (lambda s: edit(s, categories={"label": ["only one"]}), "codes without a name"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name(mixed, tmp_path, name):
    path = write_store(tmp_path / "s", mixed)
    harm, says = DAMAGE[name]
    harm(path)
    with pytest.raises(StoreError, match=says):
        open_store(path)


def test_a_flipped_bit_is_found_by_verify(mixed, tmp_path):
    path = write_store(tmp_path / "s", mixed)
    content = bytearray((path / "x_vector.npy").read_bytes())
    content[-1] ^= 1
    (path / "x_vector.npy").write_bytes(content)
    open_store(path)
    with pytest.raises(StoreError, match=r"x_vector\.npy: checksum differs"):
        open_store(path, verify=True)


def test_a_pickle_in_a_store_is_not_opened(mixed, tmp_path):
    path = write_store(tmp_path / "s", mixed)
    np.save(path / "x_vector.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    meta = json.loads((path / "meta.json").read_text())
    meta["files"]["x_vector.npy"]["bytes"] = (path / "x_vector.npy").stat().st_size
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="cannot be read as an array"):
        open_store(path)
