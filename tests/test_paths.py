"""No text of a manifest becomes a path outside its folder, whatever column, type or format it comes in."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from centrobind.data import dataset_chunks, read_chunks
from centrobind.data.paths import path_inside, printable
from centrobind.errors import DataError

SECRET = "nobody named this file"


@pytest.fixture
def folder(tmp_path):
    """A manifest's folder with a secret beside it."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def refused(path, **options) -> str:
    """The words of the refusal, in which the secret is not."""
    with pytest.raises(DataError) as caught:
        list(read_chunks(path, **options))
    assert SECRET not in str(caught.value)
    return str(caught.value)


def write(folder, kind, cells):
    """A manifest with these cells in a column of their own."""
    path = folder / f"set.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"words": cell, "v": [1]}) + "\n" for cell in cells))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"words": cells, "v": [[1.0]] * len(cells)}), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["x.txt", None, "x.png"])
def test_text_in_bytes_is_not_a_path(folder, kind, name):
    for content in (str(folder.parent / "secret.txt"), "../secret.txt", "set.jsonl"):
        manifest = write(folder, kind, [{"bytes": content, "path": name}] * 2)
        assert "row 1, column 'words': bytes: expected the content of a file, got str" in refused(manifest)
        assert "expected the content of a file" in refused(manifest, readings={"words": "text"})


def test_bytes_that_are_bytes_are_their_own_content(folder):
    """A file called like a secret, whose bytes are the secret's path: the text is that path and not what lies there."""
    path = str(folder.parent / "secret.txt")
    manifest = write(folder, "parquet", [{"bytes": path.encode(), "path": "x.txt"}])
    (chunk,) = read_chunks(manifest)
    assert chunk.columns["words"].values[:] == [path]


def test_numbers_in_bytes_or_path_are_neither(folder):
    for cell in ({"bytes": 10**11}, {"bytes": [1, 2]}, {"path": 5}, {"bytes": {}, "path": "x.txt"}):
        assert "expected the" in refused(write(folder, "jsonl", [cell]))


@pytest.mark.parametrize(
    "name",
    [
        "..\\secret.txt", "a\\..\\..\\secret.txt", "./../secret.txt", "C:\\secret.txt", "c:secret.txt", "\\\\host\\share\\secret.txt",
        "//host/share/secret.txt", "\\\\?\\C:\\secret.txt", "/etc/hostname.txt", "FILE:///etc/hostname.txt", "HTTPS://x.org/secret.txt",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_on_any_system(folder, name):
    (folder / "a").mkdir()
    for cell in (name, {"path": name}, {"bytes": None, "path": name}):
        assert any(words in refused(write(folder, "jsonl", [cell])) for words in ("leaves the folder", "an address"))


@pytest.mark.parametrize(
    "name", ["a\0b.txt", "x" * 300 + ".txt", "x" * 9000 + ".txt", "y/" * 3000 + "x.txt", "loop.txt"]
)
def test_names_that_no_file_has_end_in_a_short_message(folder, name):
    (folder / "loop.txt").symlink_to("loop.txt")
    said = refused(write(folder, "jsonl", [name]))
    assert "not the name of a file" in said or "cannot be read" in said or "no such file" in said
    assert len(said) < 500


def test_windows_separators_are_understood(folder):
    (folder / "img").mkdir()
    Image.new("RGB", (4, 4), "red").save(folder / "img" / "a.png")
    (folder / "set.csv").write_text("photo,caption\nimg\\a.png,a dog\n")
    (chunk,) = read_chunks(folder / "set.csv", readings={"photo": "image:4x4x3"})
    assert chunk.columns["photo"].values[0, 0, 0].tolist() == [255, 0, 0]
    assert path_inside(folder, "img/../img\\a.png") == (folder / "img" / "a.png").resolve()


def test_a_dataset_names_files_only_in_a_folder_that_is_given(folder):
    rows = [{"words": {"bytes": None, "path": str(folder.parent / "secret.txt")}}]
    with pytest.raises(DataError, match="no folder is given; say folder="):
        list(dataset_chunks(rows))
    (chunk,) = dataset_chunks(rows, folder=folder.parent)
    assert chunk.columns["words"].values[:] == [SECRET]
    with pytest.raises(DataError, match="leaves the folder"):
        list(dataset_chunks(rows, folder=folder))


def test_a_message_cannot_drive_the_terminal(folder):
    said = refused(write(folder, "jsonl", ["\x1b[2J\x9b31m\u202ex.png", {"path": "\x1b]0;pwn\x07.png"}]))
    assert all(char.isprintable() or char == "\n" for char in said) and "\\x1b[2J" in said
    assert printable("a\nb") == "a\\nb" and len(printable("x" * 1000)) == 100 and printable("größe") == "größe"


@pytest.mark.parametrize("key", ["id", "label", "split", "group"])
def test_what_describes_a_sample_is_text_or_a_number(folder, key):
    path = folder / "set.jsonl"
    for bad, says in (({"a": 1}, "got dict"), ([1, 2], "got list"), ("x\ud800", "half a character")):
        path.write_text("".join(json.dumps({key: value, "v": [1]}) + "\n" for value in ("good", bad)))
        said = refused(path)
        assert f"row 2, column {key!r}" in said and says in said
        said.encode()
    skipped = []
    (chunk,) = read_chunks(path, skipped=skipped)
    assert len(chunk) == 2 and [bad.column for bad in skipped] == [key]
    path.write_text(f'{{"{key}": NaN, "v": [1]}}\n{{"{key}": 3, "v": [1]}}\n')
    (chunk,) = read_chunks(path)
    assert chunk.ids[:] == ["0", "3"] if key == "id" else getattr(chunk, key).codes.tolist() == [-1, 0]


def test_half_characters_in_a_text_are_refused(folder):
    said = refused(write(folder, "jsonl", ["fine \U0001f600", "half \ud83d"]))
    assert "row 2, column 'words': not a text: half a character" in said and "row 1" not in said
    assert np.isfinite(len(said.encode()))
