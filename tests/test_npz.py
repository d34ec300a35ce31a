"""An .npz is streamed in pieces that equal the whole, and whatever its headers promise is checked before it is paid."""

import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from centrobind.data import (
    Codes,
    Limits,
    decode_npy,
    inspect_samples,
    inspecting,
    npz,
    open_store,
    read_chunks,
    write_store,
)
from centrobind.errors import DataError


def header(descr, shape, fortran=False) -> bytes:
    """A header that says just this, checked by nobody."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


SOUND = header("<f4", "(4, 2)") + np.arange(8, dtype="<f4").tobytes()


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pieces_of_any_size_are_the_whole(tmp_path, monkeypatch, rows, save):
    monkeypatch.setattr(npz, "ROWS", rows)
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(11, 3)), np.asfortranarray(draw.integers(0, 9, (11, 2, 2)).astype(np.uint8))
    words, here = np.array(["größe", "", "x" * 30] * 3 + ["y", "z"]), np.arange(11) % 4 > 0
    save(tmp_path / "d.npz", x_a=a, x_b=b, x_words=words, present_a=here, label=np.arange(11) % 3, id=np.arange(11) * 7)
    samples = open_store(write_store(tmp_path / "store", read_chunks(tmp_path / "d.npz")))
    assert np.array_equal(samples.columns["a"].values, a[here].astype(np.float32))
    assert np.array_equal(samples.columns["b"].values, b)
    assert samples.columns["words"].values[:] == [word for word in words.tolist() if word]
    assert samples.present.tolist() == [here.tolist(), [True] * 11, (words != "").tolist()]
    assert samples.ids[:] == [str(7 * i) for i in range(11)]
    assert [samples.label.names[code] for code in samples.label.codes] == [str(i % 3) for i in range(11)]


def bomb(path, shape, megabytes):
    """Zeros that a header calls numbers of this shape."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("x_a.npy", "w", force_zip64=True) as member:
            member.write(header("<f4", shape))
            for _ in range(megabytes):
                member.write(bytes(2**20))
        file.writestr("x_b.npy", SOUND)
    return path


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (header("<f4", "(4, -2)") + bytes(32), r"a shape of \(4, -2\)"),
        (header("<f4", "(-4, -2)") + bytes(32), "a shape of"),
        (header("<f4", "(True, 2)") + bytes(8), "not a .npy file|a shape of"),
        (header("<f4", str((4,) + (1,) * 70)) + bytes(16), "a shape of"),
        (header("<f4", "(1000000000000, 2)"), "8,000,000,000,000; the file is truncated"),
        (header("<f4", "(4, 2)") + bytes(28), "28 bytes where its header promises 32"),
        (header("<f4", "(4, 2)") + bytes(36), "36 bytes where its header promises 32"),
        (header("<f4", "(4, 4611686018427387905)", True) + bytes(32), "numbers a sample, more than the 4,194,304"),
        (header("<U2", "(4,)") + struct.pack("<8I", *[0xFFFFFFF] * 8), "no characters"),
        (header("<U1", "(4,)") + struct.pack("<4I", *[0xD800] * 4), "no characters"),
        (header("<U2", "(4, 2)") + bytes(64), "expected one text a sample"),
        (header("<U200000", "(4,)") + bytes(3_200_000), "at most 100,000 characters"),
        (header("|O", "(4, 2)") + bytes(64), "expected numbers or text"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"x", "not a .npy file"),
    ],
)
def test_headers_that_promise_too_much(tmp_path, member, says):
    path = archive(tmp_path / "d.npz", {"x_a.npy": member, "x_b.npy": SOUND})
    with pytest.raises(DataError, match=says) as caught:
        list(read_chunks(path))
    assert "x_a.npy" in str(caught.value)


