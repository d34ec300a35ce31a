import json
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from centrobind.data import Samples, open_store, write_store
from centrobind.data.samples import will_need
from centrobind.data.store import checksum, read_in_chunks
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
        (
            [Samples.of({"a": np.eye(2)}), Samples.of({"a": np.eye(3)}, ids=list("xyz"))],
            "expected float32 values of shape",
        ),
        ([Samples.of({"a": np.eye(2)}), Samples.of({"a": ["x"]}, ids=list("x"))], "changes from vector to text"),
        ([Samples.of({"a": np.eye(2)}), Samples.of({"a": np.eye(2)})], r"distinct: 2 repeat .* rows \[2, 3\]"),
    ],
)
def test_chunks_that_do_not_agree_are_refused(tmp_path, chunks, says):
    with pytest.raises(StoreError, match=says):
        write_store(tmp_path / "s", chunks)
    assert list(tmp_path.iterdir()) == []


def read(path):
    return json.loads((path / "meta.json").read_text())


def edit(path, **changes):
    (path / "meta.json").write_text(json.dumps(read(path) | changes))


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
        lambda s: edit(s, modalities=read(s)["modalities"] | {"vector": {"kind": "vector", "values": 3}}),
        "points outside",
    ),
    "codes without names": (
        lambda s: edit(s, categories=read(s)["categories"] | {"split": ["only one"]}),
        "codes without a name",
    ),
}


def put(path, name, array):
    """Another array in the place of one, with the size and checksum that meta.json wants."""
    np.save(path / name, array)
    about = {"bytes": (path / name).stat().st_size, "sha256": checksum(path / name)}
    edit(path, files=read(path)["files"] | {name: about})


def linked(path, name):
    (path / name).rename(path.parent / "elsewhere")
    (path / name).symlink_to(path.parent / "elsewhere")