def test_a_bomb_costs_nothing(tmp_path):
    bomb(tmp_path / "d.npz", "(4, 16777216)", 256)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="16,777,216 numbers a sample.*--limit numbers"):
            list(read_chunks(tmp_path / "d.npz"))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_large_rows_are_read_a_few_at_a_time(tmp_path):
    """64 rows of 4 MB in pieces of 64 MB at most, and never all of them."""
    bomb(tmp_path / "d.npz", "(64, 1048576)", 256)
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as file:
        file.writestr("x_c.npy", header("<f4", "(64, 1)") + bytes(256))
    tracemalloc.start()
    try:
        chunks = read_chunks(tmp_path / "d.npz", modalities=["a", "c"])
        assert sum(len(chunk) for chunk in chunks) == 64
        assert tracemalloc.get_traced_memory()[1] < 4 * npz.CHUNK_BYTES < 64 * 2**22 * 1.01
    finally:
        tracemalloc.stop()


def test_an_array_that_must_be_read_whole_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "WHOLE", 100)
    np.savez(tmp_path / "d.npz", x_a=np.asfortranarray(np.ones((9, 3))))
    with pytest.raises(DataError, match=r"x_a\.npy: .*Fortran order.*ascontiguousarray"):
        list(read_chunks(tmp_path / "d.npz"))


def encrypted(path):
    content = bytearray(archive(path, {"x_a.npy": SOUND}).read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + place] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["stored", "deflate", "bzip2", "lzma", "encrypted", "unknown"])
def test_damaged_and_encrypted_members(tmp_path, kind):
    path = tmp_path / "d.npz"
    if kind == "encrypted":
        encrypted(path)
    else:
        how = {"stored": 0, "deflate": 8, "bzip2": 12, "lzma": 14, "unknown": 0}[kind]
        values = np.random.default_rng(0).normal(size=(4000, 4)).astype("<f4")
        archive(path, {"x_a.npy": header("<f4", "(4000, 4)") + values.tobytes()}, how)
        content = bytearray(path.read_bytes())
        if kind == "unknown":
            content[content.find(b"PK\x01\x02") + 10] = content[8] = 99
        else:
            content[5000:5200] = bytes(byte ^ 0x5A for byte in content[5000:5200])
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable \.npz file|not a \.npy file"):
        list(read_chunks(path))


def test_an_array_that_is_there_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x_a.npy", SOUND)
        file.writestr("x_a.npy", header("<f4", "(4, 2)") + bytes(32))
    with pytest.raises(DataError, match="x_a.npy is there twice"):
        list(read_chunks(tmp_path / "d.npz"))


@pytest.mark.parametrize("flags", [[0, 0.5, 1], [0, np.nan, 1], [1, 2, 0], [[1], [1], [1]]])
def test_presence_is_true_or_false(tmp_path, flags):
    np.savez(tmp_path / "d.npz", x_a=np.eye(3), present_a=np.array(flags))
    with pytest.raises(DataError, match="present_a.npy: expected one True or False"):
        list(read_chunks(tmp_path / "d.npz"))


@pytest.mark.parametrize("shape", ["(-5, -5)", "(-1,)", "(5, -0, -1)", str((1,) * 40)])
def test_a_lone_array_with_sizes_that_none_has(shape):
    with pytest.raises(DataError, match="a shape of"):
        decode_npy(header("<f4", shape) + bytes(100))


def test_texts_that_are_all_empty_are_gaps(tmp_path):
    archive(tmp_path / "d.npz", {"x_t.npy": header("<U0", "(4,)"), "x_b.npy": SOUND})
    (chunk,) = read_chunks(tmp_path / "d.npz")
    assert chunk.present.tolist() == [[False] * 4, [True] * 4]


def test_whole_numbers_become_categories_as_any_list_does():
    values = np.array([3, -1, 10, 3, 2**40, 0], np.int64)
    fast, literal = Codes.of(values), Codes.of(values.tolist())
    assert fast.names == literal.names and np.array_equal(fast.codes, literal.codes)


def test_inspecting_large_samples_looks_at_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(inspecting, "MOST_NUMBERS", 50)
    np.savez(tmp_path / "d.npz", x_a=np.ones((40, 10)), x_b=np.random.default_rng(0).normal(size=(40, 2)))
    samples = open_store(write_store(tmp_path / "store", read_chunks(tmp_path / "d.npz", limits=Limits(numbers=10))))
    assert any(finding.startswith("a: 4 of 5 values repeat") for finding in inspect_samples(samples).findings)