DAMAGE |= {
    "no modality": (lambda s: edit(s, modalities={}), "a value in it"),
    "one file too many": (
        lambda s: edit(s, files=read(s)["files"] | {"y.npy": {"bytes": 1, "sha256": ""}}),
        "a value in",
    ),
    "one file unlisted": (lambda s: edit(s, files=dict(list(read(s)["files"].items())[1:])), "a value in it"),
    "a link": (lambda s: linked(s, "x_vector.npy"), "x_vector.npy is a link"),
    "a linked meta": (lambda s: linked(s, "meta.json"), "meta.json is a link"),
    "no rows": (lambda s: put(s, "x_vector.npy", np.float32(3)), "float32 of shape .. is no vector"),
    "no features": (lambda s: put(s, "x_vector.npy", np.zeros((50, 0), np.float32)), "is no vector"),
    "other byte order": (lambda s: put(s, "x_vector.npy", np.zeros((50, 5), ">f4")), "is no vector"),
    "wider numbers": (lambda s: put(s, "x_vector.npy", np.zeros((50, 5), int)), "int64 of shape"),
    "flat picture": (lambda s: put(s, "x_picture.npy", np.zeros((44, 72), np.uint8)), "is no image"),
    "fewer bytes": (lambda s: put(s, "x_text.npy", np.zeros(7, np.uint8)), "does not fit"),
    "more ids": (lambda s: put(s, "ids_offsets.npy", np.zeros(1, np.int64)), "does not fit"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name(mixed, tmp_path, name):
    path = write_store(tmp_path / "s", mixed)
    harm, says = DAMAGE[name]
    harm(path)
    with pytest.raises(StoreError, match=says):
        open_store(path)


def test_a_text_that_is_no_text_is_said_when_it_is_read(mixed, tmp_path):
    path = write_store(tmp_path / "s", mixed)
    put(path, "ids.npy", np.full(len(np.load(path / "ids.npy")), 255, np.uint8))
    opened = open_store(path)
    with pytest.raises(StoreError, match="not UTF-8.*--verify"):
        opened.ids[:3]


def test_two_imports_into_one_folder_do_not_mix(mixed, tmp_path):
    """The second is refused while the first writes, and the first is none the worse."""

    def chunks():
        yield mixed.take(slice(0, 30))
        with pytest.raises(StoreError, match="belongs to another import"):
            write_store(tmp_path / "s", mixed.take(slice(0, 5)))
        yield mixed.take(slice(30, 60))

    same(mixed, open_store(write_store(tmp_path / "s", chunks()), verify=True))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(mixed, tmp_path):
    write_store(tmp_path / "s", mixed).rename(tmp_path / "s.old")
    with pytest.raises(StoreError, match="was killed; what was there before is .*s.old"):
        open_store(tmp_path / "s")
    with pytest.raises(StoreError, match="exists already"):  # because it is back
        write_store(tmp_path / "s", mixed.take(slice(0, 5)))
    same(mixed, open_store(tmp_path / "s", verify=True))


@pytest.mark.parametrize("kept", [slice(0, 60), slice(3, 41), np.array([7, 7, 50, 2]), []])
def test_asking_ahead_for_rows_changes_none_of_them(mixed, tmp_path, kept):
    """What is mapped is read the same as what is in memory, whatever pages its rows lie on."""
    wide = Samples.of({"wide": np.arange(60 * 3000.0).reshape(60, 3000), "text": [f"{i} " * 999 for i in range(60)]})
    opened = open_store(write_store(tmp_path / "s", wide))
    for name in wide.modalities:
        one, other = (samples.columns[name].take(np.arange(60)[kept]) for samples in (wide, opened))
        assert one == other if isinstance(one, list) else np.array_equal(one, other)


def test_what_is_asked_for_ahead_is_what_will_be_read(tmp_path, monkeypatch):
    """Whole pages, each once, neighbours in one call."""
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, how: asked.append((start, length)))
    np.save(tmp_path / "x.npy", np.zeros((100, 1024), np.float32))  # 4 kB a row, 128 bytes of header before the first
    values = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert values.offset == 128
    rows = np.array([9, 3, 4, 50])
    will_need(values, rows, rows + 1)
    page = mmap.PAGESIZE
    covered = [range(start // page, -(-(start + length) // page)) for start, length in asked]
    assert sum(map(len, covered)) == len(set().union(*covered)) and len(asked) == 3
    assert set().union(*covered) == {
        p for row in rows for p in range((128 + row * 4096) // page, (127 + (row + 1) * 4096) // page + 1)
    }


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


def test_a_link_in_the_place_of_the_working_folder_or_its_lock_is_not_followed(mixed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept")
    (tmp_path / "s.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        write_store(tmp_path / "s", mixed)
    (tmp_path / "s.partial").unlink()
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "lock").symlink_to(tmp_path / "elsewhere" / "precious")
    with pytest.raises(StoreError, match="a link in the place of a lock"):
        write_store(tmp_path / "s", mixed)
    assert (tmp_path / "elsewhere" / "precious").read_text() == "kept"


def test_another_process_that_imports_into_the_same_folder_is_refused(mixed, tmp_path):
    """Until it is done or dies: the lock dies with it."""
    waits = """
import sys, numpy as np
from centrobind.data import Samples, write_store
def chunks():
    yield Samples.of({"a": np.eye(5)})
    print("writing", flush=True)
    sys.stdin.readline()
write_store(sys.argv[1], chunks())
"""
    command = [sys.executable, "-c", waits, str(tmp_path / "s")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "writing\n"
        with pytest.raises(StoreError, match="belongs to another import"):
            write_store(tmp_path / "s", mixed)
        other.kill()
    same(mixed, open_store(write_store(tmp_path / "s", mixed)))
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == sorted([*json.loads((tmp_path / "s" / "meta.json").read_text())["files"], "meta.json"])  # fmt: skip


def test_nothing_needs_fcntl_to_be_imported():
    """Windows has none; and what is written there is read here."""
    code = "import sys; sys.modules['fcntl'] = None; import centrobind as cb; cb.fit; cb.write_store; cb.build_index"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
